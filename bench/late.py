"""What late answers cost: saves and loads while a few of the service's answers come seconds late.

One process saves and loads the same state again and again, against the embedded server in it: `--rounds` times as it
is, as often while one request in 200 is answered 3 s late, though it takes effect at once, and as often while one in
200 takes effect 3 s late. A quarter as many calls come before, so that memory is warm. With `--latency-ms` every
other answer takes so long to begin, as S3's do. Times are of whole calls, in seconds; `sent again` is the share of
requests that were.

    python bench/late.py --mib 128 --rounds 200 --latency-ms 20
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

BUCKET = "bench"
MIB = 1 << 20
PART_MIB = 5
TENSORS = 16
HOW: dict[str, list[str]] = {
    "as it is": [],
    "answers are late": ["late:3000ms chance=0.005"],
    "effects are late": ["delay:3000ms chance=0.005"],
}


def times(call: Callable[[], Any], rounds: int) -> list[float]:
    """Seconds that each call took."""
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        took.append(time.perf_counter() - began)
    return took


def measured(mib: int, rounds: int, latency_ms: int) -> dict[tuple[str, str], dict[str, float]]:
    """The median and the 99th percentile of saves and loads in seconds, and what was sent again."""
    import torch
    import torch.distributed.checkpoint as dcp

    from s3dcp import S3ClientConfig, S3StorageReader, S3StorageWriter, testing

    state = {f"t{number}": torch.rand(mib * MIB // TENSORS // 4) for number in range(TENSORS)}
    loaded = {name: torch.empty_like(value) for name, value in state.items()}
    result: dict[tuple[str, str], dict[str, float]] = {}
    distance = [f"delay:{latency_ms}ms"] if latency_ms else []
    with testing.server(buckets=[BUCKET], faults=distance) as server:
        uri = f"s3://{BUCKET}/late"
        config = S3ClientConfig(part_size=PART_MIB * MIB)
        writer = S3StorageWriter("us-east-1", uri, s3client_config=config, overwrite=True)
        reader = S3StorageReader("us-east-1", uri, s3client_config=config)
        calls = {
            "save": lambda: dcp.save(state, storage_writer=writer, no_dist=True),
            "load": lambda: dcp.load(loaded, storage_reader=reader, no_dist=True),
        }
        for call in calls.values():
            times(call, rounds // 4)
        for how, faults in HOW.items():
            server.clear_faults()
            # the first that is due is the one that happens
            for rule in [*faults, *distance]:
                server.inject(rule)
            for name, call in calls.items():
                client = (writer if name == "save" else reader).fs.client
                before = client.stats()
                took = times(call, rounds)
                after = client.stats()
                requests = after.requests - before.requests
                result[name, how] = {
                    "p50": statistics.median(took),
                    "p99": statistics.quantiles(took, n=100, method="inclusive")[98],
                    "longest": max(took),
                    "again": (after.hedged - before.hedged) / requests,
                }
        assert all(torch.equal(loaded[name], value) for name, value in state.items())
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--latency-ms", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    result = measured(options.mib, options.rounds, options.latency_ms)
    print("| operation | how | median | 99 % | longest | sent again |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for (name, how), took in result.items():
        figures = " | ".join(f"{took[what]:.3f}" for what in ("p50", "p99", "longest"))
        print(f"| {name} | {how} | {figures} | {took['again']:.1%} |")
    for name, how in result:
        if HOW[how]:
            ratio = result[name, how]["p99"] / result[name, "as it is"]["p99"]
            print(f"{name}, {how}: the 99th percentile is {ratio:.2f} times as long")


if __name__ == "__main__":
    main()
