"""What moves a verdict, and what would flip it.

A verdict is P(margin > 0), the margin being how far a draw lies from the threshold: log-odds of a share less those of
its threshold, the logarithm of a ratio of prices. What moves it most is told by Sobol indices of the margin (sobol.py)
and not of true or false. Both cross the threshold together, but the margin's variance is there where P is 0 or 1 and
true or false have none, and far better known where P is near them. On this scale routes add up terms, so little of it
is interaction. The inputs are the independent standard normals before the copula: parameters that move together are
one factor, and so is r, with the pair it is drawn from and both noises.

For each parameter of the three factors of the largest total order:

    flip          walked through its prior, the others as drawn: where P crosses a limit of the decision rule, that
                  value would change the verdict; "none" is an answer too
    sensitivity   P with it at its p10 and at its p90, which says in which direction it moves P

A parameter of a set is held by itself, the others of its set as drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from bench.claim.priors import Z90, Array, correlated, normals, quantile, together
from bench.claim.sections import Decision
from bench.claim.sobol import CONFIDENCE, SAMPLES, Index, indices, unsettled
from bench.claim.spec import Claim
from bench.claim.verdict import Finding, finding, ids, verdict

TOP = 3  # factors named
LEAST = 0.01  # a total order below this is no row
QUICK = 10_000  # draws behind a walk: P to 0.005
WALK = np.linspace(-3, 3, 13)  # standard-normal scores of the prior: 0.1% to 99.9%
STEPS, CLOSE, NEAR = 16, 0.005, 0.01  # a limit is looked for until P is as close to it, or the score known as near
SHARE = "part of the margin's variance"
PLACES = ("first", "second", "third")


@dataclass(frozen=True)
class Member:
    """One input that can be held: its value at a standard-normal score of its prior."""

    name: str
    unit: str
    value: Callable[[float], float]
    evidence: Sequence[str] = ()


@dataclass(frozen=True)
class Factor:
    """Inputs that move together: independent normals by name, and what of it can be held."""

    name: str
    streams: tuple[str, ...]
    members: tuple[Member, ...]


@dataclass(frozen=True)
class Question:
    """Verdicts as functions of their inputs.

    `margins`: scores by name, correlated, each (draws,), to margins by subject, each (draws,). A member is held by
    giving all draws its score under its name. `rows`: the verdict's columns by subject, `probability` among them.
    """

    claim: Claim
    factors: Sequence[Factor]
    margins: Callable[[Mapping[str, Array]], Mapping[str, Array]]
    rows: Mapping[str, Finding]
    priors: Claim  # whose parameters and correlations; a table's words have those of its share claim
    samples: int = SAMPLES  # Sobol's N
    draws: int = QUICK  # behind each step of a walk


def parameters(claim: Claim, names: Sequence[str]) -> list[Factor]:
    """Factors of parameters; a fixed one is none, those that are correlated are one."""
    uncertain = [name for name in dict.fromkeys(names) if claim.parameters[name].distribution != "fixed"]
    sets = together(uncertain, claim.correlation)
    return [Factor(" + ".join(names), names, tuple(_parameter(claim, name) for name in names)) for names in sets]


def _parameter(claim: Claim, name: str) -> Member:
    prior = claim.parameters[name]
    return Member(name, prior.unit, lambda z: float(quantile(prior, np.array([z]))[0]), prior.evidence)


def influence(asked: Question) -> list[Finding]:
    """Rows of kind sobol, flip and sensitivity for every verdict of a question."""

    def margins(scores: Mapping[str, Array]) -> Mapping[str, Array]:
        return asked.margins(correlated(scores, asked.priors.correlation))

    factors = {factor.name: factor for factor in asked.factors}
    if not factors:
        return []
    claim = asked.claim
    found = indices({name: factor.streams for name, factor in factors.items()}, margins, claim.seed, asked.samples)
    walk, result = Walk(asked), []
    for subject, ranked in found.items():
        row = asked.rows[subject]
        for place, index in enumerate(ranked):
            if index.total >= LEAST:
                result.append(_sobol(asked, row, ranked, place, factors[index.factor]))
        for index in ranked[:TOP]:
            for member in factors[index.factor].members if index.total >= LEAST else ():
                where = _where(row, subject, member, index)
                result.append(_flip(claim, where, member, row["probability"], walk.over(subject, member)))
                result.append(_swing(claim, where, member, walk.ends(subject, member)))
    return result


class Walk:
    """P of every subject with one member held, at each score once."""

    def __init__(self, asked: Question) -> None:
        count = min(asked.draws, asked.claim.draws)
        streams = [name for factor in asked.factors for name in factor.streams]
        drawn = {name: normals(name, asked.claim.draws, asked.claim.seed)[:count] for name in streams}
        self.asked = asked
        self.scores = correlated(drawn, asked.priors.correlation)
        self.held: dict[tuple[str, float | None], dict[str, float]] = {}

    def at(self, name: str, z: float | None) -> dict[str, float]:
        """P by subject with a member at a score; None: as drawn."""
        if (name, z) not in self.held:
            count = len(next(iter(self.scores.values())))
            scores = self.scores if z is None else {**self.scores, name: np.full(count, z)}
            made = self.asked.margins(scores)
            self.held[name, z] = {subject: float(np.mean(margin > 0)) for subject, margin in made.items()}
        return self.held[name, z]

    def over(self, subject: str, member: Member) -> Callable[[float], float]:
        """P with the member at a score."""
        return lambda z: self.at(member.name, z)[subject]

    def ends(self, subject: str, member: Member) -> tuple[float, float, float]:
        """P with the member at its p10, as drawn, at its p90."""
        low, high = (self.at(member.name, z)[subject] for z in (-Z90, Z90))
        return low, self.at("", None)[subject], high


def _where(row: Finding, subject: str, member: Member, index: Index) -> Finding:
    """The columns that say which verdict and which parameter a row is about."""
    same: dict[str, Any] = {name: row[name] for name in ("definition", "year", "basis")}
    if member.evidence or not row["rests_on"]:
        same["evidence"] = ids(member.evidence)
    else:
        same |= {"rests_on": row["rests_on"], "evidence": row["evidence"]}
    return {**same, "subject": f"{subject}: {member.name}", "total_order": index.total}


def _sobol(asked: Question, row: Finding, ranked: Sequence[Index], place: int, factor: Factor) -> Finding:
    index, other = ranked[place], unsettled(ranked, place)
    order = f"its place beside {other} is not settled" if other else "its place is settled"
    note = f"{place + 1} of {len(ranked)} factors, N = {asked.samples}, intervals {CONFIDENCE:.0%}: {order}"
    return finding(
        asked.claim,
        "sobol",
        **{name: row[name] for name in ("definition", "year", "basis")},
        evidence=ids(*(member.evidence for member in factor.members)),
        subject=f"{row['subject']}: {index.factor}",
        unit=SHARE,
        first_order=index.first,
        first_order_interval=index.first_interval,
        total_order=index.total,
        total_order_interval=index.total_interval,
        note=note,
    )


def _swing(claim: Claim, where: Finding, member: Member, p: tuple[float, float, float]) -> Finding:
    low, high = member.value(-Z90), member.value(Z90)
    note = f"P with {member.name} at its p10 ({low:.3g}), as drawn, at its p90 ({high:.3g})"
    ends = dict(zip(("p10", "p50", "p90"), p, strict=True))
    return finding(claim, "sensitivity", **where, **ends, unit="probability", note=note)


def _flip(claim: Claim, where: Finding, member: Member, base: float, p: Callable[[float], float]) -> Finding:
    """The value nearest the median at which the verdict would be another one."""
    now = verdict(base, claim.decision)
    path = np.array([p(z) for z in WALK.tolist()])
    crossing = nearest_crossing(path, now, claim.decision, p)
    ends = {name: member.value(z) for name, z in (("p10", -Z90), ("p50", 0.0), ("p90", Z90))}
    if crossing is None:
        held = " or ".join(dict.fromkeys(verdict(float(one), claim.decision) for one in path))
        as_drawn = "" if held == now else f"; {now} as drawn"
        note = f"{held} for every value of {member.name} within its prior (0.1% to 99.9%){as_drawn}"
        return finding(claim, "flip", **where, **ends, unit=member.unit, probability=base, note=note)
    z, becomes, side = crossing
    value = member.value(z)
    note = f"{becomes} with {member.name} {side} {value:.3g}, the rest as drawn (now {now})"
    said = {"threshold": value, "probability": base, "verdict": becomes, "note": note}
    return finding(claim, "flip", **where, **ends, unit=member.unit, **said)


def nearest_crossing(
    path: Array, now: str, decision: Decision, p: Callable[[float], float] | None = None
) -> tuple[float, str, str] | None:
    """(score, verdict beyond it, "above" or "below"), nearest the median; None where none differs.

    `path` is P at the scores WALK; between two of them a limit is where `p` reaches it, or a straight line without `p`.
    """
    found = []
    for i, (left, right) in enumerate(pairwise(path.tolist())):
        low, high = sorted((left, right))
        for limit, beyond in ((decision.fails_at, "fails"), (decision.holds_at, "holds")):
            inside = low < limit <= high if beyond == "holds" else low <= limit < high
            if not inside or now not in (beyond, "undecided"):
                continue
            z = _reaches(limit, (float(WALK[i]), left), (float(WALK[i + 1]), right), p)
            on_right = (right > left) == (beyond == "holds")  # where the verdict is `beyond`
            becomes = _past(beyond, z, p, decision) if now == beyond else beyond
            found.append((z, becomes, "above" if on_right == (now == "undecided") else "below"))
    return min(found, key=lambda item: abs(item[0]), default=None)


def _past(now: str, z: float, p: Callable[[float], float] | None, decision: Decision) -> str:
    """What a verdict becomes at a score where it stops: the other one at once only where P jumps over both limits."""
    around = [verdict(p(z + step), decision) for step in (-2 * NEAR, 2 * NEAR)] if p else []
    return next((other for other in around if other not in (now, "undecided")), "undecided")


def _reaches(
    limit: float, start: tuple[float, float], end: tuple[float, float], p: Callable[[float], float] | None
) -> float:
    """The score between two, (score, P) each, at which P is `limit`: a straight line, tightened while P is off it."""
    z = start[0]
    for step in range(STEPS):
        (z0, p0), (z1, p1) = start, end
        z = z0 + (limit - p0) / (p1 - p0) * (z1 - z0) if step % 2 == 0 else (z0 + z1) / 2
        if p is None or z1 - z0 < NEAR:
            break
        there = p(z)
        if abs(there - limit) < CLOSE:
            break
        start, end = ((z, there), end) if (there < limit) == (p0 < limit) else (start, (z, there))
    return z
