"""Which assumption explains a gap: each walked to its p10 and its p90 by itself, the rest as drawn.

    closed by an assumption = 1 - |ln of the gap with it at the better end| / |ln of the gap|

An assumption under which the gap changes sign between its ends closes all of it. The value that would close it whole is
looked for inside the prior (0.1% to 99.9%) and, where it is not there, up to a thousand times and down to a thousandth
of the median, so that a reader can judge how far outside it lies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr

from bench.claim.priors import Z90, Array, Prior, quantile

EDGE = 3.09  # standard-normal score of 99.9%
FURTHER = 1000.0


@dataclass(frozen=True)
class Walk:
    """An assumption: its value at a standard-normal score, and the median gap (a ratio) with it held at a value."""

    name: str
    value: Callable[[float], float]
    gap: Callable[[float], float]
    share: bool = False  # a part of one: never beyond it

    @classmethod
    def of_prior(cls, name: str, prior: Prior, gap: Callable[[float], float]) -> Walk:
        """Over a prior."""
        inside = prior.distribution == "logitnormal"
        return cls(name, lambda z: float(quantile(prior, np.array([z]))[0]), gap, inside)

    @classmethod
    def of_draws(cls, name: str, draws: Array, gap: Callable[[float], float]) -> Walk:
        """Over draws of something that has no prior of its own."""
        return cls(name, lambda z: float(np.quantile(draws, ndtr(z))), gap)


@dataclass(frozen=True)
class Explained:
    """The assumption that closes most: the gap at its ends, those ends, the part closed, and where it would be gone."""

    name: str
    at_low: float
    at_high: float
    low: float
    high: float
    closes: float
    closed_at: float | None
    told: str


def explained(walks: Sequence[Walk], middle: float) -> Explained:
    """The walk that closes most of the gap `middle`, a ratio that is not 1. `walks` must not be empty."""
    ends = {walk.name: tuple(walk.gap(walk.value(z)) for z in (-Z90, Z90)) for walk in walks}
    closes = {name: closed(low, high, middle) for name, (low, high) in ends.items()}
    best = max(walks, key=lambda walk: closes[walk.name])
    low, high = ends[best.name]
    at, inside = closing(best)
    better = best.value(-Z90 if abs(np.log(low)) < abs(np.log(high)) else Z90)
    most = "most of it" if closes[best.name] > 0.5 else "more of it than any other, not most"
    told = f"{best.name} explains {most}: {short(better)} instead of {short(best.value(0.0))} closes "
    told += f"{closes[best.name]:.0%} of its logarithm"
    if at is None:
        told += "; no value of it, however far outside its prior, closes it all"
    else:
        edges = f"{short(best.value(-EDGE))} to {short(best.value(EDGE))}, 0.1% to 99.9%"
        told += f"; alone it would have to be {short(at)}, {'within' if inside else 'outside'} its prior ({edges})"
    return Explained(best.name, best.value(-Z90), best.value(Z90), low, high, closes[best.name], at, told)


def short(value: float) -> str:
    """Three digits: 0.65, 250 bn, 1.22 tn."""
    size, name = next(((s, n) for s, n in ((1e12, " tn"), (1e9, " bn")) if value >= 0.9995 * s), (1.0, ""))
    return f"{value / size:.3g}{name}"


def closed(low: float, high: float, middle: float) -> float:
    """Part of ln(middle) that the better of two ends closes; all of it where they stand on either side of 1."""
    if np.log(low) * np.log(high) <= 0:
        return 1.0
    return float(1 - min(abs(np.log(low)), abs(np.log(high))) / abs(np.log(middle)))


def closing(walk: Walk) -> tuple[float | None, bool]:
    """The value at which the gap is 1, and whether it lies within the prior."""
    near, far = walk.value(-EDGE), walk.value(EDGE)
    if (at := _root(walk, near, far)) is not None:
        return at, True
    middle = walk.value(0.0)
    if middle <= 0:
        return None, False
    most = 1 - 1e-6 if walk.share else middle * FURTHER
    return _root(walk, middle / FURTHER, most), False


def _root(walk: Walk, low: float, high: float) -> float | None:
    if not 0 < low < high or np.log(walk.gap(low)) * np.log(walk.gap(high)) > 0:
        return None
    root = brentq(lambda x: float(np.log(walk.gap(float(np.exp(x))))), np.log(low), np.log(high), rtol=1e-4)
    return float(np.exp(root))
