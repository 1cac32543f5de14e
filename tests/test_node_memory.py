"""Memory through which ranks of a node pass on what they have fetched, and ranks that have none."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

from s3dcp._load.node_memory import NodeMemory
from support import share_jobs
from support.store import Store

SLOT = 1 << 20


def pattern(number: int, nbytes: int = SLOT) -> torch.Tensor:
    return torch.arange(nbytes, dtype=torch.int64).mul(number + 3).to(torch.uint8)


def _copy(address: str, numbers: list[int], answers: Any) -> None:
    memory = NodeMemory.find(address, SLOT)
    assert memory is not None
    for slot, number in enumerate(numbers):
        into = torch.zeros(SLOT, dtype=torch.uint8)
        memory.read(slot, into)
        answers.put(torch.equal(into, pattern(number)))
    short = torch.zeros(7, dtype=torch.uint8)
    memory.read(1, short)
    answers.put(torch.equal(short, pattern(numbers[1], 7)))


def test_another_process_copies_what_is_laid_out() -> None:
    memory, address = NodeMemory.make(2, SLOT)
    memory.write(0, pattern(1))
    memory.write(1, pattern(2))
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    other = context.Process(target=_copy, args=(address, [1, 2], answers))
    other.start()
    assert [answers.get(timeout=60) for _ in range(3)] == [True, True, True]
    other.join()


def test_memory_of_others_is_not_taken_for_what_was_meant() -> None:
    memory, address = NodeMemory.make(1, SLOT)
    node, process, descriptor, key = address.split(":")
    assert NodeMemory.find(address, SLOT) is not None
    with open(os.devnull) as another:
        for other in (
            "-",
            "",
            f"another-node:{process}:{descriptor}:{key}",
            f"{node}:{process}:{descriptor}:{key[::-1]}",
            f"{node}:{process}:{another.fileno()}:{key}",
            f"{node}:{process}:1000000:{key}",
            f"{node}:4194305:{descriptor}:{key}",
        ):
            assert NodeMemory.find(other, SLOT) is None, other
    del memory


def test_nothing_is_left_open() -> None:
    before = os.listdir("/proc/self/fd")
    memory, address = NodeMemory.make(1, SLOT)
    found = NodeMemory.find(address, SLOT)
    assert NodeMemory.find(address[:-2] + "zz", SLOT) is None
    assert len(os.listdir("/proc/self/fd")) == len(before) + 2
    del memory, found
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("without", [[0, 1, 2, 3], [1], [0, 2]])
def test_ranks_without_such_memory_pass_bytes_on_by_sockets(
    store: Store, groups: Callable[[int], Any], without: list[int]
) -> None:
    share_jobs.save(store.uri)
    size, four = share_jobs.nbytes(share_jobs.replicated()), groups(4)
    by_memory = [told["readers"] for told in four.run(share_jobs.how_passed_on, store.uri, without)]
    assert by_memory == [0 if rank in without else 3 for rank in range(4)]
    assert sum(four.run(share_jobs.check, store.uri, share=True)) <= 1.02 * size + 4 * 64 * 1024
