"""One claim's draws: every parameter, r, and serving's share of every year by every definition.

Drawn once and read by everything: verdicts, fans, break-evens and sensitivities are different looks
at the same (years x draws) arrays, so they cannot disagree with each other. Drawn in blocks, because
what fits a core's cache is several times faster than what does not, and by two threads, which numpy
lets run side by side: every draw has its place in its stream, so neither changes a number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from bench.claim import ratio
from bench.claim.definitions import share
from bench.claim.priors import Array, Kept, correlated, normals
from bench.claim.spec import Claim
from bench.claim.verdict import Finding, counted, ids

BLOCK = 16_000  # draws at once: 128 KB an array
THREADS = 2
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
    modelled: Sequence[ratio.Pair] = ()  # pairs with a modelled side: their break-evens stand beside, no draw is theirs

    def of(self, pairs: Sequence[ratio.Pair]) -> dict[str, Array]:
        """The first draws, with r of these pairs alone."""
        first = {name: values[:QUICK] for name, values in self.draws.items()}
        mixes = _mixes(self.claim, first)
        count = min(QUICK, self.claim.draws)
        return {**first, **ratio.draw(pairs, mixes, count, self.claim.seed)}


def inputs(
    claim: Claim, pairs: Sequence[ratio.Pair], scores: Mapping[str, Array], names: Iterable[str], kept: Kept
) -> dict[str, Array]:
    """Values of the parameters `names`, and of r, at scores that are correlated already; each (draws,).

    `scores`: standard normals by parameter (a fixed one needs none) and of ratio.STREAMS where there are pairs.
    """
    values = {name: kept.value(claim.parameters, name, scores) for name in names}
    if not pairs:
        return values
    read = [name for mix in claim.workload_class for name in (mix.input_output_ratio, mix.cache_hit_share)]
    reads = [scores[name] for name in (*ratio.STREAMS, *read) if name in scores]
    count = len(reads[0])
    return values | kept.of("r", reads, lambda: ratio.draw(pairs, _mixes(claim, values), count, scores))


def _mixes(claim: Claim, draws: Mapping[str, Array]) -> list[ratio.Mix]:
    return [
        ratio.Mix(mix.name, draws[mix.input_output_ratio] * (1 - draws[mix.cache_hit_share]))
        for mix in claim.workload_class
    ]


def world(claim: Claim, rows: Sequence[ratio.Row], modelled: Sequence[ratio.Row] = ()) -> World:
    """Draw everything. A definition that needs rates is left out where no pair of rates exists.

    `modelled` rows complete pairs whose break-even is told, and enter no verdict (bench/modelled/rows.py says why).
    """
    computed, classes = {item.row: item.computed for item in claim.cached}, [mix.name for mix in claim.workload_class]
    found, refused = ratio.rates(rows, computed)
    pairs = ratio.pairs(found, classes)
    both = ratio.pairs(ratio.rates([*rows, *modelled], computed)[0], classes) if modelled else []
    answered = {key: item for key, item in claim.definitions.items() if pairs or not item.needs_rates}
    shares = {key: np.empty((len(claim.years), claim.draws)) for key in answered}
    names = [*claim.parameters, *(ratio.STREAMS if pairs else ())]

    def block(begin: int) -> None:
        part = slice(begin, begin + BLOCK)
        scores = {name: values[part] for name, values in streams.items()}
        values = inputs(claim, pairs, correlated(scores, claim.correlation), claim.parameters, Kept())
        for name, value in zip(streams, values.values(), strict=True):
            streams[name][part] = value  # in place: nobody needs the normals any more
        for key, definition in answered.items():
            shares[key][:, part] = share(definition, values, claim.years)

    with ThreadPoolExecutor(THREADS) as pool:
        streams = dict(zip(names, pool.map(lambda name: normals(name, claim.draws, claim.seed), names), strict=True))
        list(pool.map(block, range(0, claim.draws, BLOCK)))
    draws = dict(zip([*claim.parameters, *(ratio.DRAWN if pairs else ())], streams.values(), strict=True))
    return World(claim, draws, shares, pairs, refused, [pair for pair in both if pair.basis == "modelled"])


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
