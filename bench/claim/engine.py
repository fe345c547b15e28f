"""The share kind: statements against serving's share of compute, by every definition, in two views.

By purpose, as accounts do: what the GPU-hour was paid for. By kernel type, as a profiler would: the
inference-type part of R&D (rollouts, synthetic data, logits) counts as inference. Per definition
and view there is a fan (p10, p50, p90 a year) and a verdict per statement,

    P = share of draws in which the statement is true.

Where the evidence itself adds up to a share (a check), the draws of that year have to explain it. What
moves a verdict and what would flip it, influence.py says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy.special import ndtr

from bench.claim import evidence, ratio
from bench.claim.definitions import by_kernel, share
from bench.claim.influence import Factor, Member, Question, influence, parameters
from bench.claim.priors import Array, Kept
from bench.claim.rates import rates
from bench.claim.sections import VIEWS, Check, Printed, Statement, Unanswered
from bench.claim.spec import Claim
from bench.claim.verdict import Finding, counted, finding, ids, judged, limit, margin, quantiles, true_in, verdict
from bench.claim.world import THREADS, World, grounds, inputs, read

PURPOSE, KERNEL = VIEWS
SHARE = "serving / (serving + X)"


def answer(drawn: World) -> list[Finding]:
    """Every finding of a share claim."""
    result = rates(drawn)
    with ThreadPoolExecutor(THREADS) as pool:  # numpy lets threads run side by side
        for rows in pool.map(lambda key: _defined(drawn, key), drawn.shares):
            result += rows
    result += [_check(drawn, check) for check in drawn.claim.check if check.definition in drawn.shares]
    return result + [_unanswered(drawn, reason) for reason in drawn.claim.unanswered]


def _defined(drawn: World, key: str) -> list[Finding]:
    """Fans and verdicts of one definition, in both views."""
    by_purpose, work = drawn.shares[key], drawn.claim.definitions[key].inference_work
    result = _fan(drawn, key, PURPOSE, by_purpose) + _verdicts(drawn, key, PURPOSE, by_purpose)
    if work:
        values = by_kernel(by_purpose, drawn.draws[work])
        result += _fan(drawn, key, KERNEL, values) + _verdicts(drawn, key, KERNEL, values)
    return result


def moves(drawn: World, answered: Sequence[Finding]) -> list[Finding]:
    """What moves the verdicts among a share claim's findings, by purpose, and what would flip them."""
    result, asked = [], {item.name: item for item in drawn.claim.statement}
    for key in drawn.shares:
        held = (row for row in answered if row["kind"] == "verdict" and row["definition"] == key)
        rows = {row["subject"]: row for row in held if row["subject"] in asked}
        if rows:  # a definition may lack the year of every statement
            result += influence(question(drawn.claim, drawn, key, {name: asked[name] for name in rows}, rows))
    return result


def question(
    claim: Claim, drawn: World, key: str, asked: Mapping[str, Statement | Printed], rows: Mapping[str, Finding]
) -> Question:
    """What moves statements about one definition: its parameters and, where it reads r, r and the classes behind it."""
    source, definition = drawn.claim, drawn.claim.definitions[key]
    needed = {year for item in asked.values() for year in (item.year, item.year - (item.test == "rises"))}
    years = sorted(needed & set(source.years))
    pairs = drawn.pairs if definition.needs_rates else []
    classes = [n for mix in source.workload_class for n in (mix.input_output_ratio, mix.cache_hit_share) if pairs]
    names = list(dict.fromkeys([*definition.parameters, *classes]))

    kept = Kept()

    def r(z: float) -> float:
        return float(np.quantile(drawn.draws["r"], ndtr(z)))

    def margins(scores: Mapping[str, Array]) -> dict[str, Array]:
        values = inputs(source, pairs, scores, names, kept)
        if "r" in scores:
            values["r"] = np.full_like(scores["r"], r(scores["r"][0]))
        shares = share(definition, values, years)
        made = {name: margin(item, shares, years, limit(item, claim.decision)) for name, item in asked.items()}
        return {name: values for name, values in made.items() if values is not None}

    factors = parameters(source, names)
    factors += [Factor("r", ratio.STREAMS, (Member("r", "ratio", r),))] if pairs else []
    return Question(claim, factors, margins, rows, source)


def _fan(drawn: World, key: str, view: str, values: Array) -> list[Finding]:
    """One row a year."""
    columns = {**grounds(drawn, key), "definition": key, "subject": view, "unit": SHARE}
    return [
        finding(drawn.claim, "share", **columns, year=year, **quantiles(values[row]))
        for row, year in enumerate(drawn.claim.years)
        if not np.isnan(values[row]).any()
    ]


def _verdicts(drawn: World, key: str, view: str, values: Array) -> list[Finding]:
    """One row a statement and, by purpose, its verdict at other limits."""
    claim, result = drawn.claim, []
    for statement in claim.statement:
        if statement.definitions and key not in statement.definitions:
            continue
        row = _verdict(drawn, key, statement, values)
        if row is None:
            continue
        row["subject"] = statement.name if view == PURPOSE else f"{statement.name}, {view}"
        work = claim.definitions[key].inference_work
        if view == KERNEL and work:
            row |= counted(claim, [*read(claim, key), work])
        result.append(row)
        if view == PURPOSE:
            result += _other_limits(drawn, statement, row, values)
    return result


def _verdict(drawn: World, key: str, statement: Statement, values: Array) -> Finding | None:
    claim = drawn.claim
    threshold = limit(statement, claim.decision)
    true = true_in(statement, values, claim.years, threshold)
    if true is None:
        return None
    probability = float(true.mean())
    columns = grounds(drawn, key)
    columns["evidence"] = ids(columns["evidence"].split(";"), statement.evidence)
    return finding(
        claim,
        "verdict",
        **columns,
        **quantiles(values[claim.years.index(statement.year)]),
        definition=key,
        year=statement.year,
        unit=SHARE,
        threshold=threshold,
        probability=probability,
        verdict=verdict(probability, claim.decision),
    )


def _other_limits(drawn: World, statement: Statement, row: Finding, values: Array) -> list[Finding]:
    """The same verdict at the other share thresholds and decision limits of the claim file."""
    decision, years = drawn.claim.decision, drawn.claim.years
    other = {"kind": "sensitivity", "note": "the verdict at another limit"}
    result = []
    for threshold in decision.also_thresholds if statement.test != "rises" else ():
        true = true_in(statement, values, years, threshold)
        p = float(np.mean(true)) if true is not None else None
        changed = {"subject": f"{statement.name}: threshold {threshold:g}", "threshold": threshold}
        judgement = verdict(p, decision) if p is not None else None
        result.append({**row, **other, **changed, "probability": p, "verdict": judgement})
    for holds_at in decision.also_holds_at:
        changed = {"subject": f"{statement.name}: holds at {holds_at:g}, fails at {1 - holds_at:g}"}
        judgement = judged(row["probability"], holds_at, 1 - holds_at)
        result.append({**row, **other, **changed, "verdict": judgement})
    return result


def _unanswered(drawn: World, reason: Unanswered) -> Finding:
    """Why an accounting of an organisation has no share, in which view and years."""
    where = [reason.view, f"{reason.years[0]} to {reason.years[-1]}" if len(reason.years) > 1 else ""]
    where += [str(reason.years[0])] if len(reason.years) == 1 else []
    said = ", ".join([f"{reason.accounting} of {reason.organisation}", *filter(None, where)])
    columns = {"organisation": reason.organisation, "accounting": reason.accounting, "evidence": ids(reason.evidence)}
    return finding(drawn.claim, "finding", **columns, subject=f"unanswered: {said}", note=reason.reason)


def _check(drawn: World, check: Check) -> Finding:
    """A share computed from evidence beside the draws of the same definition and year."""
    values = drawn.shares[check.definition][drawn.claim.years.index(check.year)]
    stated = evidence.share(check.serving, check.other)
    spread = quantiles(values)
    inside = spread["p10"] <= stated <= spread["p90"]
    place = "inside" if inside else "outside"
    cited = [key for product in (*check.serving, *check.other) for key in product]
    return finding(
        drawn.claim,
        "finding",
        definition=check.definition,
        subject=f"check {check.name}",
        year=check.year,
        **spread,
        unit=SHARE,
        threshold=stated,
        basis=grounds(drawn, check.definition)["basis"],
        evidence=ids(cited),
        note=f"{check.text}: {stated:.3g}, {place} the draws' 80% interval",
    )
