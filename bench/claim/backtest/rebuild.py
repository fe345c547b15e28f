"""Priors by rule: what the figures of a day say about a parameter, or its naive prior where they say nothing.

    middle = mean of the sources on the scale t (log, logit or linear)
    half   = max(stated width, t(0.9, n - 1) s sqrt(1 + 1/n)) for n >= 2 sources, the stated width for one
    p10, p90 = middle -+ half

The second is the predictive interval for one more draw of a normal sample (Geisser 1993), so sources that disagree
widen a prior and agreement never makes it narrower than stated. Some figures never know less than none: no prior is
wider than the naive one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit
from scipy.stats import t as student

from bench.claim.backtest.readings import Figures, value, yearly_growth
from bench.claim.backtest.spec import Naive, Rule
from bench.claim.priors import Prior

DISTRIBUTION = {"log": "lognormal", "logit": "logitnormal", "linear": "normal"}
THERE = {"log": np.log, "logit": logit, "linear": np.asarray}
BACK = {"log": np.exp, "logit": expit, "linear": np.asarray}


@dataclass(frozen=True)
class Rebuilt:
    """A prior as it stood; `naive` where no figure was out."""

    prior: Prior
    naive: bool


def sources(rule: Rule, table: Figures, changes: Sequence[float] = ()) -> tuple[list[float], list[str]]:
    """What the table holds for a rule, a number a source, and the ids behind them."""
    found: list[float] = []
    cited: list[str] = []
    for reading in rule.readings:
        if (number := value(reading, table)) is not None:
            found.append(number)
            cited += reading.ids
    for older, newer in rule.pairs:
        if older in table and newer in table and (growth := yearly_growth(table[older], table[newer])):
            found.append(growth)
            cited += [older, newer]
    return [*found, *(changes if rule.series else ())], list(dict.fromkeys(cited))


def rebuild(rule: Rule, naive: Mapping[str, Naive], table: Figures, changes: Sequence[float] = ()) -> Rebuilt | None:
    """A rule's prior from `table` and yearly price changes; None where neither they nor a naive prior say anything."""
    fallback = naive[rule.naive] if rule.naive else None
    numbers, cited = sources(rule, table, changes)
    if not numbers:
        if fallback is None:
            return None
        prior = Prior(
            distribution=DISTRIBUTION[fallback.scale],
            p10=fallback.p10,
            p50=fallback.p50,
            p90=fallback.p90,
            unit=rule.unit,
            source=f"naive judgement: {fallback.reason.removeprefix('judgement: ')}",
            judgement=True,
        )
        return Rebuilt(prior, True)
    widest = _half(fallback) if fallback else np.inf
    return Rebuilt(spread(numbers, rule.scale, rule.width, rule.unit, rule.source, tuple(cited), widest), False)


def spread(
    numbers: Sequence[float],
    scale: str,
    width: float,
    unit: str,
    source: str,
    cited: tuple[str, ...],
    widest: float = np.inf,
) -> Prior:
    """The prior that sources of one quantity come to."""
    x = np.asarray(THERE[scale](np.asarray(numbers, dtype=float)))
    half = float(np.log(width))
    if (n := len(x)) > 1:
        half = max(half, float(student.ppf(0.9, n - 1) * x.std(ddof=1) * np.sqrt(1 + 1 / n)))
    half, mid = min(half, widest), float(x.mean())
    p10, p50, p90 = (float(BACK[scale](mid + step)) for step in (-half, 0.0, half))
    said = f"{source}; of {n} {'source' if n == 1 else 'sources'}"
    return Prior(distribution=DISTRIBUTION[scale], p10=p10, p50=p50, p90=p90, unit=unit, source=said, evidence=cited)


def _half(naive: Naive) -> float:
    low, high = (float(THERE[naive.scale](number)) for number in (naive.p10, naive.p90))
    return (high - low) / 2
