"""The history kind: did a GPU-hour get cheaper, over some months, at most sellers?

    x_i = ln(last / first) / years         one seller, one product, one term
    P   = share of bootstrap samples of the sellers whose median x is below 0

The median, because one seller that halves its price does not lower the market's; a bootstrap over sellers (Efron 1979),
because those listed are a sample of those there are. A median of 0 is not below 0: prices that stand still do not fall.
With fewer than three sellers there is nothing to sample, and the verdict is undecided whatever they did.
"""

from __future__ import annotations

import datetime

import numpy as np

from bench.claim.sections import Period
from bench.claim.spec import Claim
from bench.claim.verdict import Finding, finding, quantiles, verdict
from bench.price.history import PREFIX, Change, changes, history, name_of

LEAST_SELLERS = 3
UNIT = "fraction of the price a year"


def answer(claim: Claim, as_of: datetime.date = datetime.date.max) -> list[Finding]:
    """A verdict for each period. Raises ConfigError."""
    rows = history(as_of)
    return [_verdict(claim, p, changes(rows, p.gpu, p.term, p.since, p.until, p.least_months)) for p in claim.period]


def _verdict(claim: Claim, period: Period, found: list[Change]) -> Finding:
    x = np.array([change.log_per_year for change in found])
    said = {"definition": period.term, "subject": period.name, "unit": UNIT, "threshold": 0.0, "basis": "evidence"}
    said |= {"rests_on": ";".join(rest(change) for change in found), "note": told(period, found)}
    said["evidence"] = ";".join(period.evidence)
    if len(found) < LEAST_SELLERS:
        middle = float(np.expm1(np.median(x))) if len(found) else None
        return finding(claim, "verdict", **said, p50=middle, verdict="undecided")
    chosen = np.random.default_rng(claim.seed).integers(0, len(x), (claim.draws, len(x)))
    medians = np.median(x[chosen], axis=1)
    probability = float(np.mean(medians < 0))
    decided = verdict(probability, claim.decision)
    return finding(claim, "verdict", **said, **quantiles(np.expm1(medians)), probability=probability, verdict=decided)


def rest(change: Change) -> str:
    """What a finding about a series rests on."""
    return f"{PREFIX}{change.provider}/{change.gpu}/{change.term}"


def told(period: Period, found: list[Change]) -> str:
    """How many fell, stood and rose, and by how much at most, over the months each is known for."""
    fell, rose = ([c for c in found if c.log < 0], [c for c in found if c.log > 0])
    many = f"{len(found)} {'seller' if len(found) == 1 else 'sellers'}"
    parts = [f"{many}: {len(fell)} fell, {len(found) - len(fell) - len(rose)} stood, {len(rose)} rose"]
    for name, group in (("furthest down", fell), ("furthest up", rose)):
        if group:
            most = max(group, key=lambda change: abs(change.log))
            parts.append(f"{name} {name_of(most.provider)} {np.expm1(most.log):+.0%} in {most.months} months")
    if len(found) < LEAST_SELLERS:
        parts.append(f"fewer than {LEAST_SELLERS} sellers: no verdict")
    return "; ".join(parts)
