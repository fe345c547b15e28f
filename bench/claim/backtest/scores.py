"""How good forecasts were: coverage, PIT, pinball loss, CRPS, and skill against a naive answer.

    pinball_q(x, y) = (y - x) (q - [y < x])                 Koenker and Bassett 1978; mean over q = 0.1, 0.5, 0.9
    CRPS = E|X - y| - E|X - X'| / 2                         Gneiting and Raftery 2007; |x - y| for a point
    skill = 1 - sum CRPS / sum CRPS of the naive answer     above 0: better than naive

All on the target's scale (log, log-odds), where 0.1 is about a tenth of the value, so that dollars, tokens and shares
add up. A naive answer gets the forecast's own spread about its own middle: skill is earned by where a forecast stands,
not by owning an interval. Resampling is by cluster: several figures of one organisation are no independent evidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta

from bench.claim.backtest.forecasts import Forecast
from bench.claim.backtest.outcomes import Outcome
from bench.claim.backtest.rebuild import THERE
from bench.claim.priors import Array

LEVELS = (0.1, 0.5, 0.9)
RESAMPLES = 10_000


@dataclass(frozen=True)
class Score:
    """One target's scores, on its scale."""

    id: str
    cluster: str
    naive: bool
    inside: bool
    inside_any: bool  # by some source, where they contradict
    inside_all: bool
    pit: float
    pinball: float
    crps: float
    no_change: float | None  # CRPS of the naive answers
    last_growth: float | None


def pinball(quantiles: Sequence[float], levels: Sequence[float], y: float) -> float:
    """Mean pinball loss of quantiles at their levels."""
    x, q = np.asarray(quantiles, dtype=float), np.asarray(levels, dtype=float)
    return float(np.mean((y - x) * (q - (y < x))))


def crps(x: Array, y: float) -> float:
    """CRPS of draws: E|X - y| - E|X - X'| / 2, the second from sorted draws in n log n."""
    n = len(x)
    ordered = np.sort(x)
    pairs = 2 * float(np.sum(ordered * (2 * np.arange(1, n + 1) - n - 1))) / n**2  # mean |X - X'|
    return float(np.mean(np.abs(x - y))) - pairs / 2


def score(made: Forecast, found: Outcome) -> Score:
    """A forecast against its outcome. Raises ValueError where there is no forecast."""
    if made.draws is None:
        raise ValueError(f"{made.id}: no forecast to score")
    there = THERE[made.scale]
    x = np.asarray(there(made.draws), dtype=float)
    y, others = float(there(found.value)), [float(there(number)) for number in found.readings]
    low, mid, high = np.quantile(x, LEVELS).tolist()
    held = [low <= other <= high for other in others]
    naive = [
        None if answer is None else crps(x - mid + float(there(answer)), y)
        for answer in (made.no_change, made.last_growth)
    ]
    return Score(
        id=made.id,
        cluster=made.cluster,
        naive=made.naive,
        inside=low <= y <= high,
        inside_any=any(held),
        inside_all=all(held),
        pit=float(np.mean(x <= y)),
        pinball=pinball((low, mid, high), LEVELS, y),
        crps=crps(x, y),
        no_change=naive[0],
        last_growth=naive[1],
    )


def binomial(inside: float, of: float) -> tuple[float, float]:
    """Clopper and Pearson's 95% interval of a share; `of` may be an effective number."""
    if not of:
        return 0.0, 1.0
    low = float(beta.ppf(0.025, inside, of - inside + 1)) if inside > 0 else 0.0
    high = float(beta.ppf(0.975, inside + 1, of - inside)) if inside < of else 1.0
    return low, high


@dataclass(frozen=True)
class Skill:
    """Skill against one naive answer; `value` None where too little stands behind it."""

    against: str
    targets: int
    clusters: int
    value: float | None = None
    low: float | None = None
    high: float | None = None


def skill(scores: Sequence[Score], against: str, least: int, seed: int) -> Skill:
    """Skill over the targets that have this naive answer, with a 95% bootstrap interval over clusters.

    No number where fewer than `least` targets or clusters have it.
    """
    pairs = [(one.cluster, one.crps, naive) for one in scores if (naive := getattr(one, against)) is not None]
    names = sorted({cluster for cluster, _, _ in pairs})
    if min(len(pairs), len(names)) < least:
        return Skill(against, len(pairs), len(names))
    losses = np.array([(ours, naive) for _, ours, naive in pairs])
    sums = np.array([losses[[cluster == name for cluster, _, _ in pairs]].sum(axis=0) for name in names])
    chosen = np.random.default_rng(seed).integers(0, len(names), (RESAMPLES, len(names)))
    drawn = sums[chosen].sum(axis=1)
    low, high = np.quantile(1 - drawn[:, 0] / drawn[:, 1], [0.025, 0.975]).tolist()
    whole = sums.sum(axis=0)
    return Skill(against, len(pairs), len(names), float(1 - whole[0] / whole[1]), low, high)
