"""What a million tokens cost over a day whose load rises and falls: static, autoscaled and perfect fleets.

For every served row (break_even_api.served) and load curve, the mean loads of configs/autoscaling.toml at the median
rental of each level; and where one seller lists a commitment beside its price on demand, the autoscaled fleet on the
reserved base that makes it cheapest. Lines are USD per million tokens in and out together:

    usage + idle + start-up = what is paid

A unit's capacity is its row's rate: headroom is the autoscaler's here, so the fleet's utilisation of pricing.toml does
not enter and `x_usd_per_million_tokens` of costs.csv is another figure.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench import config
from bench.price.book import Provider, providers, standing
from bench.price.break_even_api import requests_per_s, served
from bench.price.fleet import Day, autoscaled, perfect, reserved_base, static
from bench.price.load_curve import HOUR_S, Autoscaler, LoadCurve
from bench.price.rentals import Rental, middle, rentals
from bench.price.serving_cost import LEVELS

Row = dict[str, Any]
MILLION = 1e6
COLUMNS: dict[str, tuple[str, str]] = {
    "row": ("s", "throughput row that is served"),
    "basis": ("s", "measured, imported or modelled"),
    "model": ("s", "model key"),
    "gpu": ("s", "GPU key"),
    "n_gpus": ("i", "GPUs of the deployment"),
    "precision": ("s", "of the row"),
    "curve": ("s", "key of configs/load_curves"),
    "mean_units": ("f", "mean load over the day, in units kept wholly busy"),
    "requests_per_s": ("f", "the same in requests"),
    "fleet": ("s", "static, autoscaled, perfect, or reserved_base: autoscaled beyond units that are reserved"),
    "level": ("s", "retail, contract, or retail+contract of a reserved base"),
    "provider": ("s", "the median rental of its level, or who sells both"),
    "term": ("s", "its term; reserved_base: that of the base"),
    "gpu_count": ("i", "GPUs an instance"),
    "usd_per_unit_hour": ("f", "a unit paid whole; reserved_base: on demand"),
    "base_usd_per_unit_hour": ("f", "reserved_base: a reserved unit"),
    "base_units": ("i", "reserved_base: units reserved all day"),
    "peak_units": ("i", "most units paid at once; blank for perfect"),
    "paid_unit_hours": ("f", "of the day"),
    "utilisation": ("f", "usage over what is paid, in unit-hours"),
    "usage_usd_per_million_tokens": ("f", "tokens in and out: what the load keeps busy"),
    "idle_usd_per_million_tokens": ("f", "paid and not busy; reserved_base: all that is beyond usage and start-up"),
    "startup_usd_per_million_tokens": ("f", "paid before it serves"),
    "usd_per_million_tokens": ("f", "the three together: what is paid"),
    "quote": ("s", "what must be said where the row is quoted"),
}


def day_costs(
    rows: Iterable[Row],
    as_of: datetime.date,
    book: Sequence[Provider] | None = None,
    curves: Mapping[str, LoadCurve] | None = None,
    scaler: Autoscaler | None = None,
) -> list[Row]:
    """Rows of COLUMNS at the prices that stand at `as_of`."""
    there = standing(providers().values() if book is None else book, as_of)
    curves = config.load_all(LoadCurve) if curves is None else curves
    scaler = scaler or Autoscaler.load()
    made = []
    for row in served(rows):
        offers = rentals(there, row)
        for key, curve in curves.items():
            for size in scaler.fleet_sizes.value:
                loads = curve.relative(size)
                same = dict.fromkeys(COLUMNS) | {name: row[name] for name in COLUMNS if name in row}
                same |= {"curve": key, "mean_units": size}
                made += [same | line for line in _lines(row, offers, loads, scaler)]
    return made


def _lines(row: Row, offers: Sequence[Rental], loads: Sequence[float], scaler: Autoscaler) -> list[Row]:
    """One curve and size: three fleets at each level's median rental, and the cheapest reserved base of each seller."""
    follows, holds = autoscaled(loads, scaler), static(loads, scaler)
    free = Day(perfect(loads), 0.0, perfect(loads), ())
    found = []
    for level in LEVELS:
        if offer := middle(offers, row["n_gpus"], level):
            for name, day in (("static", holds), ("autoscaled", follows), ("perfect", free)):
                found.append(_line(row, offer, loads, name, day))
    return found + [_based(row, *pair, loads, follows) for pair in _pairs(offers)]


def _pairs(offers: Iterable[Rental]) -> list[tuple[Rental, Rental]]:
    """A seller's commitment beside its own price on demand, instances of one size."""
    offers = list(offers)
    demand = {(o.provider, o.gpu_count): o for o in offers if o.term == "on_demand"}
    return [(o, demand[key]) for o in offers if o.level == "contract" and (key := (o.provider, o.gpu_count)) in demand]


def _same(row: Row, offer: Rental, loads: Sequence[float]) -> tuple[Row, float]:
    """What every fleet's line says of its rental, and the day's tokens in millions."""
    per_s = requests_per_s(row)
    assert per_s is not None
    unit = per_s * offer.replicas(row["n_gpus"])
    tokens = sum(loads) * unit * HOUR_S * (row["input_tokens"] + row["output_tokens"])
    said = {
        "requests_per_s": sum(loads) / len(loads) * unit,
        "provider": offer.provider,
        "gpu_count": offer.gpu_count,
        "usd_per_unit_hour": offer.usd_per_unit_hour(row["n_gpus"]),
    }
    return said, tokens / MILLION


def _line(row: Row, offer: Rental, loads: Sequence[float], fleet: str, day: Day) -> Row:
    said, millions = _same(row, offer, loads)
    usd = said["usd_per_unit_hour"] / millions
    return said | {
        "fleet": fleet,
        "level": offer.level,
        "term": offer.term,
        "peak_units": day.peak if day.segments else None,
        "paid_unit_hours": day.paid,
        "utilisation": day.usage / day.paid,
        "usage_usd_per_million_tokens": day.usage * usd,
        "idle_usd_per_million_tokens": day.idle * usd,
        "startup_usd_per_million_tokens": day.startup * usd,
        "usd_per_million_tokens": day.paid * usd,
    }


def _based(row: Row, held: Rental, offer: Rental, loads: Sequence[float], day: Day) -> Row:
    """The autoscaled fleet on the cheapest base. Usage fills the base first, at its price; start-ups are on demand."""
    said, millions = _same(row, offer, loads)
    reserved, usd = held.usd_per_unit_hour(row["n_gpus"]), said["usd_per_unit_hour"]
    base = reserved_base(day, reserved, usd)
    on_base = sum(min(load, base.units) for load in loads)
    usage = on_base * reserved + (day.usage - on_base) * usd
    startup = _started_beyond(day, base.units) * usd
    paid = base.usd(reserved, usd)
    return said | {
        "fleet": "reserved_base",
        "level": f"{offer.level}+{held.level}",
        "term": held.term,
        "base_usd_per_unit_hour": reserved,
        "base_units": base.units,
        "peak_units": max(day.peak, base.units),
        "paid_unit_hours": base.reserved + base.on_demand,
        "utilisation": day.usage / (base.reserved + base.on_demand),
        "usage_usd_per_million_tokens": usage / millions,
        "idle_usd_per_million_tokens": (paid - usage - startup) / millions,
        "startup_usd_per_million_tokens": startup / millions,
        "usd_per_million_tokens": paid / millions,
    }


def _started_beyond(day: Day, base: int) -> float:
    """Unit-hours of start-up beyond the base: each hour's last segment over its middle one."""
    hours = [day.segments[at : at + 3] for at in range(0, len(day.segments), 3)]
    return sum((max(last, base) - max(now, base)) * seconds for _, (now, _), (last, seconds) in hours) / HOUR_S
