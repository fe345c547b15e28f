"""The blend kind: is one portfolio of sellers cheaper than another, and does it fail less?

    cheaper          total(left) < total(right)       USD per needed GPU-hour, expected loss included
    more available   serving lost(left) < serving lost(right)
    fewer blackouts  hours with less than half of serving left, likewise
    value at which both cost the same = (bill(left) + delay(left) - bill(right) - delay(right))
                                        / (serving lost(right) - serving lost(left))

Each is a share of draws. The last says what a lost serving hour would have to be worth: below it the dearer portfolio's
spare and manager cost more than the outages they prevent. What moves a verdict, influence.py says.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr

from bench import config
from bench.claim.influence import Factor, Member, Question, influence, parameters
from bench.claim.priors import Array, Kept, draw, quantile
from bench.claim.sections import Blend
from bench.claim.spec import Claim
from bench.claim.verdict import Finding, counted, finding, ids, quantiles, verdict
from bench.price.blend import (
    MARKET,
    OUTAGES_READ,
    PARTS,
    Outcome,
    commitments,
    outcome,
    price_of,
    price_stream,
    unserved,
)
from bench.price.book import Range
from bench.price.draws import triangular
from bench.price.owned import HOURS_PER_YEAR
from bench.price.portfolio import Portfolio
from bench.price.reliability import Reliability

SAMPLES, QUICK = 512, 2_500  # behind Sobol indices and walks: every draw enumerates the states of all sellers
HOUR, NEEDED = "USD per GPU-hour", "USD per needed GPU-hour"
PATH = ("total", "serving lost", "blackouts")  # what is told of years beside the one compared
SAID = {
    "capacity": "shares at their prices",
    "spare": "capacity bought on top, so that serving survives what it must",
    "manager": "the multi-cloud manager: tools, people, transfer",
    "stranded": "committed and not used",
    "loss": "serving lost and work delayed, at their values",
}


def answer(claim: Claim, as_of: datetime.date = datetime.date.max) -> list[Finding]:
    """Every finding of a blend claim, of the portfolios known at `as_of`. Raises ConfigError where one lacks the year.

    A comparison with a portfolio that was not known then has a finding that says so.
    """
    world = World.of(claim)
    known = {key: portfolio for key, portfolio in world.book.items() if portfolio.as_of <= as_of}
    blends = [item for item in claim.blend if {item.left, item.right} <= set(known)]
    late = [item for item in claim.blend if item not in blends]
    said = f"no such prices were known on {as_of}"
    result = [finding(claim, "finding", subject=item.name, note=said) for item in late]
    asked = {(key, item.year) for item in blends for key in (item.left, item.right)}
    for key, portfolio in known.items():
        for year in sorted({*claim.years, *(item.year for item in blends)}):
            rows = _portfolio(world, portfolio, year, world.outcome(key, year))
            result += [row for row in rows if (key, year) in asked or row["subject"] in PATH]
    for item in blends:
        compared = _compared(world, item)
        held = {row["subject"]: row for row in compared if row["kind"] == "verdict"}
        result += compared + influence(question(world, item, held))
    return result


@dataclass(frozen=True)
class World:
    """A claim's portfolios, their sellers' outages and the draws; outcomes are computed once each."""

    claim: Claim
    book: Mapping[str, Portfolio]
    outages: Mapping[str, Reliability]
    x: Mapping[str, Array]
    made: dict[tuple[str, int], Outcome]

    @classmethod
    def of(cls, claim: Claim) -> World:
        """Everything the claim names, loaded and drawn."""
        book = {key: config.load(Portfolio, key) for item in claim.blend for key in (item.left, item.right)}
        sellers = {holding.provider for portfolio in book.values() for holding in portfolio.holding}
        outages = {name: config.load(Reliability, name) for name in sorted(sellers)}
        drawn = draw(claim.parameters, claim.correlation, claim.draws, claim.seed)
        return cls(claim, book, outages, {role: drawn[name] for role, name in claim.assumptions.items()}, {})

    def outcome(self, key: str, year: int) -> Outcome:
        """A portfolio's year."""
        if (key, year) not in self.made:
            urgent = _sized_for(self.claim)
            self.made[key, year] = outcome(self.book[key], year, self.x, urgent, self.claim.seed, self.outages)
        return self.made[key, year]


def _sized_for(claim: Claim) -> float:
    """The share of urgent load that spare is sized for: the median of its prior."""
    return float(quantile(claim.parameters[claim.assumptions["urgent_share"]], np.zeros(1))[0])


def _cited(world: World, *portfolios: Portfolio) -> dict[str, Any]:
    """What portfolios rest on: their own figures, prices, outages, and the claim's assumptions."""
    claim = world.claim
    cited = [claim.parameters[name].evidence for name in claim.assumptions.values()]
    for portfolio in portfolios:
        cited.append(portfolio.evidence)
        for holding in portfolio.holding:
            cited += [holding.usd_per_gpu_hour.evidence, world.outages[holding.provider].evidence]
            if holding.commitment_usd_per_year:
                cited.append(holding.commitment_usd_per_year.evidence)
        cited += [plan.capacity_gw.evidence for plan in portfolio.year if plan.capacity_gw]
    return {"basis": "evidence", "evidence": ids(*cited)}


def _portfolio(world: World, portfolio: Portfolio, year: int, made: Outcome) -> list[Finding]:
    """What one portfolio costs in one year, part by part, and how much it fails to serve."""
    proxies = sorted(h.provider for h in portfolio.holding if h.proxy and portfolio.plan(year).shares.get(h.provider))
    proxy = f"; proxy: prices of {', '.join(proxies)}" if proxies else ""
    where = {**_cited(world, portfolio), "definition": portfolio.key, "year": year}
    rows: list[tuple[str, Array, str, str]] = [(part, made.parts[part], NEEDED, SAID[part]) for part in PARTS]
    rows += [
        ("total", made.total, NEEDED, f"bill and expected loss{proxy}"),
        ("price of a provisioned hour", made.price, HOUR, f"manager included{proxy}"),
        ("cost of a served hour", made.per_served_hour, HOUR, "the bill over the hours that were served"),
        ("spare capacity", np.full(1, made.spare), "fraction of what is needed", f"survives: {portfolio.survive}"),
        ("serving lost", made.lost_hours, "hours a year", "of all serving; expected over a year"),
        ("availability of serving", 1 - made.lost_hours / HOURS_PER_YEAR, "fraction of the year", "the same"),
        ("blackouts", made.blackout_hours, "hours a year", "less than half of serving is left; expected over a year"),
        ("other work delayed", made.delayed_hours, "hours a year", "of all other work; expected over a year"),
    ]
    return [
        finding(world.claim, "blend", **where, **quantiles(values), subject=subject, unit=unit, note=note)
        for subject, values, unit, note in rows
    ]


def _compared(world: World, item: Blend) -> list[Finding]:
    claim, portfolios = world.claim, (world.book[item.left], world.book[item.right])
    left, right = (world.outcome(portfolio.key, item.year) for portfolio in portfolios)
    proxies = sorted({h.provider for p in portfolios for h in p.holding if h.proxy})
    proxy = f"; proxy: prices of {', '.join(proxies)}" if proxies else ""
    where = {**_cited(world, *portfolios), "definition": portfolios[0].level, "year": item.year}
    cheaper, steadier = left.total < right.total, left.lost_hours < right.lost_hours
    dark = left.blackout_hours / right.blackout_hours
    ratio = f"{item.left} / {item.right}"
    made = (
        (f"{item.name}_cheaper", cheaper, left.total / right.total, ratio, 1.0, "cost with expected loss"),
        (f"{item.name}_more_available", steadier, left.lost_hours / right.lost_hours, ratio, 1.0, "serving lost"),
        (f"{item.name}_fewer_blackouts", dark < 1, dark, ratio, 1.0, "hours with less than half of serving"),
        (item.name, cheaper & steadier, left.total - right.total, NEEDED, 0.0, "both at once; the difference in cost"),
    )
    result = []
    for subject, true, values, unit, threshold, said in made:
        p = float(true.mean())
        result.append(
            finding(
                claim,
                "verdict",
                **where,
                **quantiles(values),
                subject=subject,
                unit=unit,
                threshold=threshold,
                probability=p,
                verdict=verdict(p, claim.decision),
                note=f"{said}: {item.note}{proxy}",
                **counted(claim, claim.assumptions.values()),
            )
        )
    return [*result, _worth_it(world, item, where, left, right)]


def _worth_it(world: World, item: Blend, where: dict[str, Any], left: Outcome, right: Outcome) -> Finding:
    """What a lost serving hour must be worth for `left` to cost no more, where it loses less of them."""
    u, value = world.x["urgent_share"], world.x["usd_per_lost_serving_hour"]
    lost = [made.lost_hours * u / HOURS_PER_YEAR for made in (left, right)]
    rest = [made.total - part * value for made, part in zip((left, right), lost, strict=True)]
    steadier = lost[0] < lost[1]
    worth = np.maximum(0, (rest[0] - rest[1])[steadier] / (lost[1] - lost[0])[steadier])
    anyway = float(np.mean(worth == 0)) if worth.size else 0.0
    assumed = float(np.median(value))
    note = (
        f"at which {item.left} and {item.right} cost the same, in the {steadier.mean():.0%} of draws in which the "
        f"first loses less serving; in {anyway:.0%} of those it is cheaper whatever an hour is worth; assumed here: "
        f"{assumed:.3g} USD"
    )
    ends = quantiles(worth) if worth.size else {}
    subject = f"{item.name}: value of a lost serving hour"
    unit = "USD per served GPU-hour"
    return finding(world.claim, "blend", **where, **ends, subject=subject, unit=unit, threshold=assumed, note=note)


def question(world: World, item: Blend, rows: Mapping[str, Finding]) -> Question:
    """What moves a comparison: assumptions, sellers' prices (one market: one factor), outages, commitments.

    Margins: -ln of left over right; of both at once, the lesser of the two.
    """
    claim, portfolios = world.claim, [world.book[key] for key in (item.left, item.right)]
    kept = Kept()

    def margins(scores: Mapping[str, Array]) -> dict[str, Array]:
        x = {role: kept.value(claim.parameters, name, scores) for role, name in claim.assumptions.items()}
        known = claim.assumptions["urgent_share"] in scores and np.ptp(x["urgent_share"]) == 0
        urgent = float(x["urgent_share"][0]) if known else _sized_for(claim)  # who knows its load buys spare for it

        def made(portfolio: Portfolio) -> Outcome:
            plan = portfolio.plan(item.year)
            streams = [name for seller in plan.held for name in world.outages[seller].streams]
            reads = [*(x[role] for role in OUTAGES_READ), *(scores[name] for name in streams if name in scores)]
            away = kept.of(portfolio.key, reads, lambda: unserved(portfolio, plan, x, urgent, scores, world.outages))
            return outcome(portfolio, item.year, x, urgent, scores, world.outages, away)

        left, right = map(made, portfolios)
        cheaper, steadier = np.log(right.total / left.total), np.log(right.lost_hours / left.lost_hours)
        dark = np.log(right.blackout_hours / left.blackout_hours)
        both = np.minimum(cheaper, steadier)
        tails = {"_cheaper": cheaper, "_more_available": steadier, "_fewer_blackouts": dark, "": both}
        return {f"{item.name}{tail}": margin for tail, margin in tails.items()}

    factors = parameters(claim, list(claim.assumptions.values())) + _of_sellers(world, portfolios, item.year)
    return Question(claim, factors, margins, rows, claim, SAMPLES, QUICK)


def _of_sellers(world: World, portfolios: Sequence[Portfolio], year: int) -> list[Factor]:
    """Factors of what the portfolios and configs/reliability state as ranges."""
    spans: dict[str, Range] = {}
    priced: dict[str, Range] = {}
    for portfolio in portfolios:
        plan = portfolio.plan(year)
        for name in plan.held:
            priced[name] = portfolio.of(name).usd_per_gpu_hour
            spans |= world.outages[name].streams
        spans |= commitments(portfolio, plan)
    prices = [Member(price_of(name), span.unit, _value(span), span.evidence) for name, span in priced.items()]
    streams = [price_stream(name) for name in (MARKET, *priced)]
    single = {
        name: Factor(name, (name,), (Member(name, span.unit, _value(span), span.evidence),))
        for name, span in spans.items()
    }
    uncertain = [factor for name, factor in single.items() if spans[name].low < spans[name].high]
    return [Factor("prices of the sellers", tuple(streams), tuple(prices)), *uncertain]


def _value(span: Range) -> Callable[[float], float]:
    return lambda z: float(triangular((span.low, span.value, span.high), np.array([ndtr(z)]))[0])
