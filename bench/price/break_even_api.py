"""From which load renting whole instances is cheaper than buying the same tokens from an API.

A deployment serves requests of its own mix (input, cached input and output tokens of its row). A unit (rentals.py)
costs c USD a second and serves k requests a second: its rate at the fleet's utilisation, as in cost.py. The API takes p
USD a request. Renting is a staircase, buying a line:

    rent(load) = ceil(load / k) * c             buy(load) = load * p

On step n renting wins from n * c / p to n * k. With b = c / p:

    b >= k          never: even a full unit costs more; renting would have to be b / k times cheaper or faster
    b < k           first from b; always from (N - 1) * b, N the least whole number with N * b <= (N - 1) * k

The load is taken as steady: a fleet that follows a day pays more (fleet.py). A rate at maximum load (MLPerf's Offline)
keeps no promise of latency, which an API's does in some measure: such rows make renting look better than it is. List
prices are what customers pay, not what serving costs their sellers.
"""

from __future__ import annotations

import datetime
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.price.api_prices import ApiPrice, standing_api
from bench.price.book import Provider, providers, standing
from bench.price.cost import SECONDS_PER_HOUR, Utilisation
from bench.price.imports import BELOW_BEST
from bench.price.rentals import Rental, rentals

Row = dict[str, Any]
SECONDS_PER_DAY = 24 * SECONDS_PER_HOUR
HAIR = 1e-9  # equal but for rounding is equal
COLUMNS: dict[str, tuple[str, str]] = {
    "row": ("s", "throughput row that is served"),
    "basis": ("s", "measured, imported or modelled"),
    "model": ("s", "model key"),
    "gpu": ("s", "GPU key"),
    "n_gpus": ("i", "GPUs of the deployment"),
    "precision": ("s", "of the row"),
    "workload": ("s", "of the row"),
    "input_tokens": ("f", "a request of the row"),
    "cached_input_tokens": ("f", "of those, spared by a prefix cache; blank: none, or not told"),
    "output_tokens": ("f", "likewise"),
    "provider": ("s", "who rents the instances"),
    "term": ("s", "as in configs/providers"),
    "level": ("s", "retail or contract"),
    "gpu_count": ("i", "GPUs an instance"),
    "instances_per_unit": ("i", "the fewest that hold whole deployments"),
    "usd_per_unit_hour": ("f", "a unit paid whole"),
    "utilisation": ("f", "share of a unit's time that works"),
    "unit_requests_per_s": ("f", "what a unit serves at that utilisation"),
    "rent_usd_per_request": ("f", "at full units"),
    "seller": ("s", "whose API"),
    "sold_as": ("s", "what it is called there"),
    "api_as_of": ("s", "date of the list price"),
    "api_confidence": ("s", "high, medium or low: a price whose page nobody told may outlive the offer"),
    "buy_usd_per_request": ("f", "the row's mix at that list price"),
    "answer": ("s", "from a load on, or never"),
    "missing_factor": ("f", "never: how many times cheaper or faster renting would have to be"),
    "first_requests_per_s": ("f", "the load from which renting is first cheaper"),
    "first_share": ("f", "the same over what one unit serves"),
    "first_tokens_per_day": ("f", "the same in tokens in and out"),
    "always_requests_per_s": ("f", "the load from which it stays cheaper"),
    "always_units": ("i", "units rented there"),
    "quote": ("s", "what must be said where the row is quoted"),
}


@dataclass(frozen=True)
class BreakEven:
    """Where renting becomes cheaper, in requests/s. Blank both: never, and `missing_factor` >= 1 says by how much."""

    first: float | None
    always: float | None
    units: int | None  # rented at `always`
    missing_factor: float | None


def break_even(usd_per_unit_s: float, unit_requests_per_s: float, usd_per_request: float) -> BreakEven:
    """The answer for one unit and one list price; see above. Raises ValueError for a figure that is not positive."""
    if not min(usd_per_unit_s, unit_requests_per_s, usd_per_request) > 0:
        given = (usd_per_unit_s, unit_requests_per_s, usd_per_request)
        raise ValueError(f"break_even: expected three positive numbers, got {given}")
    level, full = usd_per_unit_s / usd_per_request, unit_requests_per_s
    if level >= full * (1 - HAIR):
        return BreakEven(None, None, None, max(level / full, 1.0))
    step = max(math.ceil(full / (full - level) - HAIR), 2)  # N; the hair takes back what the division rounded up
    return BreakEven(level, (step - 1) * level, step - 1, None)


def requests_per_s(row: Mapping[str, Any]) -> float | None:
    """Requests a second of a serving row with a known mix, whichever tokens its rate counts; None otherwise."""
    per_request = {"output": row["output_tokens"], "input": row["input_tokens"]}
    if row["input_tokens"] is not None and row["output_tokens"]:
        per_request["total"] = row["input_tokens"] + row["output_tokens"]
    tokens = per_request.get(row["token_kind"])
    return row["system_tokens_per_s"] / tokens if tokens else None


def served(rows: Iterable[Row]) -> list[Row]:
    """Rows that say what a deployment can serve: whole serving on a GPU, mix known, not idle, best of its sweep.

    What was offered in an open loop is no bound, but MLPerf's Server rate (a row with a quote) is: the most that keeps
    its promise of latency.
    """
    skip = {"idle_included", BELOW_BEST}
    return [
        row
        for row in rows
        if row["phase"] == "serve"
        and row["device"] == "cuda"
        and row["gpu"]
        and row["input_tokens"] is not None
        and row["output_tokens"]
        and requests_per_s(row)
        and not (skip if row["quote"] else skip | {"open_loop"}) & set((row["flags"] or "").split("+"))
    ]


def break_evens(
    rows: Iterable[Row],
    as_of: datetime.date,
    book: Sequence[Provider] | None = None,
    prices: Iterable[ApiPrice] | None = None,
    utilisation: Utilisation | None = None,
) -> list[Row]:
    """Rows of COLUMNS: every served row, rental of its GPU and list price of its model that stand at `as_of`."""
    there = standing(providers().values() if book is None else book, as_of)
    utilisation = utilisation or Utilisation.load()
    sold: dict[str, list[ApiPrice]] = defaultdict(list)
    for price in standing_api(as_of) if prices is None else prices:
        sold[price.model or ""].append(price)
    made = []
    for row in served(rows):
        for rental in rentals(there, row) if row["model"] in sold else ():
            made += [_row(row, rental, price, utilisation.of(row)) for price in sold[row["model"]]]
    return made


def _row(row: Row, rental: Rental, price: ApiPrice, share: float) -> Row:
    per_s = requests_per_s(row)
    assert per_s is not None
    unit = per_s * rental.replicas(row["n_gpus"]) * share
    hour = rental.usd_per_unit_hour(row["n_gpus"])
    buy = price.usd(row["input_tokens"], row["cached_input_tokens"] or 0.0, row["output_tokens"])
    found = break_even(hour / SECONDS_PER_HOUR, unit, buy)
    tokens = row["input_tokens"] + row["output_tokens"]
    same = dict.fromkeys(COLUMNS) | {name: row[name] for name in COLUMNS if name in row}
    return same | {
        "provider": rental.provider,
        "term": rental.term,
        "level": rental.level,
        "gpu_count": rental.gpu_count,
        "instances_per_unit": rental.instances(row["n_gpus"]),
        "usd_per_unit_hour": hour,
        "utilisation": share,
        "unit_requests_per_s": unit,
        "rent_usd_per_request": hour / SECONDS_PER_HOUR / unit,
        "seller": price.seller,
        "sold_as": price.sold_as,
        "api_as_of": price.as_of,
        "api_confidence": price.confidence,
        "buy_usd_per_request": buy,
        "answer": "never" if found.first is None else "from",
        "missing_factor": found.missing_factor,
        "first_requests_per_s": found.first,
        "first_share": None if found.first is None else found.first / unit,
        "first_tokens_per_day": None if found.first is None else found.first * tokens * SECONDS_PER_DAY,
        "always_requests_per_s": found.always,
        "always_units": found.units,
    }
