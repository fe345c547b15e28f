"""The only file that reads a clock: run a step until it is steady, then until its median is known.

On CUDA a sample is the device time between two events; on a CPU it is host time around the step. The first
call (compilation, autotuning, first allocations) is timed apart. Warm-up is until steady: two windows of steps
in a row whose medians agree within 3%, not a count. Samples go on until the 95% interval of the
median is within 1% and the last third runs as fast as the middle third, or the time budget ends, and never for less
than a third of the budget: clocks and temperature need time to settle, and money uses the settled rate.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from bench.measure.statistics import WIDE, order_interval, settled

STEADY = 0.03
WINDOW = 3  # steps in a warm-up window
LEAST_SAMPLES = 5
MOST_SAMPLES = 5000
SAMPLE_S = 1e-3  # a sample spans at least this long on CUDA: shorter steps are timed in groups


def now() -> float:
    """Seconds on the host's monotonic clock. Whoever needs the time asks here."""
    return time.perf_counter()


class Timer(Protocol):
    """Times steps, and tells the time."""

    def now(self) -> float:
        """Seconds on a monotonic clock, all device work done."""

    def times(self, step: Callable[[], object], samples: int, group: int) -> list[float]:
        """`samples` times of one step, each the mean over a group of `group` steps. Seconds."""


class HostTimer:
    """Host clock around the step: for a CPU, where a call returns when its work is done."""

    def now(self) -> float:
        return now()

    def times(self, step: Callable[[], object], samples: int, group: int) -> list[float]:
        spans = []
        for _ in range(samples):
            start = now()
            for _ in range(group):
                step()
            spans.append((now() - start) / group)
        return spans


class CudaTimer:
    """CUDA events on the current stream; one synchronise after the batch, so launches run ahead of the device."""

    def now(self) -> float:
        import torch

        torch.cuda.synchronize()
        return now()

    def times(self, step: Callable[[], object], samples: int, group: int) -> list[float]:
        import torch

        events = [torch.cuda.Event(enable_timing=True) for _ in range(samples + 1)]
        events[0].record()
        for event in events[1:]:
            for _ in range(group):
                step()
            event.record()
        torch.cuda.synchronize()
        # elapsed_time is in milliseconds
        return [a.elapsed_time(b) / 1e3 / group for a, b in itertools.pairwise(events)]


class PartTimer:
    """How long the parts of a step take: the time from one mark to the next, the last mark ending the step."""

    def __init__(self, cuda: bool):
        self.cuda = cuda
        self.last: str | None = None  # the part that ends a step
        self.marks: list[tuple[str, Any]] = []

    def mark(self, part: str) -> None:
        """The part has been finished (on CUDA: will be, when the stream comes here)."""
        at: Any = now()
        if self.cuda:
            import torch

            at = torch.cuda.Event(enable_timing=True)
            at.record()
        self.marks.append((part, at))
        self.last = part

    def clear(self) -> None:
        """Forget warm-up, but for where it ended."""
        self.marks = self.marks[-1:]

    def medians(self) -> dict[str, float]:
        """Median seconds of each part; the device must be through with them."""
        spans: dict[str, list[float]] = {}
        for (_, before), (part, at) in itertools.pairwise(self.marks):
            spans.setdefault(part, []).append(before.elapsed_time(at) / 1e3 if self.cuda else at - before)
        return {part: float(np.median(values)) for part, values in spans.items()}


@dataclass(frozen=True)
class Timing:
    """Seconds throughout; `steps` counts every step run while sampling."""

    compile_s: float
    warmup_s: float
    samples: list[float]
    steps: int
    sampling_s: float


def measure(
    step: Callable[[], object],
    timer: Timer,
    seconds: float,
    *,
    around: Callable[[Callable[[], None]], None] = lambda run: run(),
) -> Timing:
    """Time `step` for about `seconds` after its first call. `around` wraps the sampling (energy reads there)."""
    start = timer.now()
    step()
    compile_s = timer.now() - start

    start = timer.now()
    window = timer.times(step, 1, 1)
    count = WINDOW if window[0] < seconds / WINDOW else 1  # of steps longer than that, one has to do
    window += timer.times(step, count - 1, 1)
    while True:
        before, window = window, timer.times(step, count, 1)
        spent = timer.now() - start
        steady = abs(np.median(window) / np.median(before) - 1) < STEADY
        if steady or spent > seconds / 2:
            break
    warmup_s = timer.now() - start
    step_s = float(np.median(window))
    group = max(1, round(SAMPLE_S / step_s)) if step_s < SAMPLE_S / 2 else 1

    samples: list[float] = []
    start = timer.now()

    def sample() -> None:
        batch = LEAST_SAMPLES
        while True:
            samples.extend(timer.times(step, batch, group))
            elapsed = timer.now() - start
            if elapsed >= seconds or len(samples) >= MOST_SAMPLES:
                return
            low, high = order_interval(samples)
            narrow = (high - low) / 2 <= WIDE * float(np.median(samples))
            if elapsed >= seconds / 3 and narrow and settled(samples):
                return
            # about a tenth of the budget a batch, so that the stop rule is asked often enough
            batch = max(1, min(200, int(seconds / 10 / (step_s * group))))

    around(sample)
    return Timing(compile_s, warmup_s, samples, len(samples) * group, timer.now() - start)
