"""How one call is timed: several calls over rotating inputs in one CUDA graph, replayed and synchronised.

A call that is launched from Python costs more host time than a small kernel takes, so calls are captured: what is
timed is the device. Inputs rotate over sets that together pass the last-level cache, and outputs are held until
their set comes round again, so that nothing is read or written where the call before left it. A replay spans at
least TARGET_S, so that the synchronise at its end is less than a hundredth of it. Where capture fails the same loop
is launched call by call, and the row says so; on a CPU the host's clock around the loop is all there is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from bench.measure.clock import now
from bench.measure.statistics import order_interval
from bench.peers.found import one_line

CACHE_BYTES = 256 << 20  # more than twice the largest last-level cache of the GPUs in configs/gpus
TARGET_S = 2e-3  # a replay costs the host about 10 us more than the device
MOST_CALLS = 1024
LEAST_ROUNDS, MOST_ROUNDS = 5, 200
CUDA = torch.cuda.is_available()
MOST_SETS = 16 if CUDA else 2  # on a CPU the rotation is only exercised
_stream: list[Any] = []

Step = Callable[[], Any]


def stream() -> AbstractContextManager[Any]:
    """The one stream everything of a case runs on: autograd's backward follows the stream of its forward."""
    if not CUDA:
        return nullcontext()
    if not _stream:
        _stream.append(torch.cuda.Stream())
    return torch.cuda.stream(_stream[0])


def sets(traffic: float) -> int:
    """Input sets a case rotates over, from the bytes one call moves."""
    return min(MOST_SETS, max(1, math.ceil(CACHE_BYTES / max(traffic, 1.0))))


def calls_for(call_s: float, rotating: int) -> int:
    """Calls of one round: whole rotations, TARGET_S together."""
    wanted = min(MOST_CALLS, max(1, math.ceil(TARGET_S / max(call_s, 1e-7))))
    return rotating * max(1, math.ceil(wanted / rotating))


def rounds_for(round_s: float, seconds: float) -> int:
    """Rounds that fit the budget of a case."""
    return min(MOST_ROUNDS, max(LEAST_ROUNDS, int(seconds / max(round_s, 1e-7))))


@dataclass(frozen=True)
class Round:
    """What is timed: `calls` calls, synchronised at the end. `reason`: why no graph was used, or None."""

    run: Callable[[], None]
    calls: int
    timer: str
    reason: str | None = None


@dataclass(frozen=True)
class Times:
    """Seconds of one call: the median over rounds and its 95% interval."""

    median: float
    low: float
    high: float
    rounds: int


def prepared(steps: Sequence[Step]) -> Round:
    """The round of these steps, one per input set. Each has run at least once before: compiled and planned."""
    if not CUDA:
        spent = _seconds(_loop(steps, len(steps)))
        calls = calls_for(spent / len(steps), len(steps))
        return Round(_loop(steps, calls), calls, "host")
    try:
        trial = _captured(steps, len(steps))
        calls = calls_for(_seconds(trial) / len(steps), len(steps))
        return Round(_captured(steps, calls) if calls > len(steps) else trial, calls, "cuda_graph")
    except Exception as error:  # each library has its own for a call that may not be captured
        torch.cuda.synchronize()  # raises where the device is lost
        spent = _seconds(_loop(steps, len(steps)))
        calls = calls_for(spent / len(steps), len(steps))
        return Round(_loop(steps, calls), calls, "synchronised", f"no CUDA graph: {one_line(error)}")


def measured(benchmark: Any, round_: Round, seconds: float) -> Times:
    """Run the round under pytest-benchmark for about `seconds`."""
    rounds = rounds_for(min(_seconds(round_.run) for _ in range(3)), seconds)
    benchmark.pedantic(round_.run, rounds=rounds, iterations=1, warmup_rounds=1 + rounds // 10)
    times = [spent / round_.calls for spent in benchmark.stats.stats.data]
    low, high = order_interval(times)
    return Times(benchmark.stats.stats.median / round_.calls, low, high, rounds)


def _loop(steps: Sequence[Step], calls: int) -> Callable[[], None]:
    held: list[Any] = [None] * len(steps)

    def run() -> None:
        for call in range(calls):
            held[call % len(steps)] = steps[call % len(steps)]()
        if CUDA:
            torch.cuda.synchronize()

    return run


def _captured(steps: Sequence[Step], calls: int) -> Callable[[], None]:
    held: list[Any] = [None] * len(steps)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=_stream[0]):
        for call in range(calls):
            held[call % len(steps)] = steps[call % len(steps)]()

    def run() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return run


def _seconds(run: Callable[[], None]) -> float:
    run()
    begin = now()
    run()
    return now() - begin
