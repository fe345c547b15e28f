"""Exposed communication: how long a step only communicates, nothing computing meanwhile.

    exposed = | union of communication intervals  \\  union of computing intervals |

over a few steps that are profiled by themselves, apart from the timed ones. On CUDA the intervals are those of kernels
(NCCL's, and all others); on a CPU those of torch's operators and of gloo's collectives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

Span = tuple[float, float]
STEPS = 2


def union(spans: Iterable[Span]) -> list[Span]:
    """The same time as spans that do not touch, in order."""
    found: list[Span] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        elif end > start:
            found.append((start, end))
    return found


def exposed(communicating: Iterable[Span], computing: Iterable[Span]) -> float:
    """Length of what is covered by the first and not by the second."""
    talk, work = union(communicating), union(computing)
    total = sum(end - start for start, end in talk)
    return total - sum(
        max(0.0, min(end, stop) - max(start, begin)) for start, end in talk for begin, stop in work if begin < end
    )


def exposed_s(step: Callable[[], object], device: str) -> float | None:
    """Seconds a step, on this rank; None where the profiler saw no communication at all."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    with profile(activities=activities) as profiler:
        for _ in range(STEPS):
            step()
        if device == "cuda":
            torch.cuda.synchronize()
    talk, work = spans_of(profiler.events() or [], device)
    return exposed(talk, work) / 1e6 / STEPS if talk else None


def spans_of(events: Iterable[Any], device: str) -> tuple[list[Span], list[Span]]:
    """(communicating, computing) intervals in microseconds of a profile's events."""
    talk: list[Span] = []
    work: list[Span] = []
    for event in events:
        span = (event.time_range.start, event.time_range.end)
        if device == "cuda":
            # ranges that a program names (record_function) are shown on the device too, and are no work
            if event.device_type.name != "CUDA" or getattr(event, "is_user_annotation", False):
                continue
            (talk if event.name.startswith("nccl") else work).append(span)
        elif event.name.startswith("gloo:"):
            talk.append(span)
        elif event.name.startswith("aten::"):
            work.append(span)
    return talk, work
