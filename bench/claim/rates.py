"""What the throughput rows say by themselves: r of every pair, and the break-even it implies.

Serving has paid as much as X once the tokens computed in serving, per token trained, reach

    D_inf / D_tr = 3 x multiple / r_as_paid        (3: the FLOP identity 6 N D_tr = 2 N D_inf),

a law by model, GPU, precision of either side and workload class, each a column of its row, and beside
it the median over that 3: what measurement adds. A pair with a modelled side has rows of basis
`modelled`, as wide as the model is wrong about GPUs left out; no verdict rests on them. Here with
multiple = 1 against the final run and rho against all R&D, and r_as_paid = r x availability /
load, because a GPU-hour is paid whether it works or waits. Rows of pairs show which model, GPU,
precision and traffic would tip first; the headline row is the mixture the verdicts are drawn from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bench.claim.definitions import Definition
from bench.claim.priors import Array
from bench.claim.ratio import Pair, basis_of
from bench.claim.verdict import Finding, finding, ids, quantiles
from bench.claim.world import CANCELS, World, grounds
from bench.results import BASES

FLOP_IDENTITY = 3.0  # served tokens per trained token at which 2 N D_inf = 6 N D_tr
TOKENS = "computed served tokens per trained token"


def rates(drawn: World) -> list[Finding]:
    """What was left out, r of the headline and of every pair, break-even by definition and pair."""
    if not any(definition.needs_rates for definition in drawn.claim.definitions.values()):
        return []
    result = [_left_out(drawn)]
    if not drawn.pairs:
        missing = "no trained and served rate of one model on one GPU: what needs r is unanswered"
        return [*result, finding(drawn.claim, "finding", subject="r", note=missing), *_modelled(drawn)]
    rule = f"headline: {len(drawn.pairs)} pairs, equal weight for every (gpu, model)"
    result.append(_rate(drawn, "r", drawn.pairs, drawn.draws["r"], f"{rule}; {CANCELS}"))
    result += _break_evens(drawn, "headline r", drawn.pairs, drawn.draws)
    for basis in BASES:
        same = [pair for pair in drawn.pairs if pair.basis == basis]
        if same:
            note = "every pair of this basis, whether or not the headline rests on it"
            result.append(_rate(drawn, f"r of {basis} rows", same, drawn.of(same)["r"], note))
    for pair in drawn.pairs:
        draws = drawn.of([pair])
        result.append(_rate(drawn, f"r: {pair.name}", [pair], draws["r"], "both sides fully loaded"))
        result += _break_evens(drawn, pair.name, [pair], draws)
    return result + _modelled(drawn)


def _modelled(drawn: World) -> list[Finding]:
    rows = [row for pair in drawn.modelled for row in _break_evens(drawn, pair.name, [pair], drawn.of([pair]))]
    return [{**row, "note": "a side is modelled, not measured: enters no verdict"} for row in rows]


def _rate(drawn: World, subject: str, pairs: Sequence[Pair], r: Array, note: str) -> Finding:
    columns = {**_on(pairs), **quantiles(r), "unit": "ratio", "note": note}
    return finding(drawn.claim, "finding", subject=subject, **columns)


def _on(pairs: Sequence[Pair]) -> Finding:
    return {"basis": basis_of(pairs), "rests_on": ids(*(pair.rows for pair in pairs))}


def _left_out(drawn: World) -> Finding:
    counts = ", ".join(f"{count} {reason}" for reason, count in sorted(drawn.refused.items()))
    note = f"rows that never enter a claim about GPUs: {counts or 'none'}"
    return finding(drawn.claim, "finding", subject="throughput rows left out", note=note)


def _break_evens(drawn: World, name: str, pairs: Sequence[Pair], draws: Mapping[str, Array]) -> list[Finding]:
    """One row for every definition that reads r; of one pair, what it is a law of stands in columns."""
    law = _law(pairs[0]) if len(pairs) == 1 else {}
    result = []
    for key, definition in drawn.claim.definitions.items():
        if definition.needs_rates:
            ends = quantiles(break_even(definition, draws))
            columns = {**grounds(drawn, key), **_on(pairs), **law, **ends, "over_identity": ends["p50"] / FLOP_IDENTITY}
            said = {"definition": key, "subject": name, "unit": TOKENS, "threshold": FLOP_IDENTITY}
            result.append(finding(drawn.claim, "break_even", **columns, **said))
    return result


def _law(pair: Pair) -> Finding:
    return {
        **{"model": pair.train.model, "gpu": pair.train.gpu, "workload_class": pair.traffic},
        **{"precision_trained": pair.train.precision, "precision_served": pair.serve[0].precision},
    }


def break_even(definition: Definition, draws: Mapping[str, Array]) -> Array:
    """Computed served tokens per trained token at which serving = X; shape (draws,)."""
    use = {role: draws[name] for role, name in definition.use.items()}
    idle = draws["r_training_busy"] * np.log(use["availability"])
    idle = idle - draws["r_serving_busy"] * np.log(use["load"])
    return np.asarray(3 * use.get("multiple", 1.0) / (draws["r"] * np.exp(idle)))
