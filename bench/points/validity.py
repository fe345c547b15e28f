"""Whether a load point may be believed: Little's law, a rising queue, a late client, a rate that was not reached.

Little's law, L = lambda W, links three things counted apart: how many requests are in flight (sampled), how many end
a second and how long they take (from the records). Lost or invented requests break it. Taken over requests that
ended in the window it is off by those that straddle an end: a request of an hour's length that ends early in
the window brings its whole hour. On the sample path it is exact in every window if W counts what lies inside it:
    lambda = ended in the window / T,  W = (request-seconds inside the window) / (ended in the window),
so lambda W is the request-seconds inside the window over T, whatever the lengths and however unsteady the load.

A queue that rises has no steady state. In-flight requests and TTFT are averaged over 10 equal stretches of the window
(their fine structure is noise that hangs together) and a line is laid through each; the point is saturated if both
slopes are above zero by their t-interval and the backlog grows by 2% of arrivals or more. That both must rise is the
idea of GuideLLM's over-saturation stop.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bench.points.intervals import slope
from bench.points.window import Window, left_s, members
from bench.traffic.records import OK, Record

Array = NDArray[np.float64]
Samples = Sequence[tuple[float, float]]

LITTLES_LAW = 0.05  # off by more: void
CLIENT_LAG = 0.02  # of the median TTFT; above: void
REACHED = 0.98  # of the requested rate; below: flagged
BACKLOG = 0.02  # share of arrivals that stay
STRETCHES = 10
LEAST_SAMPLES = 50  # of in-flight requests; at 40, L of a heavy-tailed load was off by over 5% in 2% of runs
UNSEEN = 0.05  # share of the window that may lie behind the last sample


def in_flight_means(samples: Samples, window: Window, stretches: int = 1) -> Array | None:
    """Time average of (time_s, count) samples over equal stretches of the window; a count holds until the next one.

    Right for a log of every change as for a gauge polled at a steady pace. None where the samples do not span
    the window or fewer than 50 lie in it.
    """
    if len(samples) < LEAST_SAMPLES:
        return None
    times, counts = np.asarray(samples, dtype=float).T
    order = np.argsort(times, kind="stable")
    times, counts = times[order], counts[order]
    late = times[-1] < window.end_s - UNSEEN * window.seconds
    if times[0] > window.start_s or late or window.holds(times).sum() < LEAST_SAMPLES:
        return None
    edges = np.linspace(window.start_s, window.end_s, stretches + 1)
    beyond = max(times[-1], window.end_s)
    area = np.concatenate(([0.0], np.cumsum(counts * np.diff(times, append=beyond))))
    return np.diff(np.interp(edges, np.append(times, beyond), area)) / np.diff(edges)


def littles_law_ratio(records: Sequence[Record], samples: Samples, window: Window) -> float | None:
    """L / (lambda W), 1 where all is counted; None without samples of L or with nothing in flight."""
    sampled = in_flight_means(samples, window)
    sent = np.array([r.sent_s for r in records])
    left = np.array([left_s(r) for r in records])
    inside = np.clip(left, window.start_s, window.end_s) - np.clip(sent, window.start_s, window.end_s)
    expected = float(inside.sum()) / window.seconds
    return None if sampled is None or expected <= 0 else float(sampled[0]) / expected


def saturated(records: Sequence[Record], samples: Samples, window: Window) -> bool | None:
    """Whether the queue rises through the window (open loop); None where it cannot be told."""
    counts = in_flight_means(samples, window, STRETCHES)
    due = members(records, window)
    started = [(r.scheduled_s, r.ttft_s) for r in due if r.ttft_s is not None]
    edges = np.linspace(window.start_s, window.end_s, STRETCHES + 1)
    times, waits = np.asarray(started, dtype=float).reshape(-1, 2).T
    heads = np.histogram(times, edges)[0]
    filled = heads > 0
    if counts is None or filled.sum() < 7:
        return None
    middles = (edges[:-1] + edges[1:]) / 2
    ttft = np.histogram(times, edges, weights=waits)[0][filled] / heads[filled]
    rise, low, _ = slope(middles, counts)
    slower = slope(middles[filled], ttft)[1] > 0
    return bool(low > 0 and slower and rise * window.seconds >= BACKLOG * len(due))


def client_lag_ratio(due: Sequence[Record]) -> float | None:
    """p99 of (sent - scheduled) over the median TTFT.

    The p99 here convicts and need not be proven: of fewer than 100 requests it is the largest.
    """
    ttft = [r.ttft_s for r in due if r.ttft_s is not None]
    if not ttft or np.median(ttft) <= 0:
        return None
    lags = np.array([r.sent_s - r.scheduled_s for r in due])
    return float(np.quantile(lags, 0.99, method="higher") / np.median(ttft))


def achieved_rate_ratio(records: Sequence[Record], window: Window) -> float:
    """Requests that ended well in the window over those the schedule wanted in it."""
    ended = sum(r.status == OK and window.start_s <= left_s(r) <= window.end_s for r in records)
    return ended / len(members(records, window))


def below_requested_rate(ratio: float, due: int, in_flight: float) -> bool:
    """Whether under 98% of the rate was reached, by more than chance.

    What is in flight at two moments of a steady server differs by chance, and so do arrivals and ends between them:
    by a standard deviation of about √(2 L) requests. Twice that is let pass.
    """
    return (REACHED - ratio) * due > 2 * (2 * in_flight) ** 0.5
