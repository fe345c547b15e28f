"""The share claim on the eve of a cut-off: the same definitions and statements, priors rebuilt.

A definition stands where each of its parameters has a rule, or is kept because it holds no figure; surveys of figures
that were not out are taken away, and a definition that has none left, or that a plan of a later day makes up, is left
out. Correlations are judgement and are left out too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench import config
from bench.claim.backtest.forecasts import Rows, rules
from bench.claim.backtest.readings import Figures
from bench.claim.backtest.rebuild import Rebuilt
from bench.claim.backtest.spec import Backtest
from bench.claim.definitions import Definition, require_name, share
from bench.claim.priors import Array, Prior, draw
from bench.claim.spec import Claim
from bench.claim.verdict import ids, limit, quantiles, true_in, verdict


@dataclass(frozen=True)
class Verdict:
    """One statement by one definition, as it would have stood; `reason` where it could not stand."""

    definition: str
    statement: str
    year: int
    spread: dict[str, float]
    threshold: float | None
    probability: float | None
    verdict: str | None
    naive: int  # parameters on a naive prior
    parameters: int
    evidence: str
    reason: str = ""


def claim_of(spec: Backtest) -> Claim:
    """The claim of the share section. Raises ConfigError where its names lead nowhere."""
    claim = config.load(Claim, spec.share.claim)
    try:
        for name in spec.share.definitions:
            require_name(name, claim.definitions, "share.definitions", "definition")
        for name in (*spec.share.use, *spec.share.keep):
            require_name(name, claim.parameters, "share.use", "parameter of the claim")
    except ValueError as error:
        raise config.ConfigError(f"configs/backtest.toml: {error}") from None
    return claim


def verdicts(spec: Backtest, claim: Claim, table: Figures, prices: Rows) -> list[Verdict]:
    """Every statement by every definition, from the figures of before a cut-off."""
    rebuilt = rules(spec, table, prices)
    found: list[Verdict] = []
    for key in spec.share.definitions:
        definition = _standing(claim.definitions[key], table)
        priors, naive, missing = _priors(spec, claim, definition, rebuilt)
        reason = f"no rule for {', '.join(missing)}" if missing else ""
        if definition.method == "surveys" and not definition.survey_stands:
            reason = "no survey was published before the cut-off"
        found += _answers(spec, claim, key, definition.definition, priors, naive, reason)
    return found


@dataclass(frozen=True)
class Standing:
    """A definition with the surveys of its day."""

    definition: Definition
    survey_stands: bool

    @property
    def method(self) -> str:
        return self.definition.method


def _standing(definition: Definition, table: Figures) -> Standing:
    """Surveys whose every figure was out."""
    if not definition.survey:
        return Standing(definition, False)
    left = tuple(one for one in definition.survey if set(one.evidence) <= set(table))
    return Standing(replace(definition, survey=left) if left else definition, bool(left))


def _priors(
    spec: Backtest, claim: Claim, standing: Standing, rebuilt: dict[str, Rebuilt | None]
) -> tuple[dict[str, Prior], int, list[str]]:
    """The definition's priors by the claim's own names, how many are naive, and what has no rule."""
    priors: dict[str, Prior] = {}
    naive, missing = 0, []
    for name in standing.definition.parameters:
        found = rebuilt[spec.share.use[name]] if name in spec.share.use else None
        if name in spec.share.keep:
            priors[name] = claim.parameters[name]
        elif found is None:
            missing.append(name)
        else:
            priors[name] = found.prior
            naive += found.naive
    return priors, naive, missing


def _answers(
    spec: Backtest, claim: Claim, key: str, definition: Definition, priors: dict[str, Prior], naive: int, reason: str
) -> list[Verdict]:
    if reason:
        return [
            Verdict(key, s.name, s.year, {}, limit(s, claim.decision), None, None, naive, len(priors), "", reason)
            for s in claim.statement
            if not s.definitions or key in s.definitions
        ]
    values: Array = share(definition, draw(priors, (), spec.draws, spec.seed), claim.years)
    evidence = ids(*(prior.evidence for prior in priors.values()), *(one.evidence for one in definition.survey))
    found = []
    for statement in claim.statement:
        threshold = limit(statement, claim.decision)
        true = true_in(statement, values, claim.years, threshold)
        if true is None or (statement.definitions and key not in statement.definitions):
            continue
        probability = float(true.mean())
        where = quantiles(values[claim.years.index(statement.year)])
        said = verdict(probability, claim.decision)
        found.append(
            Verdict(
                key, statement.name, statement.year, where, threshold, probability, said, naive, len(priors), evidence
            )
        )
    return found


def today(rows: Sequence[dict[str, Any]], claim: str, one: Verdict) -> dict[str, Any] | None:
    """The finding of claims.csv that answers the same now."""
    of = (claim, "verdict", one.definition, one.statement)
    return next((r for r in rows if (r["claim"], r["kind"], r["definition"], r["subject"]) == of), None)
