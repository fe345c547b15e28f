"""Priors: three stated numbers in, seeded draws out.

Experts and sources state quantiles (p10, p50, p90), which two-parameter families cannot match. So a
stated prior is a two-piece normal on a transformed scale, with both sides fitted exactly:

    t(x) = t(p50) + z * (t(p50) - t(p10)) / 1.2816   for z < 0
    t(x) = t(p50) + z * (t(p90) - t(p50)) / 1.2816   for z >= 0,   z standard normal,

with t = log for `lognormal` (positive, growth rates), logit for `logitnormal` (shares; where a beta
is usual: a beta cannot hit three quantiles) and the identity for `normal`. Ranges without quantiles
are `triangular` or `uniform` through z -> Phi(z); `fixed` is one number.

Correlations act on the z (a Gaussian copula). Every parameter has its own random stream, seeded by
the claim's seed and the parameter's name, so one parameter's change never moves another's draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from scipy.special import expit, logit, ndtr

from bench.claim import evidence as evidence_table
from bench.config import ConfigError, require
from bench.price.draws import Array as Array
from bench.price.draws import Seed as Seed
from bench.price.draws import normals as normals
from bench.price.draws import triangular as triangular

T = TypeVar("T")
Z90 = 1.2815515655446004  # the 90th percentile of the standard normal
BY_QUANTILE = ("lognormal", "logitnormal", "normal")
STATED_BY = {"triangular": ("low", "mode", "high"), "uniform": ("low", "high"), "fixed": ("value",)}


@dataclass(frozen=True, kw_only=True)
class Prior:
    """One uncertain input. `source`: where its numbers come from, or "judgement: ..." and why.

    `judgement` says to programs what the word judgement in the source says to people: some of the numbers are ours.
    """

    distribution: str
    p10: float | None = None
    p50: float | None = None
    p90: float | None = None
    low: float | None = None
    mode: float | None = None
    high: float | None = None
    value: float | None = None
    clip: tuple[float, ...] = ()  # [least, most]: draws beyond are set to the end
    unit: str
    source: str
    judgement: bool = False
    evidence: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        kinds = (*BY_QUANTILE, *STATED_BY)
        require(self.distribution in kinds, "distribution", f"one of {', '.join(kinds)}")
        fields = ("p10", "p50", "p90", "low", "mode", "high", "value")
        given = [name for name in fields if getattr(self, name) is not None]
        expected = f"{self.distribution} to state {', '.join(self.stated)}"
        require(set(given) == set(self.stated), "distribution", f"{expected}, got {given}")
        numbers = self.numbers
        ordered = " <= ".join(self.stated)
        require(list(numbers) == sorted(numbers), self.stated[0], f"{ordered}, got {numbers}")
        if self.distribution == "lognormal":
            require(numbers[0] > 0, "p10", f"a positive number, got {numbers[0]}")
        if self.distribution == "logitnormal":
            inside = numbers[0] > 0 and numbers[-1] < 1
            require(inside, "p10", f"shares inside 0 and 1, got {numbers}")
        if self.distribution in ("triangular", "uniform"):
            require(numbers[0] < numbers[-1], "low", f"less than high, got {numbers}")
        ends = len(self.clip) == 0 or (len(self.clip) == 2 and self.clip[0] < self.clip[1])
        require(ends, "clip", f"[least, most], got {list(self.clip)}")
        require(bool(self.source.strip()), "source", "where the numbers come from")
        require_flag(self.judgement, self.source)
        evidence_table.require_known(self.evidence)

    @property
    def stated(self) -> tuple[str, ...]:
        """The fields this distribution is stated by, smallest first."""
        return STATED_BY.get(self.distribution, ("p10", "p50", "p90"))

    @property
    def numbers(self) -> tuple[float, ...]:
        """Their values."""
        return tuple(float(getattr(self, name)) for name in self.stated)


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """Two parameters that move together: the correlation of their underlying normals.

    `low` and `high`: other values a `growth` claim is answered at; both or neither.
    """

    a: str
    b: str
    value: float
    low: float | None = None
    high: float | None = None
    source: str
    judgement: bool = False
    evidence: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(-1 < self.value < 1, "value", f"inside -1 and 1, got {self.value}")
        require((self.low is None) == (self.high is None), "low", "low and high, both or neither")
        if self.low is not None and self.high is not None:
            inside = -1 < self.low <= self.value <= self.high < 1
            require(inside, "low", f"-1 < low <= value <= high < 1, got {self.low} and {self.high}")
        require_flag(self.judgement, self.source)
        evidence_table.require_known(self.evidence)


def require_flag(judgement: bool, source: str) -> None:
    """Raises ValueError where the flag and the source's own word differ."""
    said = "judgement" in source.lower()
    expected = "true where the source says judgement" if said else "a source that says judgement, and why, or no flag"
    require(judgement == said, "judgement", expected)


def quantile(prior: Prior, z: Array) -> Array:
    """The prior's value at the standard-normal score z (z = 0: its median); shape of z."""
    numbers = prior.numbers
    if prior.distribution == "fixed":
        x = np.full_like(z, numbers[0])
    elif prior.distribution == "uniform":
        x = numbers[0] + (numbers[1] - numbers[0]) * ndtr(z)
    elif prior.distribution == "triangular":
        x = triangular(numbers, np.asarray(ndtr(z)))
    else:
        x = _two_piece(prior.distribution, numbers, z)
    return np.clip(x, prior.clip[0], prior.clip[1]) if prior.clip else x


class Kept:
    """Answers of the last call, reused while what they were made of is the very same: a walk moves one input only."""

    def __init__(self) -> None:
        self.last: dict[str, tuple[tuple[Any, ...], Any]] = {}

    def of(self, key: str, reads: Iterable[Any], make: Callable[[], T]) -> T:
        """`make()`, or what it gave last where each of `reads` is the same object as then."""
        now = tuple(reads)
        before, made = self.last.get(key, ((), None))
        if len(now) != len(before) or any(a is not b for a, b in zip(now, before, strict=True)):
            made = make()
            self.last[key] = now, made
        return made

    def value(self, parameters: Mapping[str, Prior], name: str, scores: Mapping[str, Array]) -> Array:
        """A parameter at its scores, which a fixed one need not have."""
        z = scores.get(name)
        if z is None:
            return quantile(parameters[name], np.zeros(len(next(iter(scores.values())))))
        return self.of(name, [z], lambda: quantile(parameters[name], z))


def _two_piece(distribution: str, numbers: tuple[float, ...], z: Array) -> Array:
    there, back = {
        "lognormal": (np.log, np.exp),
        "logitnormal": (logit, expit),
        "normal": (np.asarray, np.asarray),
    }[distribution]
    low, mid, high = (float(there(number)) for number in numbers)
    return np.asarray(back(mid + z * np.where(z < 0, mid - low, high - mid) / Z90), dtype=float)


def draw(
    parameters: Mapping[str, Prior], correlations: Sequence[Correlation], draws: int, seed: int
) -> dict[str, Array]:
    """Draws of every parameter, by name, each of shape (draws,).

    Raises ConfigError where the correlations contradict each other (no such joint distribution).
    """
    scores = correlated({name: normals(name, draws, seed) for name in parameters}, correlations)
    return {name: quantile(prior, scores[name]) for name, prior in parameters.items()}


def correlated(scores: Mapping[str, Array], correlations: Sequence[Correlation]) -> dict[str, Array]:
    """The copula: independent standard normals in, those that are correlated mixed. Raises ConfigError as `draw`."""
    present = [pair for pair in correlations if pair.a in scores and pair.b in scores]
    names = list(dict.fromkeys(name for pair in present for name in (pair.a, pair.b)))
    if not names:
        return dict(scores)
    matrix = np.eye(len(names))
    for pair in present:
        i, j = names.index(pair.a), names.index(pair.b)
        matrix[i, j] = matrix[j, i] = pair.value
    try:
        mixed = np.linalg.cholesky(matrix) @ np.stack([scores[name] for name in names])
    except np.linalg.LinAlgError:
        raise ConfigError(f"correlation: {', '.join(names)} cannot all hold at once") from None
    return {**scores, **dict(zip(names, mixed, strict=True))}


def together(names: Sequence[str], correlations: Sequence[Correlation]) -> list[tuple[str, ...]]:
    """The names in sets that move together, directly or through others; a set of one where nothing does."""
    sets: dict[str, tuple[str, ...]] = {name: (name,) for name in names}
    for pair in correlations:
        if pair.value and pair.a in sets and pair.b in sets and sets[pair.a] != sets[pair.b]:
            merged = (*sets[pair.a], *sets[pair.b])
            sets |= dict.fromkeys(merged, merged)
    return list(dict.fromkeys(sets.values()))
