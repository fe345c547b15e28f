"""What a list of step times says: the median, how sure we are of it, and whether it held still.

The interval is the 95% percentile bootstrap of the median (Efron 1979): medians of resamples, 2.5% to 97.5%.
Burst and sustained rates differ on a GPU that warms up, so the first and last third are summarised apart; of few
samples a third is at least three, so that no rate and no interval rests on a single step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000
LEAST_THIRD = 3  # samples
WIDE = 0.01  # half-width of the interval, as a share of the median, beyond which a row is flagged
UNSTEADY = 0.05  # difference of first and last third, likewise


@dataclass(frozen=True)
class Summary:
    """Seconds. `low` and `high`: 95% interval of the median; `last_low` and `last_high`: of the last third's."""

    median: float
    low: float
    high: float
    first_third: float
    last_third: float
    last_low: float
    last_high: float

    @property
    def half_width(self) -> float:
        """Half the interval as a share of the median."""
        return (self.high - self.low) / 2 / self.median

    @property
    def flags(self) -> list[str]:
        """Why a reader should doubt the row, if anything."""
        drift = abs(self.last_third - self.first_third) / self.median
        return ["wide_interval"] * (self.half_width > WIDE) + ["unsteady"] * (drift > UNSTEADY)


def bootstrap_median(samples: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95% interval of the median in the samples' unit. One sample gives an interval of no width."""
    values = np.asarray(samples, dtype=float)
    picks = np.random.default_rng(seed).integers(0, len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(np.median(values[picks], axis=1), (2.5, 97.5))
    return float(low), float(high)


def order_interval(samples: Sequence[float]) -> tuple[float, float]:
    """95% interval of the median from order statistics (ranks n/2 -+ sqrt(n)): no resampling, for asking often."""
    ordered = sorted(samples)
    count = len(ordered)
    reach = count**0.5
    return ordered[max(0, int(count / 2 - reach))], ordered[min(count - 1, int(count / 2 + reach))]


def settled(samples: Sequence[float]) -> bool:
    """Whether the last third of the samples runs as fast as the middle third, within the width asked for."""
    third = max(1, len(samples) // 3)
    middle, last = np.median(samples[-2 * third : -third]), np.median(samples[-third:])
    return bool(abs(last / middle - 1) <= WIDE)


def summarise(samples: Sequence[float]) -> Summary:
    """Raises ValueError on no samples or a time that is not positive."""
    if not samples or min(samples) <= 0:
        raise ValueError("step times must be positive, and at least one")
    third = min(len(samples), max(LEAST_THIRD, len(samples) // 3))
    low, high = bootstrap_median(samples)
    last_low, last_high = bootstrap_median(samples[-third:])
    return Summary(
        median=float(np.median(samples)),
        low=low,
        high=high,
        first_third=float(np.median(samples[:third])),
        last_third=float(np.median(samples[-third:])),
        last_low=last_low,
        last_high=last_high,
    )
