# `make demo` shows the main job, `make test` runs every test; both install what they need into .venv and target.
# `make check` is the loop before a commit, `make docs` builds the site, `make bench` measures beside the peers, `make wheels` builds
# what is released.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BENCH_VENV := .cache/bench
FRAMEWORKS_VENV := .cache/frameworks
DOCS_VENV := .cache/docs
RELEASE_VENV := .cache/release
GARAGE := .cache/garage
NATIVE := python/s3dcp/_native.abi3.so
RUST_SOURCES := Cargo.toml Cargo.lock pyproject.toml $(shell find crates -name '*.rs' -o -name Cargo.toml)
NEXTEST := $(shell cargo nextest --version >/dev/null 2>&1 && echo yes)
export CARGO_TARGET_DIR ?= $(CURDIR)/target

# $(call quietly,log,command): what installers say of themselves goes to the log, which is shown where they fail.
quietly = PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_QUIET=1 $(2) >$(1) 2>&1 || { cat $(1); exit 1; }

.PHONY: help demo test test-rust test-python test-torch test-real-s3 test-directory test-frameworks test-upstream check check-rust check-python check-targets format \
	deny docs bench bench-micro fuzz sanitize wheels test-wheels version clean

help:
	@sed -n '1,3s/^# //p' Makefile

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

# The tests that talk to the embedded server, on directory buckets.
test-directory: $(NATIVE)
	$(BIN)/python -m pytest -n 2 --s3=directory $(PYTEST)

# The tests that talk to the embedded server, on other servers: docs/servers.md. What is made for tests alone has fewer of them.
SERVERS ?= rgw garage moto localstack s3rver
FOR_TESTS := moto localstack s3rver
SAVES_AND_LOADS := $(patsubst %,tests/test_%.py,real_s3 checkpoint save_rules distributed prune)
test-real-s3: $(NATIVE) $(SERVERS:%=installed-%)
	@for server in $(SERVERS); do \
		case " $(FOR_TESTS) " in *" $$server "*) tests="$(SAVES_AND_LOADS)" ;; *) tests= ;; esac; \
		$(BIN)/python -m pytest --s3=$$server $$tests $(PYTEST) || failed=yes; \
	done; [ -z "$$failed" ]

# $(call debian,programs,packages): the packages, unless all the programs are there.
SUDO := $(if $(filter-out 0,$(shell id -u)),sudo)
define debian
	@for program in $(1); do command -v $$program >/dev/null || missing=yes; done; [ -z "$$missing" ] || \
		{ $(SUDO) apt-get update && $(SUDO) apt-get install --yes --no-install-recommends $(2); }
endef

.PHONY: installed-rgw installed-garage installed-moto installed-localstack installed-s3rver
installed-rgw:
	$(call debian,radosgw ceph-mon ceph-osd ceph-mgr ceph,radosgw ceph-mon ceph-osd ceph-mgr ceph-common)

installed-garage: $(GARAGE)/bin/garage

# Little optimised: it is built for these tests alone.
$(GARAGE)/bin/garage:
	$(call debian,cc clang cmake pkg-config protoc,build-essential clang cmake pkg-config protobuf-compiler)
	@echo "Building Garage into $(GARAGE) (some twenty minutes)"
	@CARGO_TARGET_DIR=$(GARAGE)/target CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off \
		cargo install garage --version 2.5.0 --locked --quiet --root $(GARAGE)
	@rm -rf $(GARAGE)/target

installed-moto: .cache/servers/moto/ready
installed-localstack: .cache/servers/localstack/ready
installed-s3rver: .cache/servers/s3rver/ready

.cache/servers/moto/ready .cache/servers/localstack/ready: .cache/servers/%/ready: tests/support/real/%.txt
	@echo "Installing $* into $(@D)"
	@mkdir -p $(@D) && $(PYTHON) -m venv $(@D)
	@$(call quietly,$(@D)/install.log,$(@D)/bin/python -m pip install --quiet --requirement $<)
	@touch $@

.cache/servers/s3rver/ready: tests/support/real/s3rver.txt
	$(call debian,node npm,nodejs npm)
	@echo "Installing s3rver into $(@D)"
	@mkdir -p $(@D)
	@$(call quietly,$(@D)/install.log,npm install --prefix $(@D) --no-save --no-audit --no-fund "$$(cat $<)")
	@touch $@

# Trainings with the frameworks that people use, which it installs: tests/frameworks.
test-frameworks: $(NATIVE) $(FRAMEWORKS_VENV)/ready
	$(FRAMEWORKS_VENV)/bin/python -m pytest tests/frameworks $(PYTEST)

# Tests of other projects with our classes in the place of theirs, from clones of those: docs/moving.md, docs/frameworks.md.
UPSTREAM := PYTHONPATH=$(CURDIR)/tests:$(CURDIR)/python $(FRAMEWORKS_VENV)/bin/python -m upstream
test-upstream: $(NATIVE) $(FRAMEWORKS_VENV)/ready
	@[ -n "$(S3TORCHCONNECTOR)$(TORCHTITAN)" ] || \
		{ echo "which? make test-upstream S3TORCHCONNECTOR=<clone> TORCHTITAN=<clone>"; exit 1; }
	$(if $(S3TORCHCONNECTOR),$(UPSTREAM) s3torchconnector $(S3TORCHCONNECTOR) $(PYTEST))
	$(if $(TORCHTITAN),$(UPSTREAM) torchtitan $(TORCHTITAN) $(PYTEST))

# All Python tests with another version of torch, which it installs: docs/torch-versions.md.
TORCH ?= 2.6
TORCH_VENV := .cache/torch-$(TORCH)
test-torch: $(NATIVE) $(TORCH_VENV)/ready
	$(TORCH_VENV)/bin/python -m pytest -n 2 $(PYTEST)

$(TORCH_VENV)/ready: $(VENV)/ready
	@echo "Installing torch $(TORCH) into $(TORCH_VENV) (some minutes)"
	@mkdir -p .cache && echo "torch==$(TORCH).*" >.cache/torch-$(TORCH).txt
	$(call beside,$(TORCH_VENV),.cache/torch-$(TORCH).txt)

RUSTDOC_OF_THE_CRATES := RUSTDOCFLAGS="-D warnings" cargo doc --locked --release --no-deps --quiet -p s3dcp-prefix -p s3dcp-s3 -p s3dcp-checkpoint

check: check-rust check-python

check-rust:
	cargo fmt --all --check
	cargo clippy --locked --release --workspace --all-targets --quiet -- -D warnings
	cargo clippy --locked --release -p s3dcp-s3 --no-default-features --all-targets --quiet -- -D warnings
	$(RUSTDOC_OF_THE_CRATES)
	@for crate in libfuzzer models; do \
		cargo update --workspace --locked --quiet --manifest-path fuzz/$$crate/Cargo.toml || exit 1; \
	done # their locks follow the workspace's

check-python: $(NATIVE)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest s3dcp._native
	$(BIN)/python checks/circles.py
	$(BIN)/python checks/api.py
	$(BIN)/python checks/command.py

# Compiles for other machines, where rustup has their standard library. Nothing is linked, so `true` stands for their C
# compiler.
TARGETS ?= aarch64-unknown-linux-gnu aarch64-apple-darwin
check-targets:
	@for target in $(TARGETS); do \
		rustup target add $$target >/dev/null 2>&1 || { echo "no standard library for $$target here: not checked"; continue; }; \
		name=$$(echo $$target | tr - _); \
		env CC_$$name=true AR_$$name=true cargo check --locked --quiet --target $$target -p s3dcp-python || exit 1; \
	done

format: $(VENV)/ready
	cargo fmt --all
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Licences, sources and doubled versions of the dependencies; needs cargo-deny (cargo install cargo-deny).
deny:
	cargo deny --locked check licenses bans sources

# The site of the pages in docs/, with the references of Python, Rust and the command: build/docs/index.html.
docs: $(NATIVE) $(DOCS_VENV)/ready
	$(RUSTDOC_OF_THE_CRATES)
	@mkdir -p build/docs-source
	PYTHONPATH=python $(DOCS_VENV)/bin/python -m sphinx -c docs/site -E -W --keep-going -n -q build/docs-source build/docs
	@rm -rf build/docs/rust && cp -r $(CARGO_TARGET_DIR)/doc build/docs/rust
	@echo "build/docs/index.html"

bench: $(NATIVE) $(BENCH_VENV)/ready
	cargo build --locked --release --quiet -p s3dcp-bench-server
	cargo build --locked --release --quiet -p s3dcp-s3 --example transfer
	$(BENCH_VENV)/bin/python bench/run.py $(BENCH)

HOST = $(shell rustc -vV | sed -n 's/^host: //p')
FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?= $(notdir $(wildcard fuzz/corpus/*))
GOLDEN := crates/checkpoint/tests/data

# Every target in libFuzzer, with AddressSanitizer; what breaks a rule is left in target/fuzz/found.
fuzz: export CARGO_TARGET_DIR := $(CARGO_TARGET_DIR)/fuzz
fuzz: export RUSTC_BOOTSTRAP := 1
fuzz: export RUSTFLAGS := -Zsanitizer=address -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
	-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
	-Cllvm-args=-sanitizer-coverage-trace-compares -Cllvm-args=-simplifycfg-branch-fold-threshold=0 -Ccodegen-units=1 \
	--cfg fuzzing
fuzz:
	cargo build --locked --release --quiet --manifest-path fuzz/libfuzzer/Cargo.toml --target $(HOST)
	@for target in $(FUZZ_TARGETS); do \
		mkdir -p $(CARGO_TARGET_DIR)/found $(CARGO_TARGET_DIR)/corpus/$$target; \
		$(CARGO_TARGET_DIR)/$(HOST)/release/$$target -max_total_time=$(FUZZ_SECONDS) -max_len=16384 -timeout=20 \
			-rss_limit_mb=1024 -malloc_limit_mb=300 -print_final_stats=1 -verbosity=0 \
			-artifact_prefix=$(CARGO_TARGET_DIR)/found/$$target- \
			$(CARGO_TARGET_DIR)/corpus/$$target fuzz/corpus/$$target $(GOLDEN)/index $(GOLDEN)/archives || exit 1; \
	done

# AddressSanitizer around Python, for the native module that reads and writes tensor memory; then the models.
sanitize: ASAN := $(CARGO_TARGET_DIR)/asan
sanitize: $(VENV)/ready
	RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address -Cforce-frame-pointers=yes" CARGO_TARGET_DIR=$(ASAN) \
		cargo build --locked --release --quiet --config profile.release.opt-level=1 -p s3dcp-python --target $(HOST)
	@rm -rf $(ASAN)/python && mkdir -p $(ASAN)/python && cp -r python/s3dcp $(ASAN)/python
	@cp $(ASAN)/$(HOST)/release/lib_native.so $(ASAN)/python/s3dcp/_native.abi3.so
	LD_PRELOAD=$$(gcc -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc \
		PYTHONPATH=$(ASAN)/python $(BIN)/python -m pytest -p no:xdist \
		tests/test_sanitizer.py tests/test_batches.py tests/test_state_kinds.py tests/test_interrupts.py
	CARGO_TARGET_DIR=$(CARGO_TARGET_DIR)/models cargo run --locked --release --quiet --manifest-path fuzz/models/Cargo.toml

# dist/: the source distribution, and a wheel for each of these machines, linked by zig against the oldest glibc that Rust works
# with: docs/decisions/packages.md.
MACHINES ?= x86_64 aarch64
wheels: $(RELEASE_VENV)/ready
	@rm -rf dist
	@$(call quietly,$(RELEASE_VENV)/build.log,$(BIN)/maturin sdist --out dist)
	@for machine in $(MACHINES); do \
		echo "Building the wheel for $$machine (a first build takes some minutes)"; \
		rustup target add $$machine-unknown-linux-gnu >/dev/null 2>&1; \
		$(call quietly,$(RELEASE_VENV)/build.log,PATH="$(CURDIR)/$(RELEASE_VENV)/bin:$$PATH" \
			$(BIN)/maturin build --locked --release --quiet --out dist --zig --compatibility manylinux_2_17 \
			--auditwheel check --target $$machine-unknown-linux-gnu); \
	done
	@$(RELEASE_VENV)/bin/twine check --strict dist/*
	@$(RELEASE_VENV)/bin/abi3audit --strict dist/*.whl
	@ls -l dist

# What lies in dist, in environments that hold nothing else; the source distribution is built there too.
test-wheels: $(NATIVE)
	S3DCP_DIST=$(CURDIR)/dist $(BIN)/python -m pytest tests/test_wheel.py tests/test_sdist.py $(PYTEST)

# `make version VERSION=1.2.3` writes it wherever it stands.
version:
	@[ -n "$(VERSION)" ] || { echo "which? make version VERSION=1.2.3"; exit 1; }
	sed -i -E '/^(version|s3dcp-)/s/"(=?)[0-9][^"]*"/"\1$(VERSION)"/' Cargo.toml
	@for crate in . fuzz/libfuzzer fuzz/models; do \
		cargo update --workspace --quiet --manifest-path $$crate/Cargo.toml || exit 1; \
	done

$(VENV)/ready: requirements-dev.txt
	@echo "Installing Python packages into $(VENV) (torch is large: some minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(call quietly,$(VENV)/install.log,$(BIN)/python -m pip install --quiet --requirement requirements-dev.txt)
	@touch $@

# Criterion is built for this alone; instructions are counted where valgrind is installed.
bench-micro:
	cargo build --locked --release --quiet -p s3dcp-bench-micro
	$(PYTHON) bench/micro.py

# $(call beside,venv,requirements): an environment that sees all of .venv, and holds what only these requirements name.
define beside
	@$(BIN)/python -m venv $(1)
	@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		>"$$($(1)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth"
	@$(call quietly,$(1)/install.log,$(1)/bin/python -m pip install --quiet --requirement $(2))
	@touch $(1)/ready
endef

# The peers want other releases of boto3 than the tests.
$(BENCH_VENV)/ready: bench/requirements.txt $(VENV)/ready
	@echo "Installing the benchmark's peers into $(BENCH_VENV)"
	$(call beside,$(BENCH_VENV),$<)

$(DOCS_VENV)/ready: docs/site/requirements.txt $(VENV)/ready
	@echo "Installing what makes the site into $(DOCS_VENV)"
	$(call beside,$(DOCS_VENV),$<)

$(FRAMEWORKS_VENV)/ready: tests/frameworks/requirements.txt $(VENV)/ready
	@echo "Installing the frameworks into $(FRAMEWORKS_VENV)"
	$(call beside,$(FRAMEWORKS_VENV),$<)

$(RELEASE_VENV)/ready: requirements-release.txt $(VENV)/ready
	@echo "Installing what releases are made with into $(RELEASE_VENV)"
	$(call beside,$(RELEASE_VENV),$<)

# Stripped and installed in place; Python sources are used where they are.
$(NATIVE): $(VENV)/ready $(RUST_SOURCES)
	@echo "Building the native module (a first build takes some minutes)"
	@$(call quietly,$(VENV)/build.log,VIRTUAL_ENV=$(CURDIR)/$(VENV) PIP_NO_DEPS=1 \
		$(BIN)/maturin develop --locked --release --quiet)
	@touch $@

clean:
	rm -rf target build dist $(VENV) $(BENCH_VENV) $(FRAMEWORKS_VENV) $(DOCS_VENV) $(RELEASE_VENV) .cache/torch-* $(NATIVE)
