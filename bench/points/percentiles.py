"""Percentiles of latencies, each only where the sample can prove it.

A percentile is given if its order-statistic interval (intervals.py) lies inside the sample: q^n <= 2.5% and
(1-q)^n <= 2.5%, so from 6 samples for p50, 36 for p90, 72 for p95 and 368 for p99. Else it is None: the largest of a
hundred latencies is no p99. The value is interpolated between neighbours, as numpy and vLLM do.

Requests that waited in one queue are not independent: the interval is that of their effective count, and an end of it
that then lies outside the sample is None, open: nobody knows how far. Gaps between the tokens of one answer hang
together however many they are: of them n is at most the number of answers.
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

    @property
    def closed(self) -> bool:
        """Whether the sample proves it, dependence and all."""
        return self.low is not None and self.high is not None


def percentile(samples: ArrayLike, quantile: float, most: int | None = None) -> Percentile | None:
    """The quantile (0 to 1) of samples in time order, or None where they are too few to bracket it.

    `most`: as how many independent ones they count at most.
    """
    values = np.asarray(samples, dtype=float)
    count = len(values)
    most = count if most is None else min(most, count)
    low, high = order_ranks(most, quantile)
    if low < 1 or high > most:
        return None
    ordered = np.sort(values)
    # where some are endless, none is interpolated: numpy would find no number between two of them
    value = float(np.quantile(values, quantile)) if np.isfinite(ordered[-1]) else ordered[_rank(quantile, count)]
    known = min(effective_count(values <= value), most)
    low, high = order_ranks(int(known), quantile)
    return Percentile(
        float(value),
        float(ordered[int(low * count / known) - 1]) if low >= 1 else None,
        float(ordered[min(count, int(np.ceil(high * count / known))) - 1]) if high <= int(known) else None,
    )


def _rank(quantile: float, count: int) -> int:
    return int(np.ceil(quantile * (count - 1)))
