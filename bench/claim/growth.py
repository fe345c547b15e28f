"""The growth kind: does one thing grow faster than another, year by year?

    P(year) = share of draws with left > right          left, right: growth of that year, x a year

Both move together where the claim file says so, and the verdict is shown again at the ends of each such correlation.
What others put in the place of `left` (a price at constant capability for the cost of the tokens served) stands beside
as a finding: same arithmetic, no verdict.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from bench.claim.definitions import growth_in
from bench.claim.influence import Question, influence, parameters
from bench.claim.priors import Array, Kept, draw
from bench.claim.sections import Growth
from bench.claim.spec import Claim
from bench.claim.verdict import Finding, counted, finding, ids, quantiles, verdict


def answer(claim: Claim) -> list[Finding]:
    """A verdict for each growth and year, at each end of a correlation, and what stands beside."""
    drawn = draw(claim.parameters, claim.correlation, claim.draws, claim.seed)
    result = []
    for item in claim.growth:
        for year in claim.years:
            row = _verdict(claim, item, year, drawn)
            result.append(row)
            if item.beside:
                result.append(_beside(claim, item, year, drawn))
        result += _at_other_correlations(claim, item)
        last = next(row for row in reversed(result) if row["kind"] == "verdict" and row["year"] == claim.years[-1])
        result += influence(question(claim, item, last))
    return result


def question(claim: Claim, item: Growth, row: Finding) -> Question:
    """What moves the verdict of the last year: ln of the growth on the left over that on the right."""
    names = [*item.left.values(), *item.right.values()]
    kept, year = Kept(), claim.years[-1]

    def margins(scores: Mapping[str, Array]) -> dict[str, Array]:
        left, right = _sides(item, year, {name: kept.value(claim.parameters, name, scores) for name in names})
        return {item.name: np.log(left) - np.log(right)}

    return Question(claim, parameters(claim, names), margins, {item.name: row}, claim)


def _sides(item: Growth, year: int, drawn: Mapping[str, Array]) -> tuple[Array, Array]:
    return growth_in(item.left, drawn, year), growth_in(item.right, drawn, year)


def _verdict(claim: Claim, item: Growth, year: int, drawn: Mapping[str, Array]) -> Finding:
    left, right = _sides(item, year, drawn)
    probability = float(np.mean(left > right))
    return finding(
        claim,
        "verdict",
        **_where(claim, item, year, item.parameters),
        **quantiles(right / left),
        subject=item.name,
        threshold=1.0,
        probability=probability,
        verdict=verdict(probability, claim.decision),
        note=item.note,
    )


def _beside(claim: Claim, item: Growth, year: int, drawn: Mapping[str, Array]) -> Finding:
    other = growth_in(item.beside, drawn, year)
    right = growth_in(item.right, drawn, year)
    names = [*item.beside.values(), *item.right.values()]
    return finding(
        claim,
        "finding",
        **_where(claim, item, year, names),
        **quantiles(right / other),
        subject=f"{item.name}: beside, no verdict",
        threshold=1.0,
        probability=float(np.mean(other > right)),
        note=item.beside_note,
    )


def _at_other_correlations(claim: Claim, item: Growth) -> list[Finding]:
    """The verdicts with every correlation that states a range at its low end, and at its high end."""
    if not any(pair.low is not None for pair in claim.correlation):
        return []
    result = []
    for end in ("low", "high"):
        pairs = [pair if pair.low is None else replace(pair, value=getattr(pair, end)) for pair in claim.correlation]
        values = sorted({pair.value for pair in pairs if pair.low is not None})
        drawn = draw(claim.parameters, pairs, claim.draws, claim.seed)
        said = f"{item.name}: correlation {', '.join(f'{value:g}' for value in values)}"
        rows = (_verdict(claim, item, year, drawn) for year in claim.years)
        note = "the verdict with the correlations at another value"
        result += [{**row, "kind": "sensitivity", "subject": said, "note": note} for row in rows]
    return result


def _where(claim: Claim, item: Growth, year: int, names: list[str]) -> Finding:
    cited = ids(claim.evidence, *(claim.parameters[name].evidence for name in names))
    return {"year": year, "unit": item.unit, "basis": "evidence", "evidence": cited, **counted(claim, names)}
