"""How sure a serving measurement can be: intervals of a share, a quantile, a mean and a slope. All 95%, two-sided.

A share of requests has the Wilson interval (Wilson 1927):
    (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n),
which keeps its coverage near 1, where attainment lives. A quantile has order statistics around it: X_(l) to X_(u),
with l the last rank for which P(Bin(n, q) < l) <= 2.5% and u the first for which P(Bin(n, q) >= u) <= 2.5%; no
distribution is assumed. That a tail must be proven by a binomial count is MLPerf loadgen's idea (early stopping).

Both count independent requests, and neighbours in a queue wait together. `effective_count` measures by how much the
shares of 16 successive groups vary more than independent requests would, and lowers n by it.
"""

from __future__ import annotations

from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

MISS = 0.025  # of either end of an interval
Z = NormalDist().inv_cdf(1 - MISS)
GROUPS = 16
CHANCE = 1.67  # the groups' variance ratio that independent requests pass 5% of the time: chi²(15) / 15
EXACT = 20_000  # beyond this many samples the binomial's ranks are those of the normal
MOST_ALIKE = 0.7
RESAMPLES = 2000


def wilson(share: float, count: float) -> tuple[float, float]:
    """Interval of a share seen among `count` independent requests (a real number: an effective count will do)."""
    square = Z * Z / count
    middle = share + square / 2
    reach = Z * (share * (1 - share) / count + square / (4 * count)) ** 0.5
    return max(0.0, (middle - reach) / (1 + square)), min(1.0, (middle + reach) / (1 + square))


def effective_count(outcomes: ArrayLike) -> float:
    """Independent requests that would know a share as well as these `outcomes` (0 or 1, in time order) do.

    Groups shorter than what neighbours share hide part of the effect, so this is a bound from above: of 1,000
    requests to M/M/4 at 70% load it left a Wilson interval of 95% with 83% coverage, and none at all left it with 28%.
    Shorter or fuller ones are worse: 61% of 400 requests at 70%, 12% of 400 and 51% of 3,000 at 90%. Near saturation an
    interval of attainment is a lower bound of the doubt.
    """
    values = np.asarray(outcomes, dtype=float)
    size = len(values) // GROUPS
    if size < 4:
        return float(len(values))
    shares = values[: size * GROUPS].reshape(GROUPS, size).mean(axis=1)
    chance = shares.mean() * (1 - shares.mean()) / size
    effect = shares.var(ddof=1) / chance if chance > 0 else 1.0
    if effect <= CHANCE:
        return float(len(values))
    apart = shares - shares.mean()
    # groups in a row that still resemble each other, as in a first-order autoregression; 1/GROUPS mends its bias
    alike = min(max(float(apart[1:] @ apart[:-1] / (apart @ apart)) + 1 / GROUPS, 0.0), MOST_ALIKE)
    return float(len(values) / (effect * (1 + alike) / (1 - alike)))


@lru_cache(maxsize=4096)
def order_ranks(count: int, quantile: float) -> tuple[int, int]:
    """Ranks l and u, from 1, around a quantile of `count` independent samples; 0 or count + 1 lies outside them."""
    if count > EXACT:
        reach = Z * (count * quantile * (1 - quantile)) ** 0.5
        return int(count * quantile - reach), int(count * quantile + reach) + 2
    if count < 1:
        return 0, count + 1
    ks = np.arange(1, count + 1)
    odds = np.log((count - ks + 1) / ks) + np.log(quantile / (1 - quantile))
    pmf = np.exp(count * np.log(1 - quantile) + np.concatenate(([0.0], np.cumsum(odds))))
    below = np.cumsum(pmf)  # below[k] = P(Bin <= k)
    low = int(np.searchsorted(below, MISS, side="right"))  # P(Bin < low) = below[low-1] <= MISS
    high = int(np.searchsorted(below, 1 - MISS, side="left")) + 1  # P(Bin >= high) = 1 - below[high-1] <= MISS
    return low, high


def student(freedom: int) -> float:
    """97.5% point of Student's t, by the expansion in 1/freedom (Abramowitz and Stegun 26.7.5); 5 or more degrees."""
    z = Z
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom ** (power + 1) for power, term in enumerate(terms))


def bootstrap_mean(values: ArrayLike, seed: int = 0) -> tuple[float, float]:
    """Interval of the mean of a few values: the percentile bootstrap, widened for being few.

    The bootstrap of k values is too narrow by √((k-1)/k) and knows no t; reading it at wider percentiles, those the
    normal has at √(k/(k-1)) t, mends both (Hesterberg 2015, "What teachers should know about the bootstrap").
    """
    data = np.asarray(values, dtype=float)
    count = len(data)
    picks = np.random.default_rng(seed).integers(0, count, size=(RESAMPLES, count))
    tail = NormalDist().cdf(-((count / (count - 1)) ** 0.5) * student(count - 1))
    low, high = np.quantile(data[picks].mean(axis=1), (tail, 1 - tail))
    return float(low), float(high)


def slope(x: ArrayLike, y: ArrayLike) -> tuple[float, float, float]:
    """Least-squares slope of y on x with its t-interval: (slope, low, high). Seven points or more."""
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    apart = xs - xs.mean()
    rise = float(apart @ ys / (apart @ apart))
    left = ys - ys.mean() - rise * apart
    freedom = len(xs) - 2
    reach = student(freedom) * float(left @ left / freedom / (apart @ apart)) ** 0.5
    return rise, rise - reach, rise + reach
