"""The measured process: one save or load by one candidate, printed as one JSON line.

    python bench/worker.py '{"candidate": "s3dcp", "operation": "save", "gib": 0.25, "uri": "s3://bench/x"}'

The endpoint and the credentials come from the environment. With WORLD_SIZE in the environment it is one rank of a gloo
group; `pretend_ranks` makes it one rank of a group whose others do not exist, for loads that need no other rank.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

PR_SET_PDEATHSIG = 1  # linux/prctl.h
# Asynchronous saves beside a training loop; the first does not count.
SAVES = 4
# Those after them, beside a thread that wants the interpreter lock all the time.
LOCK_SAVES = 3


def measured(action: Callable[[], Any]) -> dict[str, float]:
    """Wall, CPU and extra peak memory of calling `action` in this process."""
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")  # the high-water mark starts anew
    resident, before, began = _memory("VmRSS"), resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    action()
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": wall, "cpu": cpu, "peak_mib": (_memory("VmHWM") - resident) / 2**20}


def _memory(field: str) -> int:
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(field))
    return int(line.split()[1]) * 1024


def importing(spec: dict[str, Any]) -> dict[str, Any]:
    """What a second import costs once the first is done."""
    __import__(spec["after"])
    return measured(lambda: __import__(spec["module"]))


def raw(spec: dict[str, Any]) -> dict[str, Any]:
    from floor import prepared

    action, nbytes = prepared(spec["operation"], spec)
    return {**measured(action), "bytes": nbytes}


def checkpoint(spec: dict[str, Any]) -> dict[str, Any]:
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner

    import states
    from candidates import FACTORIES

    group = "WORLD_SIZE" in os.environ
    if group:
        dist.init_process_group("gloo")
    elif spec.get("pretend_ranks"):
        from torch.testing._internal.distributed.fake_pg import FakeStore

        dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=spec["pretend_ranks"])

    operation = spec["operation"]
    state, nbytes = states.build(spec, fill=operation == "save")
    if spec.get("fast_planner"):
        from s3dcp.planner import FastLoadPlanner, FastSavePlanner

        save_planner, load_planner = FastSavePlanner, FastLoadPlanner
    else:
        save_planner, load_planner = DefaultSavePlanner, DefaultLoadPlanner
    if spec["candidate"] == "nothing" and operation == "load":
        # Only its own process knows what a writer that writes nothing has saved.
        writer = FACTORIES["nothing"]("save", spec)()
        dcp.save(state, storage_writer=writer, planner=save_planner(), no_dist=True)
    make = FACTORIES[spec["candidate"]](operation, spec)

    def save() -> None:
        dcp.save(state, storage_writer=make(), planner=save_planner(), no_dist=not group)

    def load() -> None:
        dcp.load(state, storage_reader=make(), planner=load_planner(), no_dist=not group)

    if group:
        dist.barrier()
    result = measured(save if operation == "save" else load)
    if operation == "load" and spec["candidate"] != "nothing":
        broken = list(states.wrong(spec, state))
        if broken:
            raise SystemExit(f"{spec['candidate']}: loaded wrong: {', '.join(broken[:5])} ({len(broken)} in all)")
    if group:
        dist.barrier()
        dist.destroy_process_group()
    return {**result, "bytes": nbytes}


def training(spec: dict[str, Any]) -> dict[str, Any]:
    """A loop of small training steps on one CPU, and asynchronous saves of a state beside it, one after another.

    `stall` is how long each call kept the loop, `lost` what the loop lost in all: the time until the save had ended,
    less that of as many steps without a save. `slowdown` is the share that it lost after the call, in percent. `locked`
    is how long others had the interpreter lock during a save, its call and all after it, without the loop.
    """
    import torch

    import states

    torch.set_num_threads(1)
    state, nbytes = states.build(spec, fill=True)
    step = _training_step()
    begin = _saves_of_a_manager(spec, state) if spec.get("manager") else _saves(spec, state)
    saves: list[dict[str, float]] = []

    def save(number: int) -> None:
        typical = _seconds_per_step(step)
        began = time.perf_counter()
        ended = begin(number)
        called = time.perf_counter()
        steps = 0
        while not ended.done():
            step()
            steps += 1
        end = time.perf_counter()
        ended.result()
        typical = (typical + _seconds_per_step(step)) / 2
        worked = steps * typical
        saves.append(
            {
                "stall": called - began,
                "seconds": end - began,
                "lost": end - began - worked,
                "slowdown": 100 * (1 - worked / (end - called)),
            }
        )

    result = measured(lambda: [save(number) for number in range(SAVES)])
    first, *others = saves
    typical = {name: statistics.median(save[name] for save in others) for name in first}
    numbers = range(SAVES, SAVES + LOCK_SAVES)
    typical["locked"] = statistics.median(_locked(lambda number=number: begin(number).result()) for number in numbers)
    return {**result, **typical, "first_stall": first["stall"], "bytes": nbytes}


def _locked(action: Callable[[], Any]) -> float:
    """Seconds of `action` in which a thread that always wants the interpreter lock did not get it.

    It is then neither on a processor nor waiting for one, however busy the machine is.
    """
    ready, ended, waited = threading.Event(), False, 0.0

    def want() -> None:
        nonlocal waited
        began, spent = time.perf_counter(), _on_processors()
        ready.set()
        while not ended:
            pass
        waited = time.perf_counter() - began - (_on_processors() - spent)

    thread = threading.Thread(target=want)
    thread.start()
    ready.wait()
    try:
        action()
    finally:
        ended = True
        thread.join()
    return waited


def _on_processors() -> float:
    """Seconds in which this thread was on a processor, or waited for one."""
    with open("/proc/thread-self/schedstat") as schedstat:
        return time.thread_time() + int(schedstat.read().split()[1]) / 1e9


def _saves(spec: dict[str, Any], state: dict[str, Any]) -> Callable[[int], Any]:
    """What begins the save of a number, by a writer that has saved before."""
    import torch.distributed.checkpoint as dcp

    from candidates import FACTORIES

    writer = FACTORIES[spec["candidate"]]("save", spec)()

    def begin(number: int) -> Any:
        where: dict[str, Any] = (
            {} if spec["candidate"] == "FileSystemWriter" else {"checkpoint_id": f"{spec['uri']}/{number}"}
        )
        saving = dcp.async_save(state, storage_writer=writer, no_dist=True, **where)
        return getattr(saving, "upload_completion", saving)

    return begin


def _saves_of_a_manager(spec: dict[str, Any], state: dict[str, Any]) -> Callable[[int], Any]:
    from s3dcp import CheckpointManager

    manager = CheckpointManager(spec["uri"], async_=True)
    return lambda number: manager.save(number, state)


def _training_step() -> Callable[[], None]:
    """Forward, backward and update of a small perceptron: a few milliseconds, much of it in Python."""
    import torch

    model = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(6)))
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    batch = torch.randn(64, 256)

    def step() -> None:
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()

    return step


def _seconds_per_step(step: Callable[[], None], seconds: float = 1.5) -> float:
    began, steps = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < seconds:
        step()
        steps += 1
    return passed / steps


def main() -> None:
    # A worker whose bench is killed would keep its state in memory.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    warnings.filterwarnings("ignore")
    spec = json.loads(sys.argv[1])
    kinds = {"floor": raw, "import": importing}
    measure = training if spec.get("operation") == "train" else kinds.get(spec["candidate"], checkpoint)
    print(json.dumps(measure(spec)), flush=True)
    os._exit(0)  # torch may abort where the interpreter ends while one of its threads frees a tensor


if __name__ == "__main__":
    main()
