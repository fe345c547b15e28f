"""From draws to a verdict, and the one shape every finding has.

A probability is a share of draws; a verdict is a probability held against two limits the claim file
states: holds at or above `holds_at`, fails at or below `fails_at`, undecided between them. A
finding is a row of results.CLAIMS, whatever its kind, so that every reader needs to know one table
only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from bench.claim.priors import Array
from bench.claim.sections import Decision, Printed, Statement
from bench.claim.spec import Claim
from bench.results import CLAIMS

Finding = dict[str, Any]
EPSILON = 1e-15  # a share nearer to 0 or 1 has no log-odds a double could tell


def verdict(probability: float, decision: Decision) -> str:
    """holds, fails or undecided; both limits count as reached."""
    return judged(probability, decision.holds_at, decision.fails_at)


def judged(probability: float, holds_at: float, fails_at: float) -> str:
    """The same for limits stated outright."""
    if probability >= holds_at:
        return "holds"
    return "fails" if probability <= fails_at else "undecided"


def limit(item: Statement | Printed, decision: Decision) -> float | None:
    """The threshold a statement names; None where it compares with the year before."""
    return None if item.test == "rises" else decision.thresholds[item.threshold]


def true_in(
    item: Statement | Printed, share: Array, years: Sequence[int], threshold: float | None
) -> NDArray[np.bool_] | None:
    """Draw by draw, whether the statement is true; None where a year it needs has no figure.

    `share` has shape (years, draws).
    """
    needed = {item.year - 1, item.year} if threshold is None else {item.year}
    if not needed <= set(years):
        return None
    row = list(years).index(item.year)
    if np.isnan(share[row]).any():
        return None
    if threshold is None:
        before = share[list(years).index(item.year - 1)]
        return None if np.isnan(before).any() else share[row] > before
    tests = {"above": np.greater, "at_least": np.greater_equal, "below": np.less}
    return np.asarray(tests[item.test](share[row], threshold))


def margin(item: Statement | Printed, share: Array, years: Sequence[int], threshold: float | None) -> Array | None:
    """How far each draw is on the true side, in log-odds: positive where `true_in`; None as there."""
    true = true_in(item, share, years, threshold)
    if true is None:
        return None

    def odds(year: int) -> Array:
        return np.asarray(logit(np.clip(share[list(years).index(year)], EPSILON, 1 - EPSILON)))

    distance = odds(item.year) - (odds(item.year - 1) if threshold is None else logit(threshold))
    return -distance if item.test == "below" else distance


def quantiles(values: Array) -> Finding:
    """p10, p50 and p90 of draws, as np.quantile gives them (linear between order statistics), in a quarter of its time.

    One partition at a time: numpy's with several places at once is slower than a sort.
    """
    at = np.array([0.1, 0.5, 0.9]) * (values.size - 1)
    left, part = np.floor(at).astype(int), at % 1
    found, rest, begin = [], values.flatten(), 0  # a copy
    for place in left:
        rest.partition(place - begin)
        rest, begin = rest[place - begin :], place
        found.append((rest[0], rest[1:].min() if rest.size > 1 else rest[0]))
    low, high = np.array(found).T
    ends = np.where(part >= 0.5, high - (high - low) * (1 - part), low + (high - low) * part)
    return dict(zip(("p10", "p50", "p90"), ends.tolist(), strict=True))


def ids(*groups: Iterable[str]) -> str:
    """Ids joined by ; in order, each once."""
    return ";".join(sorted({name for group in groups for name in group}))


def counted(claim: Claim, names: Iterable[str]) -> Finding:
    """How many uncertain inputs these parameters are, and how many of them rest on judgement: two columns."""
    drawn = {name for name in names if claim.parameters[name].distribution != "fixed"}
    return {"priors": len(drawn), "judged": sum(claim.parameters[name].judgement for name in drawn)}


def finding(claim: Claim, kind: str, **fields: Any) -> Finding:
    """A row of results.CLAIMS, blank where nothing is said. Raises KeyError."""
    row = {**dict.fromkeys(CLAIMS), "claim": claim.key, "kind": kind, **fields}
    unknown = set(row) - set(CLAIMS)
    if unknown:
        raise KeyError(f"not a column of claims.csv: {', '.join(sorted(unknown))}")
    return row
