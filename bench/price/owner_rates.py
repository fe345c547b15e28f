"""Our owner's cost beside what others publish, and which input makes the difference: computed, not asserted.

    closed by an input = 1 - |ours with that input theirs - theirs| / |ours - theirs|

configs/owner_rates.csv holds published costs of ownership per GPU-hour with the inputs their publisher states; `ours`
names the provider whose [[owned]] of that GPU stands beside. Inputs are exchanged one at a time, the others drawn as
they were: a stated one is set to theirs, one they keep to themselves to the end of our range that comes nearer to
their cost. The one that closes most is named, with the value that would close the gap whole if it alone differed.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq

from bench import config, results
from bench.price import owned
from bench.price.book import Owned, newest, providers
from bench.price.owned import Array

COLUMNS: dict[str, tuple[str, str]] = {
    "id": ("s", "key of the row"),
    "publisher": ("s", "who says so"),
    "owner": ("s", "hyperscaler or neocloud"),
    "gpu": ("s", "GPU key"),
    "usd_per_gpu_hour": ("f", "their cost of ownership, per provisioned GPU-hour"),
    "ours": ("s", "provider whose [[owned]] of that GPU is held beside it"),
    "it_usd_per_gpu": ("f", "their machine, USD per GPU; blank, as any input below: not published"),
    "it_life_years": ("f", "over which they pay it back"),
    "power_kw_per_gpu": ("f", "their all-in power"),
    "housing_and_energy_share": ("f", "part of their cost that is rent and electricity"),
    "capex_usd_per_gw": ("f", "machines and building of 1 GW"),
    "gpus_per_gw": ("f", "GPUs of that"),
    "facility_life_years": ("f", "over which they pay the building back"),
    "operations_usd_per_gw_year": ("f", "without energy"),
    "as_of": ("s", "date, YYYY-MM-DD"),
    "source": ("s", "address of the figure"),
    "note": ("s", "where the inputs are from"),
}
SHARE = "housing_and_energy_share"
NO_GAP = 0.01  # of their cost: nothing to explain


@dataclass(frozen=True)
class Exchange:
    """One input exchanged: at what, whether they state it, our median cost then, the part of the gap it closes."""

    name: str
    ours: float
    at: float
    stated: bool
    usd_per_gpu_hour: float
    closes: float


@dataclass(frozen=True)
class Beside:
    """One published rate and ours: median, 80% interval, every exchange, best first."""

    published: Mapping[str, Any]
    low: float
    middle: float
    high: float
    exchanges: tuple[Exchange, ...]
    closed_at: float | None  # the named input's value that closes the gap alone; None: none within a factor of ten


def beside(as_of: datetime.date) -> list[Beside]:
    """Every row of configs/owner_rates.csv known at `as_of` beside ours. Raises ConfigError or ResultsError."""
    path = config.CONFIGS / "owner_rates.csv"
    rows = results.read_rows(path, COLUMNS) if path.is_file() else []
    book = providers()
    found = []
    for number, row in enumerate(rows, start=2):
        where = f"{path}: line {number}"
        for name in ("id", "publisher", "gpu", "usd_per_gpu_hour", "ours", "as_of", "source"):
            if not row[name]:
                raise config.ConfigError(f"{where}: {name}: blank; every published rate has one")
        owners = [own for own in book[row["ours"]].owned if own.gpu == row["gpu"]] if row["ours"] in book else []
        if not owners:
            raise config.ConfigError(f"{where}: ours: expected a provider with [[owned]] of {row['gpu']}")
        known = newest(owners, as_of)
        if known and datetime.date.fromisoformat(row["as_of"]) <= as_of:
            found.append(_beside(row, known[0]))
    return found


def _beside(row: Mapping[str, Any], own: Owned) -> Beside:
    x = owned.inputs(own)
    low, middle, high = (float(v) for v in np.percentile(np.asarray(owned.usd_per_gpu_hour(x)), (10, 50, 90)))
    theirs = row["usd_per_gpu_hour"]
    if abs(middle - theirs) < NO_GAP * theirs:
        return Beside(row, low, middle, high, (), None)
    made = sorted(_exchanges(row, own, x, middle), key=lambda one: -one.closes)
    return Beside(row, low, middle, high, tuple(made), _closed_at(x, made[0], theirs))


def _exchanges(row: Mapping[str, Any], own: Owned, x: Mapping[str, Array], middle: float) -> Iterator[Exchange]:
    """Each input by itself: theirs where stated, else whichever end of ours comes nearer."""
    theirs = row["usd_per_gpu_hour"]

    def exchanged(name: str, at: float, stated: bool) -> Exchange:
        cost = median_with(x, name, at)
        return Exchange(name, ours_of(x, name), at, stated, cost, 1 - abs(cost - theirs) / abs(middle - theirs))

    stated = {name: row[name] for name in COLUMNS if isinstance(row[name], float) and name != "usd_per_gpu_hour"}
    for name, at in stated.items():
        yield exchanged(name, at, True)
    for name, span in own.ranges.items():
        if name not in stated:
            ends = [exchanged(name, end, False) for end in (span.low, span.high)]
            yield max(ends, key=lambda one: one.closes)


def ours_of(x: Mapping[str, Array], name: str) -> float:
    """The median of our own figure for an input; the machine of a gigawatt and shares of the cost are computed."""
    if name == SHARE:
        parts = owned.parts(x)
        return float(np.median((parts["housing"] + parts["energy"]) / sum(parts.values())))
    if name == "it_usd_per_gpu" and name not in x:
        return float(np.median(x["capex_usd_per_gw"] * x["it_share"] / x["gpus_per_gw"]))
    return float(np.median(x[name]))


def median_with(x: Mapping[str, Array], name: str, at: float) -> float:
    """Our median USD per GPU-hour with one input held at a value."""
    if name == SHARE:
        parts = owned.parts(x)
        return float(np.median((parts["machines"] + parts["operations"]) / (1 - at)))
    return float(np.median(np.asarray(owned.usd_per_gpu_hour({**x, name: np.asarray(at)}))))


def _closed_at(x: Mapping[str, Array], named: Exchange, theirs: float) -> float | None:
    """The value of the named input at which our median is theirs, within a factor of ten of ours."""
    low, high = named.ours / 10, named.ours * 10 if named.name != SHARE else 0.99
    ends = [median_with(x, named.name, end) - theirs for end in (low, high)]
    if ends[0] * ends[1] > 0:
        return None
    return float(brentq(lambda at: median_with(x, named.name, at) - theirs, low, high, rtol=1e-4))
