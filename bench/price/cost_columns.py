"""costs.csv in columns: many throughput rows under many prices at once, a numpy array a column.

A row and a price are told once each; which of them meet is two arrays of places, and everything else is taken by
those places or computed from what was taken, elementwise. 100,000 rows meet about 2.6 million prices: as a dict a
line that is minutes and gigabytes, as columns it is seconds (results/money_speed.csv).

Text and counts are arrays of objects, so that None stays None; money is float64, where NaN says blank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Objects = NDArray[np.object_]
Array = NDArray[np.float64]
Places = NDArray[np.intp]
Columns = dict[str, NDArray[Any]]
Number = float | Array
TOKENS = 1e6
SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True)
class Bills:
    """Who is billed for what: one entry a line of costs.csv in every array."""

    rate: Array  # tokens/s of the whole deployment, in the kind of tokens that is priced
    low: Array  # its 95% interval; NaN where there is none
    high: Array
    utilisation: Array
    idle_known: NDArray[np.bool_]
    count: Array  # GPUs, or vCPUs, of the deployment
    usd: Array  # per GPU (vCPU) and hour
    usd_low: Array
    usd_high: Array
    sold: Array  # how many are sold together


def usd_per_million_tokens(
    usd_per_gpu_hour: Number, n_gpus: Number, system_tokens_per_s: Number, utilisation: Number
) -> Number:
    """USD per million tokens, elementwise. Raises ValueError where a rate or a share makes no sense."""
    if not np.all(system_tokens_per_s > 0):
        raise ValueError(f"system_tokens_per_s: expected a positive rate, got {system_tokens_per_s}")
    if not np.all((utilisation > 0) & (utilisation <= 1)):
        raise ValueError(f"utilisation: expected a share in (0, 1], got {utilisation}")
    seconds = SECONDS_PER_HOUR * system_tokens_per_s * utilisation
    return usd_per_gpu_hour * n_gpus * TOKENS / seconds


def whole_instances(n: Number, sold_together: Number) -> Number:
    """GPUs (or vCPUs) paid for when instances are only sold whole."""
    return -(-n // sold_together) * sold_together


def objects(values: Sequence[Any]) -> Objects:
    """A column of Python objects, None among them."""
    made = np.empty(len(values), dtype=object)
    made[:] = values
    return made


def floats(values: Sequence[float | None]) -> Array:
    """A column of numbers: NaN for None, and for 0, which is no rate."""
    return np.array([value or np.nan for value in values], dtype=float)


def within(counts: Places) -> tuple[Places, Places]:
    """Of groups of these sizes, one after the other: each element's group, and its place in it."""
    group = np.repeat(np.arange(len(counts)), counts)
    return group, np.arange(len(group)) - np.repeat(np.cumsum(counts) - counts, counts)


def meetings(devices: Sequence[Any], offers: Mapping[Any, Sequence[int]], views: Places) -> tuple[Places, Places]:
    """(view, offer) of every line: row by row, offers in their order, each row's views under each offer.

    `devices`: each row's key into `offers`; `views`: how many ways each row's tokens are priced.
    """
    flat = np.array([place for places in offers.values() for place in places], dtype=np.intp)
    sizes = {device: len(places) for device, places in offers.items()}
    begins = dict(zip(sizes, np.cumsum([0, *sizes.values()]).tolist(), strict=False))
    many = np.array([sizes[device] for device in devices], dtype=np.intp)
    row, place = within(many)
    offer = flat[np.array([begins[device] for device in devices], dtype=np.intp)[row] + place]
    pair, view = within(views[row])
    return (np.cumsum(views) - views)[row[pair]] + view, offer[pair]


def money(bills: Bills) -> Columns:
    """The columns that are computed; cost.py's docstring has the formulas. Raises ValueError where a rate is none."""

    def usd(per_hour: Array, count: Array, rate: Array) -> Array:
        return np.asarray(usd_per_million_tokens(per_hour, count, rate, bills.utilisation))

    headline = usd(bills.usd, bills.count, bills.rate)
    whole = usd(bills.usd, np.asarray(whole_instances(bills.count, bills.sold)), bills.rate)
    ranged = ~np.isnan(bills.low) & ~np.isnan(bills.high) | (bills.usd_low < bills.usd_high)
    low, high = (np.where(np.isnan(end), bills.rate, end) for end in (bills.low, bills.high))
    used = np.where(bills.idle_known, headline * bills.utilisation, np.nan)
    return {
        "x_system_tokens_per_s": bills.rate,
        "PricingQuantity": headline / bills.usd,
        "ContractedUnitPrice": bills.usd,
        "EffectiveCost": headline,
        "x_usd_per_gpu_hour": bills.usd,
        "x_utilisation": bills.utilisation,
        "x_usd_per_million_tokens": headline,
        "x_usd_per_million_tokens_low": np.where(ranged, usd(bills.usd_low, bills.count, high), np.nan),
        "x_usd_per_million_tokens_high": np.where(ranged, usd(bills.usd_high, bills.count, low), np.nan),
        "x_usd_per_million_tokens_whole_instance": whole,
        "ContractedCost": headline,
        "x_usage_based_usd": used,
        "x_idle_time_usd": headline - used,
        "x_idle_gpus_usd": whole - headline,
        "x_idle_usd": whole - used,
        "x_allocation_based_usd": whole,
    }


def lines(columns: Columns) -> Iterator[dict[str, Any]]:
    """Each line as a dict, blank as None."""
    values = []
    for column in columns.values():
        listed = column.tolist()
        if column.dtype.kind == "f" and np.isnan(column).any():
            listed = [None if value != value else value for value in listed]
        values.append(listed)
    names = list(columns)
    return (dict(zip(names, line, strict=True)) for line in zip(*values, strict=True))
