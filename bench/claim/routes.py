"""The routes kind: what serving costs in a year, from reported spending and from tokens, side by side.

    top-down    USD = what was reported
    bottom-up   USD = computed tokens x 2N x usd_per_gpu_hour / (3600 x FLOP a GPU-second x load)
    disagreement = bottom-up / top-down

    computed tokens = tokens a day x 365 x growth from the day of the count, averaged over the year, x surfaces
                      x (1 + w) / (1 + input:output ratio), or x (1 + w) where output alone was counted
    w = input:output ratio x (1 - cache hits)
    FLOP a GPU-second = that of the rows x tokens_per_gpu_growth ^ (year - the rates' year)

The routes share no input (route_sections.py refuses a file in which they do). Where they differ by more than a factor
of two in the median, one assumption at a time is walked to its p10 and its p90, the rest as drawn; the one that closes
most of the gap (of its logarithm) explains it, with the value at which it alone would close it whole.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.claim import hardware, ratio
from bench.claim.hardware import Hardware
from bench.claim.priors import Array, draw
from bench.claim.ratio import Row
from bench.claim.route_sections import Compared
from bench.claim.spec import Claim
from bench.claim.verdict import Finding, counted, finding, ids, quantiles
from bench.claim.walk import Walk, explained, short

FAR = 2.0  # routes that differ by more have to be explained
RATE, PRICE = "throughput of the rows", "price of a GPU-hour"
USD, SHARE = "USD a year", "serving / (serving + X)"
HOURS = 3600.0


@dataclass(frozen=True)
class Bottom:
    """What the bottom-up side of one comparison is drawn from."""

    item: Compared
    draws: Mapping[str, Array]
    hardware: Hardware
    rates_year: int

    def usd(self) -> Array:
        """USD of serving in the year, shape (draws,)."""
        item, machine = self.item, self.hardware
        use = {name: self.draws[getattr(item, name)] for name in _NUMBERS}
        flop = computed_tokens(item, self.draws) * 2 * use["active_parameters"]
        grown = use["tokens_per_gpu_growth"] ** (item.year - self.rates_year)
        gpu_s = flop / (machine.flop_per_gpu_s * grown) / np.where(machine.busy > 0, use["load"], 1.0)
        return np.asarray(gpu_s / HOURS * machine.usd_per_gpu_hour)


_NUMBERS = ("active_parameters", "load", "tokens_per_gpu_growth")


def inputs(item: Compared, draws: Mapping[str, Array]) -> Array:
    """w: computed input tokens per output token."""
    return draws[item.input_output_ratio] * (1 - draws[item.cache_hit_share])


def computed_tokens(item: Compared, draws: Mapping[str, Array]) -> Array:
    """Tokens computed in the year, input and output, shape (draws,)."""
    tokens = draws[item.tokens_per_day] * 365 * year_mean(draws[item.token_growth], item.year - item.at)
    if item.surfaces:
        tokens = tokens * draws[item.surfaces]
    counted_per_output = 1 + draws[item.input_output_ratio] if item.counts == "all" else 1.0
    return np.asarray(tokens * (1 + inputs(item, draws)) / counted_per_output)


def year_mean(growth: Array, start: float) -> Array:
    """Mean of growth^t over t from `start` to `start` + 1, in years: (g^(s+1) - g^s) / ln g."""
    rate = np.log(growth)
    flat = np.abs(rate) < 1e-9
    safe = np.where(flat, 1.0, rate)
    return np.where(flat, 1.0, (np.exp(safe * (start + 1)) - np.exp(safe * start)) / safe)


def answer(claim: Claim, rates_of: Claim, rows: Sequence[Row], as_of: datetime.date) -> list[Finding]:
    """Every comparison; `rates_of`: the share claim that says what of rows with cached tokens was computed."""
    assert claim.served is not None, "spec.py refuses a routes claim without it"
    draws = draw(claim.parameters, claim.correlation, claim.draws, claim.seed)
    rates, _ = ratio.rates(rows, {item.row: item.computed for item in rates_of.cached})
    prices = hardware.contract_prices(claim.served, as_of)
    found = hardware.cases(rates, prices)
    result = [_unpriced(claim, rates, prices)]
    for item in claim.compared:
        result += _top_down(claim, item, draws)
        if not found:
            note = f"no served rate on a GPU with a price of term {claim.served.term}: bottom-up is unanswered"
            result.append(finding(claim, "finding", subject=f"{item.organisation} {item.year}", note=note))
            continue
        machine = hardware.draw(found, prices, inputs(item, draws), claim.draws, claim.seed)
        bottom = Bottom(item, draws, machine, claim.served.rates_year)
        grounds = {"basis": ratio.basis_of(found), "rests_on": ids(*(case.rows for case in found))}
        result += _bottom_up(claim, bottom, grounds) + _apart(claim, bottom, grounds)
    return result


def _unpriced(claim: Claim, rates: Sequence[ratio.Rate], prices: Mapping[str, hardware.Triangle]) -> Finding:
    assert claim.served is not None
    without = sorted({rate.gpu for rate in rates if rate.phase != "train_step" and rate.gpu not in prices})
    stand = ", ".join(f"{gpu} at the price of {other}" for gpu, other in claim.served.priced_as.items())
    note = f"served rates left out, no price of term {claim.served.term}: {', '.join(without) or 'none'}; {stand}"
    return finding(claim, "finding", subject="GPUs without a price", note=f"{note}; {claim.served.note}")


def _row(claim: Claim, item: Compared, names: Sequence[str], **fields: object) -> Finding:
    cited = ids(*(claim.parameters[name].evidence for name in names))
    where = {"definition": item.organisation, "organisation": item.organisation, "year": item.year, "evidence": cited}
    return finding(claim, "route", **{**where, **counted(claim, names), **fields})


def _sides(claim: Claim, item: Compared, usd: Array, draws: Mapping[str, Array], **fields: object) -> list[Finding]:
    """USD, and the share it comes to beside the same X."""
    side, names = str(fields["route"]), item.top_down if fields["route"] == "top_down" else item.bottom_up
    shown = {**fields, "note": item.note if names == item.bottom_up else claim.parameters[item.spending].source}
    share = usd / (usd + draws[item.other])
    words = side.replace("_", "-")
    return [
        _row(claim, item, names, **shown, **quantiles(usd), subject=words, unit=USD),
        _row(claim, item, [*names, item.other], **shown, **quantiles(share), subject=f"share, {words}", unit=SHARE),
    ]


def _top_down(claim: Claim, item: Compared, draws: Mapping[str, Array]) -> list[Finding]:
    return _sides(claim, item, draws[item.spending], draws, basis="evidence", route="top_down")


def _bottom_up(claim: Claim, bottom: Bottom, grounds: Finding) -> list[Finding]:
    return _sides(claim, bottom.item, bottom.usd(), bottom.draws, **grounds, route="bottom_up")


def _apart(claim: Claim, bottom: Bottom, grounds: Finding) -> list[Finding]:
    """bottom-up / top-down; beyond a factor of two, what explains it."""
    item = bottom.item
    names = [*item.top_down, *item.bottom_up]
    ratios = bottom.usd() / bottom.draws[item.spending]
    middle = float(np.median(ratios))
    said = {**grounds, "unit": "bottom-up / top-down", "threshold": 1.0}
    if 1 / FAR <= middle <= FAR:
        note = f"within a factor of {FAR:g} in the median"
        return [_row(claim, item, names, **said, **quantiles(ratios), subject="disagreement", note=note)]
    best = explained([_walk(claim, bottom, name) for name in (*names, RATE, PRICE)], middle)
    own = [best.name] if best.name in claim.parameters else []
    why = {**grounds, "p10": best.low, "p50": middle, "p90": best.high, "threshold": best.closed_at}
    why["unit"] = "bottom-up / top-down"
    note = f"more than a factor of {FAR:g} apart; {best.told}"
    ends = (
        f"the median with {best.name} at its p10 ({short(best.at_low)}), as drawn, at its p90 ({short(best.at_high)})"
    )
    unit = claim.parameters[best.name].unit if own else {RATE: "FLOP a GPU-second", PRICE: "USD a GPU-hour"}[best.name]
    return [
        _row(claim, item, names, **said, **quantiles(ratios), subject="disagreement", note=note),
        _row(claim, item, own, **why, subject=f"explained: {best.name}", note=f"{ends}, {unit}"),
    ]


def _walk(claim: Claim, bottom: Bottom, name: str) -> Walk:
    """One assumption to be walked: its values by score, and the median disagreement with it held at one."""

    def with_value(value: float) -> float:
        held = np.full(claim.draws, value)
        if name in (RATE, PRICE):
            field = "flop_per_gpu_s" if name == RATE else "usd_per_gpu_hour"
            changed = replace(bottom, hardware=replace(bottom.hardware, **{field: held}))
        else:
            changed = replace(bottom, draws={**bottom.draws, name: held})
        return float(np.median(changed.usd() / changed.draws[bottom.item.spending]))

    if name in (RATE, PRICE):
        machine = bottom.hardware
        return Walk.of_draws(name, machine.flop_per_gpu_s if name == RATE else machine.usd_per_gpu_hour, with_value)
    return Walk.of_prior(name, claim.parameters[name], with_value)
