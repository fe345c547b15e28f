"""What a portfolio of sellers costs and how often it fails: spare capacity paid for against load that is lost.

Of one GPU-hour needed, `urgent` u is serving, which cannot wait; the rest (training, research) can, and makes room
when capacity is away. With a part x of it away at worst, the spare k that keeps serving whole is

    (1 + k)(1 - x) >= u            k = max(0, u / (1 - x) - 1),   x the largest site, or the largest seller

sized once, at the median of u. Over the states of the sellers (reliability.py), D the part away, per needed hour:

    serving lost   E[ u F + (1 - F/D) max(0, u - (1 + k)(1 - D)) ],   F = D min(1, failover hours / outage hours)
    work delayed   E[ (1 - u) - what capacity is left for it ]

that is: for the time a failover takes, what stood on the failed part is lost; after it, what the rest cannot carry.
A blackout is time in which, after failover, less than half of serving is left.

    USD per needed GPU-hour = capacity + spare + manager + stranded commitments + expected loss

    capacity    sum of share * price; of several sellers' a movable part at the lowest price instead
    spare       k times that
    manager     overhead of running several sellers, a part of the bill; nothing for one
    stranded    commitment - what is used of it
    loss        serving lost * its value + work delayed * its value

Draws hold what nobody knows exactly; each is an expectation over the year's states, not one year's luck. Credits under
service agreements are left out: 10 to 30% of the hour's price, claimed after the fact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from bench import config
from bench.price.book import Range
from bench.price.draws import Array, Seed, normals, triangular
from bench.price.owned import HOURS_PER_YEAR, draw
from bench.price.portfolio import Plan, Portfolio
from bench.price.reliability import Reliability, states

ASSUMPTIONS = {  # what a claim has to state; name -> meaning
    "urgent_share": "part of the load that cannot wait",
    "failover_hours": "until load of a failed site or seller runs elsewhere",
    "common_to_seller": "part of a site's unavailability in which all the seller's sites are away",
    "common_to_all": "part of a seller's unavailability in which every seller is away",
    "manager_overhead": "cost of running several sellers, a part of the bill",
    "movable_share": "part of several sellers' capacity that is bought where it is cheapest",
    "usd_per_lost_serving_hour": "value of a served GPU-hour that is lost",
    "usd_per_delayed_hour": "value of a GPU-hour of other work that is delayed",
    "price_correlation": "of sellers' prices of one chip: one market",
}
Outages = Mapping[str, Reliability]
MARKET = "the market"
OUTAGES_READ = ("urgent_share", "failover_hours", "common_to_seller", "common_to_all")
PARTS = ("capacity", "spare", "manager", "stranded", "loss")  # of a needed GPU-hour, USD


@dataclass(frozen=True)
class Outcome:
    """One portfolio in one year. Arrays over draws; USD per needed GPU-hour, hours a year."""

    parts: dict[str, Array]  # by PARTS
    spare: float  # k
    price: Array  # USD per provisioned GPU-hour, manager included
    lost_hours: Array  # hours a year of all serving that are lost
    delayed_hours: Array  # hours a year of all other work that are delayed
    blackout_hours: Array  # hours a year with less than half of serving left
    served: Array  # part of the needed GPU-hours that are served

    @property
    def bill(self) -> Array:
        """What is paid: everything but the loss."""
        return np.asarray(sum(usd for name, usd in self.parts.items() if name != "loss"))

    @property
    def total(self) -> Array:
        """What is paid and what is lost."""
        return self.bill + self.parts["loss"]

    @property
    def per_served_hour(self) -> Array:
        """The bill over the hours that were served."""
        return self.bill / self.served


def spare(portfolio: Portfolio, plan: Plan, urgent: float) -> float:
    """Capacity bought on top of what is needed, a fraction of it, so that `urgent` survives what it must."""
    if portfolio.survive == "none":
        return 0.0
    spread = {name: portfolio.of(name).sites if portfolio.survive == "site" else 1 for name in plan.held}
    worst = max(share / spread[name] for name, share in plan.held.items())
    if worst >= 1:
        raise config.ConfigError(f"configs/portfolios/{portfolio.key}.toml: sites: expected two at least to lose one")
    return max(0.0, urgent / (1 - worst) - 1)


def outcome(
    portfolio: Portfolio,
    year: int,
    x: Mapping[str, Array],
    urgent: float,
    seed: Seed,
    outages: Outages | None = None,
    away: tuple[Array, Array, Array] | None = None,
) -> Outcome:
    """The year of a portfolio under draws of ASSUMPTIONS; `urgent`: the share its spare is sized for.

    `outages`: by provider, those of configs/reliability unless given; `away`: what `unserved` gives, where it is known.
    Raises ConfigError where there is no such year.
    """
    plan = portfolio.plan(year)
    count = len(x["urgent_share"])
    k = spare(portfolio, plan, urgent)
    prices = {name: _price(portfolio, name, x, count, seed) for name in plan.held}
    lost, delayed, dark = away or unserved(portfolio, plan, x, urgent, seed, outages)
    several = float(len(plan.held) > 1)
    moved, overhead = several * x["movable_share"], several * x["manager_overhead"]
    mean = (1 - moved) * sum(share * prices[name] for name, share in plan.held.items())
    mean = mean + moved * np.minimum.reduce(list(prices.values()))
    parts = {
        "capacity": mean,
        "spare": k * mean,
        "manager": overhead * (1 + k) * mean,
        "stranded": _stranded(portfolio, plan, prices, k, count, seed),
        "loss": lost * x["usd_per_lost_serving_hour"] + delayed * x["usd_per_delayed_hour"],
    }
    u = x["urgent_share"]
    return Outcome(
        parts=parts,
        spare=k,
        price=mean * (1 + overhead),
        lost_hours=lost / u * HOURS_PER_YEAR,
        delayed_hours=delayed / np.maximum(1 - u, 1e-9) * HOURS_PER_YEAR,
        blackout_hours=dark * HOURS_PER_YEAR,
        served=1 - lost - delayed,
    )


def _price(portfolio: Portfolio, provider: str, x: Mapping[str, Array], count: int, seed: Seed) -> Array:
    """USD per GPU-hour of a seller: a triangle, correlated with the others' through one market."""
    span = portfolio.of(provider).usd_per_gpu_hour
    if span.low == span.high:
        return np.full(count, span.value)
    if not isinstance(seed, int) and price_of(provider) in seed:  # held
        return triangular((span.low, span.value, span.high), np.asarray(ndtr(seed[price_of(provider)])))
    rho = x["price_correlation"]
    market, own = (normals(price_stream(name), count, seed) for name in (MARKET, provider))
    z = np.sqrt(rho) * market + np.sqrt(1 - rho) * own
    return triangular((span.low, span.value, span.high), np.asarray(ndtr(z)))


def price_stream(name: str) -> str:
    """The stream of a seller's own normal, or of the MARKET's."""
    return f"price of {name}"


def price_of(provider: str) -> str:
    """The score of a seller's price, market and own together, where somebody holds it."""
    return f"usd_per_gpu_hour of {provider}"


def commitments(portfolio: Portfolio, plan: Plan) -> dict[str, Range]:
    """The ranges behind what is committed, by stream; none where nothing is."""
    found: dict[str, Range] = {}
    for holding in portfolio.holding:
        if holding.commitment_usd_per_year is not None and plan.capacity_gw and portfolio.gpus_per_gw:
            spans = (plan.capacity_gw, portfolio.gpus_per_gw, holding.commitment_usd_per_year)
            found |= dict(zip(_streams(plan, holding.provider), spans, strict=True))
    return found


def _streams(plan: Plan, provider: str) -> tuple[str, str, str]:
    return f"capacity {plan.year}", "gpus_per_gw", f"commitment {provider}"


def _stranded(portfolio: Portfolio, plan: Plan, prices: Mapping[str, Array], k: float, count: int, seed: Seed) -> Array:
    """What is committed beyond what is used, USD per needed GPU-hour; a seller without a share is committed too."""
    left = np.zeros(count)
    for holding in portfolio.holding:
        if holding.commitment_usd_per_year is None:
            continue
        assert plan.capacity_gw is not None and portfolio.gpus_per_gw is not None, "portfolio.py refuses it"
        capacity, per_gw, owes = _streams(plan, holding.provider)
        gpus = draw(capacity, plan.capacity_gw, count, seed) * draw(per_gw, portfolio.gpus_per_gw, count, seed)
        owed = draw(owes, holding.commitment_usd_per_year, count, seed)
        used = np.asarray((1 + k) * plan.shares.get(holding.provider, 0.0)) * prices.get(holding.provider, 0.0)
        left += np.maximum(0, owed / (gpus * HOURS_PER_YEAR) - used)
    return left


def unserved(
    portfolio: Portfolio, plan: Plan, x: Mapping[str, Array], urgent: float, seed: Seed, outages: Outages | None = None
) -> tuple[Array, Array, Array]:
    """Serving lost and other work delayed (parts of the needed GPU-hours), and blackouts (part of the time).

    Expectations over the sellers' states. Reads of `x` OUTAGES_READ alone.
    """
    u, count = x["urgent_share"], len(x["urgent_share"])
    k = spare(portfolio, plan, urgent)
    outages = outages or {name: config.load(Reliability, name) for name in plan.held}
    drawn = {name: outages[name].draws(count, seed) for name in plan.held}
    failing = {name: np.minimum(1, x["failover_hours"] / hours) for name, (_, hours) in drawn.items()}
    sites = {name: portfolio.of(name).sites for name in plan.held}
    away = {name: q for name, (q, _) in drawn.items()}
    lost, delayed, dark = np.zeros(count), np.zeros(count), np.zeros(count)
    for part, p in states(sites, away, x["common_to_seller"], x["common_to_all"]):
        down = sum(share * part[name] for name, share in plan.held.items())
        if not down:
            continue
        moving = sum(share * part[name] * failing[name] for name, share in plan.held.items() if part[name])
        capacity = (1 + k) * (1 - down)
        short = np.maximum(0, u - capacity)
        lost += p * (u * moving + (1 - moving / down) * short)
        delayed += p * ((1 - u) - np.clip(capacity - u, 0, 1 - u))
        dark += p * (capacity < u / 2)
    return lost, delayed, dark
