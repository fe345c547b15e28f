"""What values a parameter may have, by what reads it: a positive number, or a part of one.

A logarithm of a growth of 0, or log-odds of 40 that meant 40%, is no number: a file with such a prior does not load.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from bench.claim.priors import Prior
from bench.config import require

if TYPE_CHECKING:
    from bench.claim.spec import Claim

INSIDE = ("base_share", "known", "share")  # roles and fields whose parameter is a part of one, neither 0 nor 1
WORKING = ("load", "availability")  # a part of one, not 0
PARTS = (  # a part of one, ends included
    *("cache_hit_share", "scenario", "choice", "inference_work", "moved", "delivered", "price_correlation"),
    *("urgent_share", "common_to_seller", "common_to_all", "movable_share"),
)
MAY_BE_ZERO = ("manager_overhead", "failover_hours", "usd_per_lost_serving_hour", "usd_per_delayed_hour")
ANY = ("drift", "error of surveys")  # steps of log-odds
Read = tuple[str, str, str]  # key in the file, role, parameter


def require_domains(claim: Claim) -> None:
    """Raises ValueError at the first parameter that can leave the domain of what reads it."""
    for key, role, name in _reads(claim):
        prior = claim.parameters[name]
        low, high = _support(prior)
        part = role in (*INSIDE, *WORKING, *PARTS)
        inside = low >= 0 and (not part or high <= 1)
        if low == high and (low == 0 or high == 1):  # the very end, in every draw
            inside &= role in (*PARTS, *(MAY_BE_ZERO if low == 0 else WORKING)) or not (part or low == 0)
        expected = "a part of one" if part else "a positive number"
        said = f"{expected}, as {key} reads it, got {low:g} to {high:g} ({prior.distribution})"
        require(inside or role in ANY, f"parameters.{name}", said)


def _support(prior: Prior) -> tuple[float, float]:
    """The least and the most a draw can be."""
    inf = float("inf")
    ends = {"lognormal": (0.0, inf), "logitnormal": (0.0, 1.0), "normal": (-inf, inf)}
    low, high = ends.get(prior.distribution, (prior.numbers[0], prior.numbers[-1]))
    least, most = prior.clip or (low, high)
    return min(max(low, least), most), max(min(high, most), least)


def _named(key: str, roles: Sequence[tuple[str, str | None]]) -> Iterator[Read]:
    yield from ((key, role, name) for role, name in roles if name)


def _reads(claim: Claim) -> Iterator[Read]:
    for key, definition in claim.definitions.items():
        where = f"definitions.{key}"
        surveys = definition.method == "surveys"
        for role, name in definition.use.items():
            yield where, "error of surveys" if surveys and role == "error" else role, name
        yearly = [(role, name) for role, series in definition.by_year.items() for name in series.values()]
        yield from _named(where, yearly)
        yield from _named(where, [("known", name) for name in definition.known.values()])
        yield from _named(where, [("inference_work", definition.inference_work)])
    for mix in claim.workload_class:
        roles = [("input_output_ratio", mix.input_output_ratio), ("cache_hit_share", mix.cache_hit_share)]
        yield from _named(f"workload_class {mix.name}", roles)
    yield from _named("printed", [("compute_usd", row.compute_usd) for row in claim.printed])
    for side in claim.side:
        yield from _named(f"side {side.name}", [("price", name) for name in (*side.multiply, *side.divide)])
    yield from _named("comparison", [("moved", item.moved) for item in claim.comparison])
    for item in claim.delivery:
        roles = [(role, getattr(item, role)) for role in ("planned", "delivered", "other", "share")]
        yield from _named(f"delivery {item.name}", roles)
    yield from _named("growth", [("growth", n) for g in claim.growth for n in (*g.parameters, *g.beside.values())])
    for route in claim.compared:
        where = f"compared {route.organisation} {route.year}"
        roles = [("cache_hit_share", route.cache_hit_share), ("load", route.load)]
        yield from _named(where, roles)
        yield from _named(where, [("amount", n) for n in (*route.top_down, *route.bottom_up, route.other)])
    yield from _named("assumptions", list(claim.assumptions.items()))
