"""What moves a verdict, and what would flip it: one parameter at a time.

Swing: P of the statement with the parameter held at its p10, and at its p90, the others drawn as
they were. Flip: the parameter with the largest swing (and r, wherever it enters) is walked through
its prior; where P crosses a limit of the decision rule, that value would change the verdict. "None"
is an answer too: nothing within the prior's range changes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from scipy.special import ndtr

from bench.claim.definitions import share
from bench.claim.priors import Z90, Array, quantile
from bench.claim.sections import Decision, Statement
from bench.claim.verdict import Finding, finding, ids, limit, true_in, verdict
from bench.claim.world import World, grounds

LEAST = 0.01  # a swing in P below this moves nothing a reader would notice
WALK = np.linspace(-3, 3, 13)  # standard-normal scores of the prior: 0.1% to 99.9%


def influence(drawn: World) -> list[Finding]:
    """Sensitivity and flip rows of every definition and statement, by purpose."""
    result = []
    for key, shares in drawn.shares.items():
        base = _probabilities(drawn, key, shares, drawn.claim.years)
        swings = {name: [_held(drawn, key, name, z) for z in (-Z90, Z90)] for name in _uncertain(drawn, key)}
        walks: dict[str, list[dict[str, float]]] = {}
        for statement in (item for item in drawn.claim.statement if item.name in base):
            now = base[statement.name]
            ends = {n: [end[statement.name] for end in both] for n, both in swings.items()}
            width = {name: abs(high - low) for name, (low, high) in ends.items()}
            ranked = [name for _, name in sorted((-size, name) for name, size in width.items())]
            result += [_swing(drawn, key, statement, name, now, ends[name]) for name in ranked if width[name] >= LEAST]
            for name in dict.fromkeys([*ranked[:1], *(["r"] if "r" in ranked else [])]):
                if name not in walks:
                    walks[name] = [_held(drawn, key, name, z) for z in WALK]
                path = np.array([step[statement.name] for step in walks[name]])
                result.append(_flip(drawn, key, statement, name, now, path))
    return result


def _uncertain(drawn: World, key: str) -> list[str]:
    definition = drawn.claim.definitions[key]
    names = [name for name in definition.parameters if drawn.claim.parameters[name].distribution != "fixed"]
    return [*names, "r"] if definition.needs_rates else names


def _value(drawn: World, name: str, z: float) -> float:
    """The parameter's value at a standard-normal score of its prior; r's, of its draws."""
    if name == "r":
        return float(np.quantile(drawn.draws["r"], ndtr(z)))
    return float(quantile(drawn.claim.parameters[name], np.array([z]))[0])


def _held(drawn: World, key: str, name: str, z: float) -> dict[str, float]:
    """P of every statement with one parameter held at a score of its prior."""
    claim, draws = drawn.claim, drawn.quick
    needed = {statement.year for statement in claim.statement}
    needed |= {statement.year - 1 for statement in claim.statement if statement.test == "rises"}
    years = sorted(needed & set(claim.years))
    draws[name] = np.full_like(draws[name], _value(drawn, name, z))
    return _probabilities(drawn, key, share(claim.definitions[key], draws, years), years)


def _probabilities(drawn: World, key: str, shares: Array, years: Sequence[int]) -> dict[str, float]:
    """P of every statement that this definition answers; `shares` is (years, draws)."""
    claim, result = drawn.claim, {}
    for statement in claim.statement:
        if not statement.definitions or key in statement.definitions:
            true = true_in(statement, shares, years, limit(statement, claim.decision))
            if true is not None:
                result[statement.name] = float(true.mean())
    return result


def _swing(drawn: World, key: str, statement: Statement, name: str, base: float, ends: list[float]) -> Finding:
    low, high = _value(drawn, name, -Z90), _value(drawn, name, Z90)
    note = f"P with {name} at its p10 ({low:.3g}), as drawn, at its p90 ({high:.3g})"
    return finding(
        drawn.claim,
        "sensitivity",
        **_where(drawn, key, statement, name, note),
        p10=ends[0],
        p50=base,
        p90=ends[1],
        unit="probability",
    )


def _flip(drawn: World, key: str, statement: Statement, name: str, base: float, path: Array) -> Finding:
    """The value of `name` nearest its median at which the verdict would be another one."""
    claim = drawn.claim
    now = verdict(base, claim.decision)
    crossing = nearest_crossing(path, now, claim.decision)
    unit = "ratio" if name == "r" else claim.parameters[name].unit
    if crossing is None:
        note = f"{now} for every value of {name} within its prior (0.1% to 99.9%)"
        return finding(claim, "flip", **_where(drawn, key, statement, name, note), unit=unit)
    z, becomes, side = crossing
    value = _value(drawn, name, z)
    note = f"{becomes} with {name} {side} {value:.3g}, the rest as drawn (now {now})"
    return finding(
        claim,
        "flip",
        **_where(drawn, key, statement, name, note),
        p10=_value(drawn, name, -Z90),
        p50=_value(drawn, name, 0.0),
        p90=_value(drawn, name, Z90),
        unit=unit,
        threshold=value,
        probability=base,
        verdict=becomes,
    )


def nearest_crossing(path: Array, now: str, decision: Decision) -> tuple[float, str, str] | None:
    """(score, verdict beyond it, "above" or "below"), nearest the median; None where none differs.

    `path` is P at the scores WALK, joined linearly.
    """
    verdicts = [verdict(float(p), decision) for p in path]
    found = []
    for i, (left, right) in enumerate(pairwise(verdicts)):
        if left == right or now not in (left, right):
            continue
        other = right if left == now else left
        at = decision.holds_at if "holds" in (now, other) else decision.fails_at
        if (now, other) == ("fails", "holds"):
            at = decision.fails_at
        part = (at - path[i]) / (path[i + 1] - path[i])
        z = float(WALK[i] + part * (WALK[i + 1] - WALK[i]))
        found.append((z, other, "above" if left == now else "below"))
    return min(found, key=lambda item: abs(item[0]), default=None)


def _where(drawn: World, key: str, statement: Statement, name: str, note: str) -> Finding:
    """The columns that say which verdict and which parameter a row is about."""
    columns = grounds(drawn, key)
    if name != "r":
        columns["evidence"] = ids(drawn.claim.parameters[name].evidence)
        columns.pop("rests_on", None)
    return {
        **columns,
        "definition": key,
        "subject": f"{statement.name}: {name}",
        "year": statement.year,
        "note": note,
    }
