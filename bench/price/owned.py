"""What a GPU hour costs who owns the machine: an annuity on the purchase plus what it takes to run.

    CRF(r, n) = r / (1 - (1 + r)^-n)          capital recovery factor
    USD per GW-year  = capex [s CRF(r, n_it) + (1 - s) CRF(r, n_facility)] + operations
    USD per GPU-hour = USD per GW-year / (GPUs per GW * 8760) + kW per GPU * PUE * USD per kWh

The factor spreads a purchase over n years of equal payments at rate r; at r = 0 it is 1 / n, straight-line
depreciation (W. Short et al., A Manual for the Economic Evaluation of Energy Efficiency and Renewable Energy
Technologies, NREL/TP-462-5173, 1995, section 2). Every hour of the year is paid for, used or not: the result is per
provisioned hour, and no utilisation enters here.

Nobody publishes these inputs, so each is a range. Independent triangular draws between its ends give the price as
10th percentile, median and 90th percentile: one price with low and high, not a false single figure.
"""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np
from numpy.typing import NDArray

from bench.price.book import Owned, Price, Range

HOURS_PER_YEAR = 8760.0
DRAWS = 20_000
SEED = 20261122

Number = float | NDArray[np.float64]


def crf(rate: Number, years: Number) -> Number:
    """Capital recovery factor: the yearly payment, over `years`, for a purchase of 1 at `rate` a year."""
    rate_, years_ = np.broadcast_arrays(np.asarray(rate, float), np.asarray(years, float))
    straight = rate_ == 0
    safe = np.where(straight, 1.0, rate_)  # avoids 0/0; the value is not used
    return np.where(straight, 1 / years_, safe / (1 - (1 + safe) ** -years_))[()]


def usd_per_gw_year(
    capex: Number,
    it_share: Number,
    it_life: Number,
    facility_life: Number,
    rate: Number,
    operations: Number,
) -> Number:
    """Yearly cost of 1 GW in USD: both annuities and `operations`, whatever the caller counts as those."""
    it, facility = crf(rate, it_life), crf(rate, facility_life)
    return capex * (it_share * it + (1 - it_share) * facility) + operations


def draw(name: str, span: Range, count: int, seed: int) -> NDArray[np.float64]:
    """`count` triangular draws between a range's ends with its value as the peak.

    The stream belongs to `name`: owners who face one market for machines and power move together.
    """
    if span.low == span.high:
        return np.full(count, span.value)
    key = zlib.crc32(name.encode())
    return np.random.default_rng([seed, key]).triangular(span.low, span.value, span.high, count)


def draws(owned: Owned, count: int = DRAWS, seed: int = SEED) -> NDArray[np.float64]:
    """`count` draws of the owner's USD per provisioned GPU hour; the same seed gives the same draws."""
    names = [f.name for f in dataclasses.fields(Owned) if isinstance(getattr(owned, f.name), Range)]
    own = {name: f"{owned.owner} {name}" if name in owned.apart else name for name in names}
    x = {name: draw(own[name], getattr(owned, name), count, seed) for name in names}
    year = usd_per_gw_year(
        x["capex_usd_per_gw"],
        x["it_share"],
        x["it_life_years"],
        x["facility_life_years"],
        x["cost_of_capital"],
        x["operations_usd_per_gw_year"],
    )
    energy = x["power_kw_per_gpu"] * x["pue"] * x["electricity_usd_per_kwh"]
    return np.asarray(year / (x["gpus_per_gw"] * HOURS_PER_YEAR) + energy)


def price(owned: Owned) -> Price:
    """The owner's cost as a price of term `owned`: the median, with the 10th and 90th percentile as its range."""
    low, middle, high = (float(v) for v in np.percentile(draws(owned), (10, 50, 90)))
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
        source=owned.capex_usd_per_gw.source,
        note=owned.note,
    )
