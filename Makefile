# `make demo` shows the main job, `make test` runs every test; both install what they need into .venv and target.
# `make check` is the loop before a commit, `make bench` measures beside the peers.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BENCH_VENV := .cache/bench
GARAGE := .cache/garage
NATIVE := python/s3dcp/_native.abi3.so
RUST_SOURCES := Cargo.toml Cargo.lock pyproject.toml $(shell find crates -name '*.rs' -o -name Cargo.toml)
NEXTEST := $(shell cargo nextest --version >/dev/null 2>&1 && echo yes)
export CARGO_TARGET_DIR ?= $(CURDIR)/target

.PHONY: help demo test test-rust test-python test-real-s3 check check-rust check-python format bench bench-micro clean

help:
	@sed -n '1,2s/^# //p' Makefile

demo: $(NATIVE)
	@$(BIN)/python examples/demo/run.py

test: test-rust test-python

test-rust:
ifeq ($(NEXTEST),yes)
	cargo nextest run --locked --release --workspace --exclude s3dcp-bench-micro --no-fail-fast
else
	cargo test --locked --release --workspace --exclude s3dcp-bench-micro --lib --bins --tests
endif
	cargo test --locked --release --workspace --exclude s3dcp-bench-micro --doc --quiet

test-python: $(NATIVE)
	$(BIN)/python -m pytest -n 2 $(PYTEST)

# The tests that talk to the embedded server, on Ceph's gateway and on Garage; SERVERS="rgw" narrows that.
SERVERS ?= rgw garage
INSTALL := $(if $(filter-out 0,$(shell id -u)),sudo )apt-get install --yes --no-install-recommends
test-real-s3: $(NATIVE) $(SERVERS:%=install-%)
	@for server in $(SERVERS); do \
		echo "== $$server"; $(BIN)/python -m pytest --s3=$$server $(PYTEST) || failed=yes; \
	done; [ -z "$$failed" ]

.PHONY: install-rgw install-garage
install-rgw:
	@command -v radosgw ceph-mon ceph-osd ceph-mgr ceph >/dev/null || \
		$(INSTALL) radosgw ceph-mon ceph-osd ceph-mgr ceph-common

install-garage: $(GARAGE)/bin/garage

$(GARAGE)/bin/garage:
	@echo "Building Garage into $(GARAGE) (some twenty minutes of two cores)"
	@command -v protoc cmake clang pkg-config cc >/dev/null || \
		$(INSTALL) build-essential clang cmake pkg-config protobuf-compiler
	@CARGO_TARGET_DIR=$(GARAGE)/target cargo install garage --version 2.5.0 --locked --quiet --root $(GARAGE)
	@rm -rf $(GARAGE)/target

check: check-rust check-python

check-rust:
	cargo fmt --all --check
	cargo clippy --locked --release --workspace --all-targets --quiet -- -D warnings

check-python: $(NATIVE)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest s3dcp._native

format: $(VENV)/ready
	cargo fmt --all
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(NATIVE) $(BENCH_VENV)/ready
	cargo build --locked --release --quiet -p s3dcp-bench-server
	cargo build --locked --release --quiet -p s3dcp-s3 --example transfer
	$(BENCH_VENV)/bin/python bench/run.py $(BENCH)

$(VENV)/ready: requirements-dev.txt
	@echo "Installing Python packages into $(VENV) (torch is large: some minutes)"
	@$(PYTHON) -m venv $(VENV)
	@PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet --requirement requirements-dev.txt
	@touch $@

# Criterion is built for this alone; instructions are counted where valgrind is installed.
bench-micro:
	cargo build --locked --release --quiet -p s3dcp-bench-micro
	$(PYTHON) bench/micro.py

# Sees all of .venv, and holds what only the peers need: they want other releases of boto3 than the tests.
$(BENCH_VENV)/ready: bench/requirements.txt $(VENV)/ready
	@echo "Installing the benchmark's peers into $(BENCH_VENV)"
	@$(BIN)/python -m venv $(BENCH_VENV)
	@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		>"$$($(BENCH_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth"
	@PIP_DISABLE_PIP_VERSION_CHECK=1 $(BENCH_VENV)/bin/python -m pip install --quiet --requirement $<
	@touch $@

# Stripped and installed in place; Python sources are used where they are.
$(NATIVE): $(VENV)/ready $(RUST_SOURCES)
	@echo "Building the native module (a first build takes some minutes)"
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) PIP_QUIET=1 PIP_NO_DEPS=1 $(BIN)/maturin develop --locked --release --quiet
	@touch $@

clean:
	rm -rf target $(VENV) $(BENCH_VENV) $(NATIVE)
