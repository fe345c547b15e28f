"""The table kind: rows somebody printed, each held against what the evidence says.

A printed row makes up to two assertions. Its dollars: are they compute cost? They are, if the
year's compute cost, drawn from its prior, lies within a stated tolerance of them. Its words: is the
split what they say? That is a statement like any other, read off the draws of a share claim. Beside
both stands every published figure of that company and year that prints as the same number: where
dollars fit nothing about compute, that shows what they are instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bench.claim import evidence
from bench.claim.engine import question
from bench.claim.influence import Question, influence, parameters
from bench.claim.priors import Array, draw, quantile
from bench.claim.sections import Printed
from bench.claim.spec import Claim
from bench.claim.verdict import Finding, counted, finding, ids, limit, quantiles, true_in, verdict
from bench.claim.world import World, grounds


def answer(claim: Claim, shares: World) -> list[Finding]:
    """Every finding of a table claim; `shares` is the world of the share claim it names."""
    draws = draw(claim.parameters, claim.correlation, claim.draws, claim.seed)
    result = []
    for row in claim.printed:
        if row.usd is not None and row.compute_usd is not None:
            held = _dollars(claim, row, row.usd, draws[row.compute_usd])
            result += [held, _same_number(claim, row, row.usd), *influence(_compute(claim, row, row.usd, held))]
        if row.words:
            result += _words(claim, row, shares)
    return result + _moves(claim, shares, result)


def _compute(claim: Claim, row: Printed, usd: float, held: Finding) -> Question:
    """What moves whether dollars are compute cost: the one parameter that says what that was."""
    name, within = str(row.compute_usd), np.log1p(claim.decision.thresholds["tolerance"])

    def margins(scores: Mapping[str, Array]) -> dict[str, Array]:
        compute = quantile(claim.parameters[name], scores[name])
        return {held["subject"]: within - np.abs(np.log(compute / usd))}

    return Question(claim, parameters(claim, [name]), margins, {held["subject"]: held}, claim)


def _moves(claim: Claim, shares: World, answered: Sequence[Finding]) -> list[Finding]:
    """What moves the words, by the definition their share claim leads with."""
    headline = shares.claim.headline
    key = headline.definition if headline else ""
    asked = {f"{row.year} words": row for row in claim.printed if row.words}
    rows = {row["subject"]: row for row in answered if row["definition"] == key and row["subject"] in asked}
    if not rows:
        return []
    return influence(question(claim, shares, key, {subject: asked[subject] for subject in rows}, rows))


def _dollars(claim: Claim, row: Printed, usd: float, compute: Array) -> Finding:
    """Is the printed figure compute cost? Holds if compute lies within the tolerance of it."""
    tolerance = claim.decision.thresholds["tolerance"]
    probability = float(np.mean(np.abs(np.log(compute / usd)) <= np.log1p(tolerance)))
    prior = claim.parameters[str(row.compute_usd)]
    where = {"subject": f"{row.year} dollars", "year": row.year, "basis": "evidence"}
    where["evidence"] = ids(row.evidence, prior.evidence)
    note = (
        f"printed: ${usd / 1e9:g} bn of compute; holds if compute is within {tolerance:.0%} of it; "
        f"p50 here is {float(np.median(compute)) / usd:.2g} x the printed figure"
    )
    return finding(
        claim,
        "printed",
        **where,
        **quantiles(compute),
        unit="USD",
        threshold=usd,
        probability=probability,
        verdict=verdict(probability, claim.decision),
        note=note,
        **counted(claim, [str(row.compute_usd)]),
    )


def _same_number(claim: Claim, row: Printed, usd: float) -> Finding:
    """The company's figures for that year that print as the same whole billions."""
    same = evidence.same_number(usd, row.year, str(claim.organisation))
    found = "; ".join(f"{figure.key} {figure.metric}" for figure in same)
    return finding(
        claim,
        "finding",
        subject=f"{row.year} dollars: same number",
        year=row.year,
        unit="USD",
        threshold=usd,
        basis="evidence",
        evidence=ids(figure.key for figure in same),
        note=f"figures of that year that print as ${usd / 1e9:g} bn: {found or 'none'}",
    )


def _words(claim: Claim, row: Printed, shares: World) -> list[Finding]:
    """Is the split what the row says? By every definition of the share claim that has the year."""
    result = []
    threshold = limit(row, claim.decision)
    for key, values in shares.shares.items():
        true = true_in(row, values, shares.claim.years, threshold)
        if true is None:
            continue
        probability = float(true.mean())
        columns = grounds(shares, key)
        columns["evidence"] = ids(columns["evidence"].split(";"), row.evidence)
        columns["note"] = f"printed: {row.words} ({row.source}); {columns['note']}"
        result.append(
            finding(
                claim,
                "printed",
                **columns,
                **quantiles(values[shares.claim.years.index(row.year)]),
                definition=key,
                subject=f"{row.year} words",
                year=row.year,
                unit="serving / (serving + X)",
                threshold=threshold,
                probability=probability,
                verdict=verdict(probability, claim.decision),
            )
        )
    return result
