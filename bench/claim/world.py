"""One claim's draws: every parameter, r, and serving's share of every year by every definition.

Drawn once and read by everything: verdicts, fans, break-evens and sensitivities are different looks
at the same (years x draws) arrays, so they cannot disagree with each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bench.claim import ratio
from bench.claim.definitions import share
from bench.claim.priors import Array, draw
from bench.claim.spec import Claim
from bench.claim.verdict import Finding, counted, ids

QUICK = 10_000  # draws behind rows of single pairs and sensitivities: P to 0.005 is enough there
CANCELS = (
    "one GPU-hour price serves both sides of r and cancels; not where terms or hardware differ, "
    "nor utilisation (availability and load are priors)"
)


@dataclass(frozen=True)
class World:
    """Draws by name, each (draws,); shares by definition, each (years, draws)."""

    claim: Claim
    draws: dict[str, Array]
    shares: dict[str, Array]
    pairs: list[ratio.Pair]  # every pair of rates there is: what the headline r is drawn from
    refused: Counter[str]

    @property
    def quick(self) -> dict[str, Array]:
        """The first draws of everything."""
        return {name: values[:QUICK] for name, values in self.draws.items()}

    def of(self, pairs: Sequence[ratio.Pair]) -> dict[str, Array]:
        """The first draws, with r of these pairs alone."""
        first = self.quick
        mixes = _mixes(self.claim, first)
        count = min(QUICK, self.claim.draws)
        return {**first, **ratio.draw(pairs, mixes, count, self.claim.seed)}


def _mixes(claim: Claim, draws: dict[str, Array]) -> list[ratio.Mix]:
    return [
        ratio.Mix(mix.name, draws[mix.input_output_ratio] * (1 - draws[mix.cache_hit_share]))
        for mix in claim.workload_class
    ]


def world(claim: Claim, rows: Sequence[ratio.Row]) -> World:
    """Draw everything. A definition that needs rates is left out where no pair of rates exists."""
    draws = draw(claim.parameters, claim.correlation, claim.draws, claim.seed)
    found, refused = ratio.rates(rows, {item.row: item.computed for item in claim.cached})
    pairs = ratio.pairs(found, [mix.name for mix in claim.workload_class])
    if pairs:
        draws.update(ratio.draw(pairs, _mixes(claim, draws), claim.draws, claim.seed))
    shares = {
        key: share(definition, draws, claim.years)
        for key, definition in claim.definitions.items()
        if pairs or not definition.needs_rates
    }
    return World(claim, draws, shares, pairs, refused)


def grounds(drawn: World, key: str) -> Finding:
    """What a definition rests on: basis, rests_on, evidence, note, whose accounting by which route, and its priors."""
    claim, definition = drawn.claim, drawn.claim.definitions[key]
    cited = [claim.parameters[name].evidence for name in definition.parameters]
    surveys = [survey.evidence for survey in definition.survey]
    columns = {
        "evidence": ids(definition.evidence, *cited, *surveys),
        **{name: getattr(definition, name) or None for name in ("organisation", "accounting", "route")},
        **counted(claim, read(claim, key)),
    }
    if not definition.needs_rates:
        note = f"{definition.note}; does not depend on r: no throughput row enters"
        return {**columns, "basis": "evidence", "note": note}
    basis = ratio.basis_of(drawn.pairs)
    rows = ids(*(pair.rows for pair in drawn.pairs))
    note = f"{definition.note}; rests on {basis.replace('+', ' and ')} rows; {CANCELS}"
    return {**columns, "basis": basis, "rests_on": rows, "note": note}


def read(claim: Claim, key: str) -> list[str]:
    """The parameters a definition's share by purpose is drawn from; through r, those of the traffic classes too."""
    definition = claim.definitions[key]
    mixes = [n for mix in claim.workload_class for n in (mix.input_output_ratio, mix.cache_hit_share)]
    return [*definition.parameters, *(mixes if definition.needs_rates else ())]
