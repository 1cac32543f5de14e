"""The main job: training dies in the middle of a save and goes on from the last complete checkpoint.

Starts the embedded S3 server on loopback, trains with 4 ranks until one is killed halfway through a save,
starts again with 2 ranks, and checks what must hold. Exits with 0 if all of it does, else with 1. `train.py`
is the training job itself.
"""

from __future__ import annotations

import argparse
import json
import os
import posixpath
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from s3dcp import S3FileSystem, S3StorageReader
from s3dcp.testing import server

BUCKET = "checkpoints"
PATH = "demo"
URI = f"s3://{BUCKET}/{PATH}"
MIB, GIB = 2**20, 2**30
FIRST_RANKS, SECOND_RANKS = 4, 2
# The same arithmetic in another order: the sums of 2 ranks differ from those of 4 in the last bits, and these
# differences grow with every step.
FIRST_STEP_TOLERANCE, LATER_STEP_TOLERANCE = 1e-5, 1e-2
JOB_SECONDS = 240


@dataclass(frozen=True)
class Setting:
    """How much is trained; the third save is the one that a rank does not survive."""

    width: int
    layers: int
    save_every: int

    @property
    def crash_step(self) -> int:
        return 3 * self.save_every

    @property
    def last_step(self) -> int:
        return 4 * self.save_every


FULL = Setting(width=256, layers=4, save_every=8)
QUICK = Setting(width=64, layers=1, save_every=3)


# -- what the reader sees

COLOUR = sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def say(text: str = "", style: str = "") -> None:
    """A line, in an ANSI style on a terminal."""
    print(f"\x1b[{style}m{text}\x1b[0m" if style and COLOUR else text, flush=True)


def heading(number: int, text: str) -> None:
    say()
    say(f"{number}  {text}", style="1")


def tree(notes: dict[str, str]) -> None:
    """Draw paths below the checkpoint as a tree; a folder with one entry shares its line."""
    root: dict[str, Any] = {}
    for path in sorted(notes):
        folder = root
        *folders, name = path.split("/")
        for part in folders:
            folder = folder.setdefault(f"{part}/", {})
        folder[name] = notes[path]
    lines: list[tuple[str, str]] = []

    def walk(folder: dict[str, Any], indent: str) -> None:
        for number, (name, entry) in enumerate(folder.items()):
            last = number == len(folder) - 1
            while isinstance(entry, dict) and len(entry) == 1:
                inner, entry = next(iter(entry.items()))
                name += inner
            drawn = f"{indent}{'└─' if last else '├─'} {name}"
            if isinstance(entry, dict):
                lines.append((drawn, ""))
                walk(entry, indent + ("   " if last else "│  "))
            else:
                lines.append((drawn, entry))

    walk(root, "   ")
    width = max((len(text) for text, _ in lines), default=0)
    say(f"   {URI}")
    for text, note in lines:
        say(f"{text:{width}}  {note}".rstrip())


# -- what is in the bucket


class Bucket:
    """The checkpoint path as S3 and its indexes show it now.

    Attributes:
        sizes: bytes of each object, by its name below the path.
        newest_step: the step of the newest complete checkpoint, or None.
    """

    def __init__(self) -> None:
        client = S3FileSystem(None).client
        self.sizes = {info.key.removeprefix(f"{PATH}/"): info.size for info in client.list_objects(BUCKET, f"{PATH}/")}
        steps = {_epoch(name) for name in self.named_by(".metadata")} if ".metadata" in self.sizes else set()
        self.newest_step = steps.pop() if len(steps) == 1 else None

    def named_by(self, index: str) -> set[str]:
        """The shard files that an index names."""
        folder = posixpath.dirname(index)
        metadata = S3StorageReader(None, posixpath.join(URI, folder)).read_metadata()
        return {
            posixpath.normpath(posixpath.join(folder, info.relative_path)) for info in metadata.storage_data.values()
        }

    def has_index(self, step: int) -> bool:
        return f"epoch_{step}/.metadata" in self.sizes

    def shard_bytes(self, step: int) -> tuple[int, int]:
        """Number and bytes of the shard files that the index of `step` names."""
        names = self.named_by(f"epoch_{step}/.metadata")
        return len(names), sum(self.sizes[name] for name in names)

    def overview(self) -> dict[str, str]:
        """Every index and, by folder, what lies there, for `tree`."""
        indexes = [name for name in self.sizes if name.endswith(".metadata")]
        named = set().union(*(self.named_by(index) for index in indexes)) if indexes else set()
        notes = {}
        for index in indexes:
            steps = {_epoch(name) for name in self.named_by(index)}
            notes[index] = f"index of step {', '.join(map(str, steps))}"
            if index == ".metadata":
                notes[index] += ", the newest complete checkpoint"
        folders: dict[str, list[str]] = defaultdict(list)
        for name in self.sizes:
            if name not in notes:
                folders[posixpath.dirname(name)].append(name)
        for folder, names in folders.items():
            size = sum(self.sizes[name] for name in names) / MIB
            whose = "" if named.issuperset(names) else "   no index names them"
            files = f"{len(names)} shard file{'s' * (len(names) > 1)}"
            notes[f"{folder}/*.distcp"] = f"{files:13} {size:6.1f} MiB{whose}"
        return notes

    def checkpoint(self, step: int) -> dict[str, str]:
        """The objects of one checkpoint, for `tree`."""
        index = f"epoch_{step}/.metadata"
        return {name: f"{self.sizes[name] / MIB:6.2f} MiB" for name in (*self.named_by(index), index)}


def _epoch(shard_file: str) -> int:
    folder = next(part for part in shard_file.split("/") if part.startswith("epoch_"))
    return int(folder.removeprefix("epoch_"))


# -- the training job

Process = subprocess.Popen[bytes]


@dataclass
class Run:
    """What one torchrun told; no exit status when it did not end in time."""

    exit_status: int | None
    losses: dict[int, float]
    saves: list[dict[str, Any]]
    killed: dict[str, Any] | None
    resumed: dict[str, Any] | None


class Trainer:
    """Starts training jobs and gathers what they tell; `log` holds what they write to standard error."""

    def __init__(self, setting: Setting, folder: Path) -> None:
        self._setting = setting
        self._folder = folder
        self.log = folder / "log.txt"

    def run(self, ranks: int, *arguments: str) -> Run:
        events = self._folder / f"events-{ranks}-ranks.jsonl"
        events.touch()
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"),
            *("--nproc-per-node", str(ranks), str(Path(__file__).with_name("train.py"))),
            *("--path", URI, "--events", str(events), "--steps", str(self._setting.last_step)),
            *("--width", str(self._setting.width), "--layers", str(self._setting.layers)),
            *("--save-every", str(self._setting.save_every)),
            *arguments,
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        with self.log.open("ab") as log, _job(command, environment, log) as job:
            try:
                exit_status = job.wait(JOB_SECONDS)
            except subprocess.TimeoutExpired:
                exit_status = None
        told = [json.loads(line) for line in events.read_text().splitlines()]

        def of_kind(kind: str) -> list[dict[str, Any]]:
            return [event for event in told if event["event"] == kind]

        return Run(
            exit_status=exit_status,
            losses={event["step"]: event["loss"] for event in of_kind("step")},
            saves=of_kind("save"),
            killed=next(iter(of_kind("killed")), None),
            resumed=next(iter(of_kind("resume")), None),
        )


@contextmanager
def _job(command: list[str], environment: dict[str, str], log: IO[bytes]) -> Iterator[Process]:
    """A process that is gone on leaving; torchrun ends its workers when it is told to end."""
    process = subprocess.Popen(command, env=environment, stderr=log)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


# -- what must hold


class Checks:
    """Facts that the demo claims, each printed with whether it holds."""

    def __init__(self) -> None:
        self.failed = 0

    def holds(self, fact: bool, claim: str) -> None:
        self.failed += not fact
        if fact:
            say(f"   ✓ {claim}", style="32")
        else:
            say(f"   ✗ does not hold: {claim}", style="31")


def check(setting: Setting, first: Run, second: Run, after_crash: Bucket, at_end: Bucket) -> int:
    """Print what must hold; the number of claims that do not."""
    checks = Checks()
    crash_step, complete_step = setting.crash_step, setting.crash_step - setting.save_every
    killed, resumed = first.killed, second.resumed
    checks.holds(
        first.exit_status not in (0, None) and killed is not None and 0 < killed["bytes_sent"] < killed["bytes_total"],
        f"the first job died in the middle of the save of step {crash_step}",
    )
    checks.holds(
        not after_crash.has_index(crash_step) and after_crash.newest_step == complete_step,
        f"the broken save is invisible: the newest complete checkpoint was step {complete_step}",
    )
    checks.holds(
        resumed is not None and (resumed["step"], resumed["ranks"]) == (complete_step, SECOND_RANKS),
        f"{SECOND_RANKS} ranks resumed from step {complete_step}, saved by {FIRST_RANKS}",
    )
    saved = {save["step"]: save["sha256"] for save in first.saves}.get(complete_step)
    checks.holds(
        resumed is not None and saved is not None and resumed["sha256"] == saved,
        f"parameters and optimizer state are bit-equal: SHA-256 {(saved or '?')[:16]}… saved and resumed",
    )
    repeated = range(complete_step + 1, crash_step + 1)
    differences = [
        abs(first.losses[step] - second.losses[step]) / first.losses[step]
        for step in repeated
        if step in first.losses and step in second.losses
    ]
    checks.holds(
        len(differences) == len(repeated)
        and differences[0] <= FIRST_STEP_TOLERANCE
        and max(differences) <= LATER_STEP_TOLERANCE,
        f"the loss went on where it was: steps {repeated[0]} to {repeated[-1]} differ by at most "
        f"{max(differences, default=float('nan')):.0e} of it",
    )
    checks.holds(
        second.exit_status == 0 and at_end.newest_step == setting.last_step,
        f"the job finished, and the newest complete checkpoint is step {setting.last_step}",
    )
    return checks.failed


def show_saves(runs: Iterable[Run], bucket: Bucket) -> None:
    say("   step  ranks  shard files      MiB  seconds  GiB/s")
    for save in (save for run in runs for save in run.saves):
        files, size = bucket.shard_bytes(save["step"])
        say(
            f"   {save['step']:4}  {save['ranks']:5}  {files:11}  {size / MIB:7.1f}  {save['seconds']:7.3f}"
            f"  {size / GIB / save['seconds']:5.2f}"
        )
    say("   Whole dcp.save() calls, planning and commit included; server and ranks share this machine.")


def show_log(log: Path) -> None:
    say(f"\nThe end of what the jobs wrote to standard error:\n{log.read_text(errors='replace')[-6000:]}")


def demo(setting: Setting, folder: Path) -> int:
    trainer = Trainer(setting, folder)
    crash_step = setting.crash_step
    heading(1, f"{FIRST_RANKS} ranks train; one is killed in the middle of the save of step {crash_step}")
    first = trainer.run(FIRST_RANKS, "--die-at", str(crash_step))
    if first.killed is None:
        say("   ✗ the job ended before that save", style="31")
        show_log(trainer.log)
        return 1
    rank, sent, total = (first.killed[fact] for fact in ("rank", "bytes_sent", "bytes_total"))
    say(f"   rank {rank} was killed (SIGKILL) with {sent / MIB:.1f} of its {total / MIB:.1f} MiB sent;", "31")
    say(f"   torchrun ended with exit status {first.exit_status}", "31")

    heading(2, "What is in the bucket now")
    after_crash = Bucket()
    tree(after_crash.overview())

    heading(3, f"{SECOND_RANKS} ranks resume from the newest complete checkpoint")
    losses = {step: loss for step, loss in first.losses.items() if step <= crash_step}
    second = trainer.run(SECOND_RANKS, "--resume", "--earlier-losses", json.dumps(losses))

    heading(4, f"The checkpoint of step {setting.last_step}, and every complete save")
    at_end = Bucket()
    if at_end.has_index(setting.last_step):
        tree(at_end.checkpoint(setting.last_step))
        show_saves((first, second), at_end)

    heading(5, "What must hold")
    failed = check(setting, first, second, after_crash, at_end)
    if failed:
        show_log(trainer.log)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a very small model and few steps")
    setting = QUICK if parser.parse_args().quick else FULL
    began = time.perf_counter()
    say("s3dcp demo: a training job dies in the middle of a save and goes on from the last complete one", "1")
    with tempfile.TemporaryDirectory(prefix="s3dcp-demo-") as folder, server(buckets=(BUCKET,)) as endpoint:
        say(f"   endpoint     {endpoint.endpoint_url}, embedded, in memory")
        say(f"   checkpoints  {URI}")
        say("   job          byte-level GPT, FSDP2 on CPU with gloo; HexPrefixStrategy(epoch_num=step)")
        failed = demo(setting, Path(folder))
    say()
    if failed:
        say(f"{failed} of the claims above failed.", style="1;31")
    else:
        say(f"All of it holds. {time.perf_counter() - began:.0f} s.", style="1;32")
    return 1 if failed else 0


if __name__ == "__main__":
    # So that the training job is ended then, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        say("\nStopped.")
        sys.exit(130)
