"""What a GPU hour costs who owns the machine: an annuity on the purchase plus what it takes to run.

    CRF(r, n) = r / (1 - (1 + r)^-n)                      capital recovery factor
    USD per GPU-hour = [machines CRF(r, n_it) + housing + operations] / 8760 + kW per GPU * PUE * USD per kWh

    machines     USD per GPU, or capex per GW * IT share / GPUs per GW
    housing      the building's USD per GPU * CRF(r, n_facility), or rent: USD per kW-month * 12 * kW per GPU
    operations   USD per GW-year / GPUs per GW

The factor spreads a purchase over n years of equal payments at rate r; at r = 0 it is 1 / n, straight-line
depreciation (W. Short et al., A Manual for the Economic Evaluation of Energy Efficiency and Renewable Energy
Technologies, NREL/TP-462-5173, 1995, section 2). Every hour of the year is paid for, used or not: the result is per
provisioned hour, and no utilisation enters here.

Nobody publishes these inputs, so each is a range. Independent triangular draws between its ends give the price as
10th percentile, median and 90th percentile: one price with low and high, not a false single figure.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from bench.price.book import Owned, Price, Range
from bench.price.draws import Array as Array
from bench.price.draws import Seed, triangular

HOURS_PER_YEAR = 8760.0
KW_PER_GW = 1e6
DRAWS = 20_000
SEED = 20261122
PARTS = ("machines", "housing", "operations", "energy")  # of a GPU-hour, USD

Number = float | NDArray[np.float64]


def crf(rate: Number, years: Number) -> Number:
    """Capital recovery factor: the yearly payment, over `years`, for a purchase of 1 at `rate` a year."""
    rate_, years_ = np.broadcast_arrays(np.asarray(rate, float), np.asarray(years, float))
    straight = rate_ == 0
    safe = np.where(straight, 1.0, rate_)  # avoids 0/0; the value is not used
    return np.where(straight, 1 / years_, safe / (1 - (1 + safe) ** -years_))[()]


def draw(name: str, span: Range, count: int, seed: Seed) -> Array:
    """`count` triangular draws between a range's ends with its value as the peak.

    The stream belongs to `name`: owners who face one market for machines and power move together.
    """
    if span.low == span.high:
        return np.full(count, span.value)
    if not isinstance(seed, int):
        return triangular((span.low, span.value, span.high), np.asarray(ndtr(seed[name])))
    key = zlib.crc32(name.encode())
    return np.random.default_rng([seed, key]).triangular(span.low, span.value, span.high, count)


def streams(owned: Owned) -> dict[str, str]:
    """Input -> its stream: one for all owners, but for what is apart."""
    return {name: f"{owned.owner} {name}" if name in owned.apart else name for name in owned.ranges}


def inputs(owned: Owned, count: int = DRAWS, seed: Seed = SEED) -> dict[str, Array]:
    """`count` draws of every input; the same seed gives the same draws, whoever the owner is, but for what is apart."""
    own = streams(owned)
    return {name: draw(own[name], span, count, seed) for name, span in owned.ranges.items()}


def parts(x: Mapping[str, Number]) -> dict[str, Number]:
    """USD per provisioned GPU hour for each of PARTS, from inputs by name."""
    kw = x["power_kw_per_gpu"]
    gpus_per_gw = x["gpus_per_gw"] if "gpus_per_gw" in x else KW_PER_GW / kw
    capex = x["capex_usd_per_gw"] / gpus_per_gw if "capex_usd_per_gw" in x else 0.0  # USD per GPU
    machines = x["it_usd_per_gpu"] if "it_usd_per_gpu" in x else capex * x["it_share"]
    if "colocation_usd_per_kw_month" in x:
        housing = x["colocation_usd_per_kw_month"] * 12 * kw
    else:
        building = x["facility_usd_per_kw"] * kw if "facility_usd_per_kw" in x else capex * (1 - x["it_share"])
        housing = building * crf(x["cost_of_capital"], x["facility_life_years"])
    yearly = {
        "machines": machines * crf(x["cost_of_capital"], x["it_life_years"]),
        "housing": housing,
        "operations": x["operations_usd_per_gw_year"] / gpus_per_gw,
    }
    hourly = {name: usd / HOURS_PER_YEAR for name, usd in yearly.items()}
    return {**hourly, "energy": kw * x["pue"] * x["electricity_usd_per_kwh"]}


def usd_per_gpu_hour(x: Mapping[str, Number]) -> Number:
    """The sum of its parts."""
    return sum(parts(x).values())


def draws(owned: Owned, count: int = DRAWS, seed: Seed = SEED) -> Array:
    """`count` draws of the owner's USD per provisioned GPU hour; the same seed gives the same draws."""
    return np.asarray(usd_per_gpu_hour(inputs(owned, count, seed))) * np.ones(count)


def price(owned: Owned) -> Price:
    """The owner's cost as a price of term `owned`: the median, with the 10th and 90th percentile as its range."""
    low, middle, high = (float(v) for v in np.percentile(draws(owned), (10, 50, 90)))
    machines = owned.capex_usd_per_gw or owned.it_usd_per_gpu
    assert machines is not None, "book.py refuses an owner without machines"
    return Price(
        region=owned.region,
        sku=owned.sku,
        gpu=owned.gpu,
        gpu_count=owned.gpu_count,
        includes="instance",
        term="owned",
        usd_per_gpu_hour=middle,
        low=low,
        high=high,
        as_of=owned.as_of,
        source=machines.source,
        note=owned.note,
    )
