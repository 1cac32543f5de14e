"""Every writer against every reader: ours, the reference package's and torch's own, bit by bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load as load_safetensors
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter

from s3dcp._compat import SerializationFormat
from support import jobs, strategies
from support.states import assert_same, blank, training_state
from support.strategies import Spec

every_strategy = pytest.mark.parametrize("spec", strategies.ALL, ids=strategies.name_of)
every_epoch_strategy = pytest.mark.parametrize("spec", strategies.WITH_EPOCH, ids=strategies.name_of)


@every_strategy
def test_the_reference_reader_reads_what_we_wrote(store, ranks, spec: Spec) -> None:
    ranks.run(jobs.save_training_state, store.uri, spec)
    ranks.run(jobs.check_with_reference, store.uri)


@every_strategy
def test_torch_reads_a_downloaded_copy_of_what_we_wrote(store, ranks, spec: Spec, tmp_path: Path) -> None:
    ranks.run(jobs.save_training_state, store.uri, spec)
    copy = store.download(tmp_path / "copy")
    ranks.run(jobs.check_with_torch, copy)
    if "epoch_num" in spec[1]:
        ranks.run(jobs.check_with_torch, copy / f"epoch_{spec[1]['epoch_num']}")


@every_epoch_strategy
def test_torch_reads_every_epoch_of_a_downloaded_copy(store, ranks, spec: Spec, tmp_path: Path) -> None:
    name, arguments = spec
    for epoch in (1, 2, 30):
        ranks.run(jobs.save_training_state, store.uri, (name, {**arguments, "epoch_num": epoch}), seed=epoch)
    copy = store.download(tmp_path / "copy")
    ranks.run(jobs.check_with_torch, copy, seed=30)
    for epoch in (1, 2, 30):
        ranks.run(jobs.check_with_torch, copy / f"epoch_{epoch}", seed=epoch)


@every_strategy
def test_we_read_what_we_wrote(store, ranks, spec: Spec) -> None:
    ranks.run(jobs.save_training_state, store.uri, spec, thread_count=2)
    ranks.run(jobs.check_training_state, store.uri)
    if "epoch_num" in spec[1]:
        ranks.run(jobs.check_training_state, f"{store.uri}/epoch_{spec[1]['epoch_num']}")


@every_strategy
def test_we_read_what_the_reference_wrote(store, ranks, spec: Spec) -> None:
    ranks.run(jobs.save_with_reference, store.uri, spec)
    ranks.run(jobs.check_training_state, store.uri)


@pytest.mark.parametrize("arguments", [{}, {"thread_count": 3}, {"single_file_per_rank": False}], ids=str)
def test_we_read_an_uploaded_copy_of_what_torch_wrote(store, ranks, tmp_path: Path, arguments) -> None:
    ranks.run(jobs.save_with_torch, tmp_path, **arguments)
    store.upload(tmp_path)
    ranks.run(jobs.check_training_state, store.uri)


def test_we_overwrite_what_the_reference_wrote_and_leave_nothing_of_it(store, ranks) -> None:
    spec = ("Hex", {})
    ranks.run(jobs.save_with_reference, store.uri, spec)
    before = store.shards()
    ranks.run(jobs.save_training_state, store.uri, spec, seed=1)
    assert before
    assert not set(before) & set(store.shards())
    ranks.run(jobs.check_training_state, store.uri, seed=1)


@pytest.mark.parametrize("kind", ["layouts", "dtypes"])
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")
class TestEveryKindOfTensor:
    """Views of every layout and values of every dtype, between every writer and every reader."""

    def test_from_us_to_the_reference_and_to_torch(self, store, kind: str, tmp_path: Path) -> None:
        state = jobs.kinds(kind)
        jobs.save(state, store.uri, thread_count=2)
        for reader in (jobs.reference_reader(store.uri), FileSystemReader(store.download(tmp_path))):
            loaded = blank(state)
            dcp.load(loaded, storage_reader=reader)
            assert_same(loaded, state)

    def test_from_torch_to_us(self, store, kind: str, tmp_path: Path) -> None:
        state = jobs.kinds(kind)
        dcp.save(state, storage_writer=FileSystemWriter(tmp_path))
        store.upload(tmp_path)
        jobs.check(store.uri, state)

    def test_from_the_reference_to_us(self, store, kind: str) -> None:
        state = jobs.kinds(kind)
        dcp.save(state, storage_writer=jobs.reference_writer(store.uri, ("Hex", {})))
        jobs.check(store.uri, state)


SAFETENSORS = {"serialization_format": SerializationFormat.SAFETENSORS}


@pytest.mark.parametrize("arguments", [{}, {"thread_count": 2}, {"single_file_per_rank": False}], ids=str)
def test_we_read_safetensors_that_we_wrote_with_objects_beside_them(store, ranks, arguments) -> None:
    ranks.run(jobs.save_training_state, store.uri, ("Hex", {}), **SAFETENSORS, **arguments)
    ranks.run(jobs.check_training_state, store.uri)


@pytest.mark.parametrize("arguments", [{}, {"thread_count": 2}], ids=str)
def test_we_read_safetensors_that_torch_wrote(store, ranks, tmp_path: Path, arguments) -> None:
    ranks.run(jobs.save_with_torch, tmp_path, objects=False, **SAFETENSORS, **arguments)
    store.upload(tmp_path)
    ranks.run(jobs.check_training_state, store.uri, objects=False)


def test_the_safetensors_library_reads_every_tensor_file_we_wrote(store) -> None:
    jobs.save_training_state(store.uri, thread_count=2, **SAFETENSORS)
    found: dict[str, torch.Tensor] = {}
    files = 0
    for name in store.shards():
        body = store.read(name)
        if body[:2] != b"PK":  # objects have files of their own, torch archives
            found |= load_safetensors(body)
            files += 1
    assert files == 2
    state = training_state()
    want = {f"model.{name}": tensor for name, tensor in state["model"].items()}
    want |= {name: tensor for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}
    assert_same(dict(sorted(found.items())), dict(sorted(want.items())))
