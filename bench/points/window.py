"""The steady window of a load point, who belongs to it, and the token rates inside it.

A measurement begins with an empty server and ends with a draining one; neither is what a rate should describe.
- Closed loop (ML.ENERGY's rule): from when `concurrency` requests have had a first token, until all but
  `concurrency` have ended, or until the instant the load was to be counted to, if that comes first.
- Open loop: from when twice as many requests have had a first token as are in flight at once (the median over
  arrivals), until the last arrival. By Little's law as many requests as are in flight arrive in one mean residence
  time; after two of them a server of exponential residence has come to within e^-2 = 14% of its steady load.

Two kinds of number, two rules. A rate counts the tokens whose times fall in the window, whoever's they are. A latency
belongs to the request, and a request belongs to the window if it was due in it, however long it then took: to
count those that ended in it would favour short ones wherever requests are long against the window. So a load goes on
beyond its window until all of these have ended (ladder.py); what is cut then was due after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from bench.points.intervals import bootstrap_mean
from bench.traffic.records import CUT, OK, Record

Array = NDArray[np.float64]

LEAST_REQUESTS = 8  # due in the window; below, there is none
TURNOVERS = 2
LEAST_PARTS, MOST_PARTS = 8, 32


@dataclass(frozen=True, slots=True)
class Window:
    """Both ends belong to it; seconds on the measurement's clock."""

    start_s: float
    end_s: float

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s

    def holds(self, times_s: Array) -> NDArray[np.bool_]:
        """Which of the times lie in it; nan does not."""
        return (times_s >= self.start_s) & (times_s <= self.end_s)


@dataclass(frozen=True, slots=True)
class Rate:
    """Tokens per second in the window, with a 95% interval."""

    per_s: float
    low: float
    high: float


def left_s(record: Record) -> float:
    """When a request left the server: inf where it was still running, and for a failure, at the latest sign of it."""
    if record.status == CUT:
        return np.inf
    if record.end_s is not None:
        return record.end_s
    last = record.token_s[-1] if record.token_s else record.first_token_s
    return record.sent_s if last is None else last


def closed_window(records: Sequence[Record], concurrency: int, until_s: float = np.inf) -> Window | None:
    """None where fewer than 8 requests are due between the ends."""
    firsts = sorted(r.first_token_s for r in records if r.first_token_s is not None)
    ends = sorted(left_s(r) for r in records)
    if len(firsts) < concurrency or len(records) <= concurrency:
        return None
    return _long_enough(records, firsts[concurrency - 1], min(until_s, ends[-concurrency - 1]))


def open_window(records: Sequence[Record], until_s: float = np.inf) -> Window | None:
    """None where fewer than 8 requests are due between the ends."""
    firsts = sorted(r.first_token_s for r in records if r.first_token_s is not None)
    sent = np.sort([r.sent_s for r in records])
    ends = np.sort([left_s(r) for r in records])
    at_once = np.arange(1, len(sent) + 1) - np.searchsorted(ends, sent, side="right")
    warm = max(1, round(TURNOVERS * float(np.median(at_once)))) if len(records) else 1
    if len(firsts) < warm:
        return None
    return _long_enough(records, firsts[warm - 1], min(until_s, max(r.scheduled_s for r in records)))


def _long_enough(records: Sequence[Record], start_s: float, end_s: float) -> Window | None:
    window = Window(start_s, end_s)
    if not np.isfinite(end_s) or end_s <= start_s or len(members(records, window)) < LEAST_REQUESTS:
        return None
    return window


def members(records: Sequence[Record], window: Window) -> list[Record]:
    """The requests due in the window, in the order they were due."""
    inside = [r for r in records if window.start_s <= r.scheduled_s <= window.end_s]
    return sorted(inside, key=lambda r: r.scheduled_s)


def output_events(records: Sequence[Record]) -> tuple[Array, Array]:
    """Arrival times of output tokens, and how many tokens arrived at each.

    A request's tokens are shared equally over the arrivals the observer told apart; where it told none apart, they
    lie evenly from first token to end. Tokens of failed requests count for nothing: nobody would pay for them.
    """
    counted = [r for r in records if r.status in (OK, CUT) and r.output_tokens > 0]
    told = [r for r in counted if r.token_s]
    plain = [r for r in counted if not r.token_s and r.first_token_s is not None]
    tokens = np.array([r.output_tokens for r in plain], dtype=int)
    first = np.array([r.first_token_s for r in plain], dtype=float)
    end = np.array([r.first_token_s if r.end_s is None else r.end_s for r in plain], dtype=float)
    place = np.arange(tokens.sum()) - np.repeat(np.cumsum(tokens) - tokens, tokens)
    step_s = (end - first) / np.maximum(tokens - 1, 1)
    spread = np.repeat(first, tokens) + place * np.repeat(step_s, tokens)
    arrivals = np.array([len(r.token_s) for r in told], dtype=int)
    each = np.array([r.output_tokens for r in told], dtype=float) / arrivals
    seen = np.fromiter(chain.from_iterable(r.token_s for r in told), dtype=float)
    return np.concatenate((spread, seen)), np.concatenate((np.ones(len(spread)), np.repeat(each, arrivals)))


def input_events(records: Sequence[Record]) -> tuple[Array, Array, Array | None]:
    """Times at which prompts had been read (their first token), their tokens, and of these the cached ones.

    The last is None unless every one of the requests says.
    """
    read = [r for r in records if r.status in (OK, CUT) and r.first_token_s is not None]
    cached = [r.cached_tokens for r in read if r.cached_tokens is not None]
    return (
        np.array([r.first_token_s for r in read], dtype=float),
        np.array([r.input_tokens for r in read], dtype=float),
        np.array(cached, dtype=float) if read and len(cached) == len(read) else None,
    )


def parts(window: Window, residence_s: float | None) -> int:
    """Sub-windows to compare: one a residence time, so that neighbours hardly share requests, but 8 to 32."""
    fit = MOST_PARTS if not residence_s else int(window.seconds / residence_s)
    return min(MOST_PARTS, max(LEAST_PARTS, fit))


def rate(times_s: Array, tokens: Array, window: Window, count: int) -> Rate:
    """Tokens per second, with the bootstrap over `count` sub-windows of equal length.

    Tokens come in bursts that belong together (a batch, a prompt), so single tokens or requests must not be
    resampled; stretches of time may, where they are long against what links neighbours (batch means).
    """
    edges = np.linspace(window.start_s, window.end_s, count + 1)
    per_s = np.histogram(times_s, edges, weights=tokens)[0] / (window.seconds / count)
    return Rate(float(per_s.mean()), *bootstrap_mean(per_s))


def gaps(records: Sequence[Record], window: Window) -> tuple[Array, int]:
    """Inter-token latencies, seconds: gaps between neighbouring arrivals of one request that end in the window.

    In time order, and of how many requests they are. Tokens that came in one piece count as one arrival.
    """
    ends: list[Array] = []
    waits: list[Array] = []
    answers = 0
    for record in records:
        if record.status in (OK, CUT) and len(record.token_s) > 1:
            at = np.asarray(record.token_s)
            ends.append(at[1:])
            waits.append(np.diff(at))
            answers += bool(window.holds(at[1:]).any())
    if not ends:
        return np.zeros(0), 0
    when, wait = np.concatenate(ends), np.concatenate(waits)
    inside = window.holds(when)
    return wait[inside][np.argsort(when[inside], kind="stable")], answers
