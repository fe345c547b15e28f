"""Percentiles of latencies, each only where the sample can prove it.

A percentile is given if, the samples taken as independent, its order-statistic interval (intervals.py) lies inside
them: q^n <= 2.5% and (1-q)^n <= 2.5%, so from 6 samples for p50, 36 for p90, 72 for p95 and 368 for p99. Else it is
None: the largest of a hundred latencies is no p99. The value is interpolated between neighbours, as numpy and vLLM do.

Requests that waited in one queue are not independent: the interval is that of their effective count, and an end of it
that then lies outside the sample is None, open.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from bench.points.intervals import effective_count, order_ranks


@dataclass(frozen=True, slots=True)
class Percentile:
    """A percentile with its 95% interval, in the samples' unit; None: that end is open."""

    value: float
    low: float | None
    high: float | None


def percentile(samples: ArrayLike, quantile: float) -> Percentile | None:
    """The quantile (0 to 1) of samples in time order, or None where they are too few to bracket it."""
    values = np.asarray(samples, dtype=float)
    count = len(values)
    low, high = order_ranks(count, quantile)
    if low < 1 or high > count:
        return None
    value = float(np.quantile(values, quantile))
    known = effective_count(values <= value)
    low, high = order_ranks(int(known), quantile)
    ordered = np.sort(values)
    return Percentile(
        value,
        float(ordered[int(low * count / known) - 1]) if low >= 1 else None,
        float(ordered[min(count, int(np.ceil(high * count / known))) - 1]) if high <= int(known) else None,
    )
