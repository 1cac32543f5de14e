"""torch's stream extensions, through which a save writes and a load reads."""

from __future__ import annotations

import io
from typing import IO, Any

import pytest
import torch

from support import jobs
from support.states import training_state, values

pytest.importorskip("torch.distributed.checkpoint._extension", reason="torch has stream extensions from 2.7 on")

from torch.distributed.checkpoint._extension import ExtensionRegistry, StreamTransformExtension, ZStandard


class Mirror(StreamTransformExtension):
    """A transform to test with: flips all bits."""

    @staticmethod
    def registry_name() -> str:
        return "stream.mirror"

    @staticmethod
    def from_descriptor(version: str) -> Mirror:
        return Mirror()

    def get_descriptor(self) -> str:
        return "stream.mirror/1"

    def transform_to(self, output: IO[bytes]) -> IO[bytes]:
        return _Flipped(output)  # type: ignore[return-value]

    def transform_from(self, input: IO[bytes]) -> IO[bytes]:
        return io.BytesIO(bytes(byte ^ 0xFF for byte in input.read()))


class _Flipped(io.RawIOBase):
    def __init__(self, output: IO[bytes]) -> None:
        self._output = output

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._output.write(bytes(byte ^ 0xFF for byte in memoryview(data).cast("B")))
        return len(data)

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._output.close()


EXTENSIONS = (
    [[Mirror()], [ZStandard()], [ZStandard(), Mirror()], [Mirror(), ZStandard()]]
    if ZStandard.is_available()
    else [[Mirror()]]
)


@pytest.mark.parametrize("extensions", EXTENSIONS, ids=lambda e: "+".join(type(one).__name__ for one in e))
def test_stream_extensions_transform_what_is_stored(store, extensions) -> None:
    state = training_state() | {"strided": values((20, 30), 4).t(), "slice": values((1000,), 5)[10:20]}
    jobs.save(state, store.uri, _extensions=extensions, thread_count=2)
    assert all(not store.read(name).startswith(b"PK") for name in store.shards())
    registry = ExtensionRegistry()
    registry.register(Mirror)
    jobs.check(store.uri, state, _extension_registry=registry)


def test_a_checkpoint_of_an_unknown_extension_is_refused_by_its_name(store, failure) -> None:
    jobs.save({"x": torch.ones(3)}, store.uri, _extensions=[Mirror()])
    error = failure(jobs.load, {"x": torch.zeros(3)}, store.uri)
    assert "stream.mirror" in str(error)
