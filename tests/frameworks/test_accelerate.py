"""accelerate's own Accelerator with its states on S3, as a user writes it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from support import pages
from support.scripts import that_ends
from support.store import Store

pytest.importorskip("accelerate", reason="accelerate is installed by `make test-frameworks`")

EXAMPLE = Path(__file__).parents[2] / "examples/frameworks/accelerate_state.py"


def train(cwd: Path, path: str, epochs: int, ranks: int = 1, kill: str = "") -> list[str]:
    """What a run of the example printed; `kill` is code that ends it."""
    (cwd / "work").mkdir(exist_ok=True)
    (cwd / "staging").mkdir(exist_ok=True)
    script = cwd / "train.py"
    script.write_text(that_ends(kill + EXAMPLE.read_text()))
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *launch, str(script), path, str(epochs)],
        cwd=cwd / "work",
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(cwd / "staging")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == (9 if kill else 0), done.stderr
    assert not list((cwd / "work").iterdir()), "a folder was made here"
    return done.stdout.splitlines()


KILL = """
import os
from s3dcp._staging import RemoteFolder
upload = RemoteFolder.upload
def upload_until(self, local, names):
    if self.uri.endswith("checkpoint_2") and self.marker in names:
        os._exit(9)
    upload(self, local, names)
RemoteFolder.upload = upload_until
"""


@pytest.mark.slow
def test_a_loop_that_was_killed_in_a_save_goes_on_to_the_same_weights(store: Store, tmp_path: Path) -> None:
    whole = train(tmp_path, f"s3://{store.bucket}/whole", 4)
    train(tmp_path, f"s3://{store.bucket}/run", 4, kill=KILL)
    assert "run/checkpoints/checkpoint_2/model.safetensors" in store.all_keys()
    resumed = train(tmp_path, f"s3://{store.bucket}/run", 4)
    assert resumed == ["epochs 2 to 4", whole[-1]]
    kept = {key.split("/")[2] for key in store.all_keys("run/checkpoints/")}
    assert kept == {"checkpoint_2", "checkpoint_3"}
    assert "run/model/model.safetensors" in store.all_keys()
    assert not list((tmp_path / "staging").glob("s3dcp-*")), "files stayed"


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_each_have_their_random_numbers_back(store: Store, tmp_path: Path) -> None:
    whole = train(tmp_path, f"s3://{store.bucket}/whole", 3, ranks=2)
    train(tmp_path, f"s3://{store.bucket}/run", 2, ranks=2)
    names = {f"run/checkpoints/checkpoint_1/random_states_{rank}.pkl" for rank in (0, 1)}
    assert names <= set(store.all_keys())
    resumed = train(tmp_path, f"s3://{store.bucket}/run", 3, ranks=2)
    assert resumed == ["epochs 2 to 3", whole[-1]]
    assert not list((tmp_path / "staging").glob("s3dcp-*")), "files stayed"


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    from accelerate import Accelerator

    import s3dcp.accelerate  # noqa: F401

    monkeypatch.chdir(tmp_path)
    return Accelerator(cpu=True)


def test_a_state_goes_where_it_is_told_and_comes_back(store: Store, tmp_path: Path, accelerator: Any) -> None:
    model = accelerator.prepare(torch.nn.Linear(3, 2))
    weight = model.weight.detach().clone()
    assert accelerator.save_state(store.uri) == store.uri
    accelerator.save({"step": 3}, f"{store.uri}/step.pt")
    with torch.no_grad():
        model.weight.zero_()
    accelerator.load_state(store.uri)
    assert torch.equal(model.weight, weight)
    assert {"model.safetensors", "random_states_0.pkl", "step.pt"} <= set(store.names())
    accelerator.save_state(str(tmp_path / "local"))
    accelerator.load_state(str(tmp_path / "local"))
    assert [path.name for path in tmp_path.iterdir()] == ["local"]


def test_what_is_not_complete_is_refused(store: Store, accelerator: Any) -> None:
    from s3dcp import ConfigError, NotFound

    accelerator.prepare(torch.nn.Linear(3, 2))
    accelerator.save_state(store.uri)
    store.delete("random_states_0.pkl")
    with pytest.raises(NotFound, match=f"no complete checkpoint at {store.uri}"):
        accelerator.load_state(store.uri)
    with pytest.raises(ConfigError, match="output_dir"):
        accelerator.save_state(f"s3:/{store.bucket}/run")


def test_the_snippet_of_the_page_saves_and_loads(store: Store, accelerator: Any) -> None:
    snippet = pages.block("docs/frameworks.md", "import s3dcp.accelerate").replace(
        "s3://checkpoints/", f"s3://{store.bucket}/"
    )
    accelerator.prepare(torch.nn.Linear(3, 2))
    exec(snippet.replace("Accelerator()", "accelerator"), {"accelerator": accelerator})
    assert "run/state-7/model.safetensors" in store.all_keys()
