"""backtest.csv: for each cut-off its priors, forecasts, scores and verdicts, one a row, and the answer in words."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.claim import evidence as evidence_table
from bench.claim.backtest import readings, spec
from bench.claim.backtest.forecasts import Forecast, forecasts, prices_before, rules
from bench.claim.backtest.outcomes import Outcome, outcomes, scored
from bench.claim.backtest.rebuild import Rebuilt
from bench.claim.backtest.scores import LEVELS, Score, Skill, binomial, score, skill
from bench.claim.backtest.verdicts import Verdict, claim_of, today, verdicts
from bench.price.history import history
from bench.price.known import last_day
from bench.results import BACKTEST

Row = dict[str, Any]
BLIND = "no figure to start from before the cut-off"
NONE = "no skill claimed"
COVERAGE = "coverage of the 80% interval"
FIRM = f"{COVERAGE}, naive priors left out"
AGAINST = {"no_change": "no change", "last_growth": "the last growth goes on"}


def backtest(findings: Sequence[Row], as_of: datetime.date) -> list[Row]:
    """Every row of backtest.csv. `findings`: rows of claims.csv, today's verdicts. Raises ConfigError, ResultsError."""
    file, table, prices = spec.load(), evidence_table.figures(), history(as_of)
    claim = claim_of(file)
    rows: list[Row] = []
    for cutoff in file.cutoffs:
        if cutoff > as_of:
            continue
        known = readings.before(table, cutoff)
        past = prices_before(prices, cutoff, file.prices.leave_out)
        made = forecasts(file, known, past, cutoff)
        found = outcomes(file, table, prices, cutoff, as_of)
        rebuilt = rules(file, known, past)
        pairs = [(one, result, score(one, result)) for one, result in scored(made, found)]
        rows.append(_row(cutoff, "known", **_known(table, known)))
        rows += [_row(cutoff, "parameter", **_parameter(name, one)) for name, one in rebuilt.items()]
        rows += [_row(cutoff, "target", **_target(*pair)) for pair in pairs]
        rows += [
            _row(cutoff, "unscored", subject=one.id, organisation=one.organisation, period=one.period, note=why)
            for one in made
            if (why := _unscored(one, found))
        ]
        rows += [_row(cutoff, "score", **summary) for summary in summaries(file, [s for _, _, s in pairs])]
        judged = verdicts(file, claim, known, past)
        rows += [_row(cutoff, "verdict", **_verdict(one, today(findings, claim.key, one))) for one in judged]
    return rows


def _unscored(one: Forecast, found: dict[str, Outcome]) -> str:
    if one.id not in found:
        return "" if one.draws is None else "forecast, and not resolved: out before, too old, or not known yet"
    return BLIND if one.draws is None else ""


def _row(cutoff: datetime.date, kind: str, **fields: Any) -> Row:
    """A row of BACKTEST, blank where nothing is said. Raises KeyError."""
    row = {**dict.fromkeys(BACKTEST), "cutoff": cutoff.isoformat(), "kind": kind, **fields}
    if unknown := set(row) - set(BACKTEST):
        raise KeyError(f"not a column of backtest.csv: {', '.join(sorted(unknown))}")
    return row


def _known(table: readings.Figures, known: readings.Figures) -> Row:
    undated = sum(last_day(figure.published) is None for figure in table.values())
    note = f"{len(known)} of {len(table)} public figures surely out before; {undated} without a date are left out"
    return {"subject": "public figures", "p50": float(len(known)), "unit": "figures", "note": note}


def _parameter(name: str, one: Rebuilt | None) -> Row:
    if one is None:
        return {"subject": name, "note": "no figure before the cut-off and no naive prior: not forecast"}
    prior = one.prior
    where = dict(zip(("p10", "p50", "p90"), prior.numbers, strict=True))
    basis = "naive" if one.naive else "evidence"
    said = {"subject": name, **where, "unit": prior.unit, "basis": basis, "note": prior.source}
    return said | {"evidence": ";".join(prior.evidence)}


def _target(one: Forecast, found: Outcome, scores: Score) -> Row:
    spread = np.quantile(np.asarray(one.draws), LEVELS).tolist()
    return {
        "subject": one.id,
        "organisation": one.organisation,
        "cluster": one.cluster,
        "period": one.period,
        "unit": one.unit,
        "scale": one.scale,
        **dict(zip(("p10", "p50", "p90"), spread, strict=True)),
        "outcome": found.value,
        "outcome_low": min(found.readings),
        "outcome_high": max(found.readings),
        "inside": "yes" if scores.inside else "no",
        "pit": scores.pit,
        "pinball": scores.pinball,
        "crps": scores.crps,
        "no_change": one.no_change,
        "no_change_crps": scores.no_change,
        "last_growth": one.last_growth,
        "last_growth_crps": scores.last_growth,
        "basis": "naive" if one.naive else "evidence",
        "evidence": ";".join(one.evidence),
        "resolved_by": ";".join(found.evidence),
        "note": one.text,
    }


def summaries(file: spec.Backtest, scores: Sequence[Score]) -> list[Row]:
    """Coverage, mean losses and skill over a cut-off's scored targets, a row each."""
    said = {"targets": len(scores), "clusters": len({one.cluster for one in scores})}
    rows = [_coverage(COVERAGE, scores), _coverage(FIRM, [one for one in scores if not one.naive])]
    for name in ("crps", "pinball"):
        mean = float(np.mean([getattr(one, name) for one in scores])) if scores else None
        rows.append({"subject": f"mean {name}", "p50": mean, "unit": "log or log-odds", **said})
    return rows + [_skill(skill(scores, key, file.least_scored, file.seed), file) for key in AGAINST]


def _coverage(subject: str, scores: Sequence[Score]) -> Row:
    """How many outcomes the 80% interval held, with an interval that counts clusters."""
    n, clusters = len(scores), len({one.cluster for one in scores})
    said: Row = {"subject": subject, "targets": n, "clusters": clusters, "p50": None}
    if not n:
        return {**said, "note": "nothing to score"}
    inside, least, most = (sum(getattr(one, k) for one in scores) for k in ("inside", "inside_all", "inside_any"))
    low, high = binomial(inside / n * clusters, clusters)
    note = f"{inside} of {n} inside, {least} to {most} as sources of one outcome differ; "
    note += f"{sum(one.naive for one in scores)} rest on a naive prior; the interval counts {clusters} clusters"
    return {**said, "p10": low, "p50": inside / n, "p90": high, "unit": "95% interval", "note": note}


def _skill(one: Skill, file: spec.Backtest) -> Row:
    said: Row = {"subject": f"skill against {AGAINST[one.against]}", "targets": one.targets, "clusters": one.clusters}
    if one.value is None or one.low is None or one.high is None:
        return {**said, "note": f"{NONE}: fewer than {file.least_scored} targets or clusters"}
    note = "better" if one.low > 0 else "worse" if one.high < 0 else f"{NONE}: the interval holds 0"
    return {**said, "p10": one.low, "p50": one.value, "p90": one.high, "unit": "95% interval", "note": note}


def _verdict(one: Verdict, now: Row | None) -> Row:
    """One statement then; what it is now stands in the note and in `today`."""
    return {
        "subject": f"{one.definition}: {one.statement}",
        "period": f"{one.year}",
        "unit": "serving / (serving + X)",
        **one.spread,
        "probability": one.probability,
        "verdict": one.verdict,
        "today_probability": now["probability"] if now else None,
        "today_verdict": now["verdict"] if now else None,
        "basis": "evidence" if not one.naive else "naive",
        "evidence": one.evidence,
        "note": one.reason or f"{one.naive} of {one.parameters} parameters on a naive prior",
    }


def told(rows: Sequence[Row]) -> str:
    """A paragraph a cut-off: how many targets, coverage, skill, the leading verdict then and now."""
    lines = []
    for cutoff in dict.fromkeys(row["cutoff"] for row in rows):
        of = [row for row in rows if row["cutoff"] == cutoff]
        priors = [row for row in of if row["kind"] == "parameter"]
        naive = sum(row["basis"] == "naive" for row in priors)
        known = next(row["note"] for row in of if row["kind"] == "known")
        coverage, firm, *others = [row for row in of if row["kind"] == "score"]
        lines.append(f"{cutoff}: {known}")
        lines.append(f"  {naive} of {len(priors)} parameters on a naive prior; {_scored(coverage)}")
        blind = sum(row["kind"] == "unscored" and row["note"] == BLIND for row in of)
        lines.append(f"  {blind} targets had {BLIND}")
        lines.append(f"  naive priors left out: {_scored(firm)}")
        lines += [f"  {row['subject']}: {_value(row)}" for row in others if row["subject"].startswith("skill")]
        lines += [f"  {row['subject']}: {_then(row)}" for row in of if row["kind"] == "verdict"]
    return "\n".join(lines)


def _scored(row: Row) -> str:
    many = f"{row['targets']} targets scored in {row['clusters']} clusters"
    if row["p50"] is None:
        return f"{many}; {row['note']}"
    return f"{many}; the 80% interval held {row['p50']:.0%} (95%: {row['p10']:.0%} to {row['p90']:.0%})"


def _value(row: Row) -> str:
    stands = f"{row['targets']} targets in {row['clusters']} clusters"
    if row["p50"] is None:
        return f"{row['note']} ({stands})"
    return f"{row['p50']:.2f} (95%: {row['p10']:.2f} to {row['p90']:.2f}; {stands}), {row['note']}"


def _then(row: Row) -> str:
    now = (
        f"today {row['today_verdict']}, P {row['today_probability']:.2f}"
        if row["today_verdict"]
        else "today no verdict"
    )
    if row["verdict"] is None:
        return f"could not be asked: {row['note']}; {now}"
    return f"{row['verdict']}, P {row['probability']:.2f} ({row['note']}); {now}"
