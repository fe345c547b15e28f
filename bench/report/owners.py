"""Owner's cost: what a GPU-hour costs who owns the machine, part by part, and beside what others publish.

A gap to a published rate is explained by exchanging one input at a time (bench/price/owner_rates.py); the one that
closes most of it is named. Inputs are ranges, so ours is a median with its 80% interval.
"""

from __future__ import annotations

import numpy as np

from bench.price import owned
from bench.price.book import providers, standing
from bench.price.owner_rates import Beside, Exchange, beside
from bench.report.material import Material, address
from bench.report.numbers import BLANK, interval, number, percent, usd
from bench.report.page import Row, Section, Table, text
from bench.report.words import phrase

INPUTS = {
    "it_usd_per_gpu": ("purchase price of the machine", usd, " a GPU"),
    "it_life_years": ("life of the machine", number, " years"),
    "power_kw_per_gpu": ("power", number, " kW a GPU"),
    "housing_and_energy_share": ("rent and energy as a part of the cost", percent, ""),
    "capex_usd_per_gw": ("capital for a gigawatt", usd, ""),
    "it_share": ("machines' part of that capital", percent, ""),
    "gpus_per_gw": ("GPUs a gigawatt", number, ""),
    "facility_usd_per_kw": ("building", usd, " a kW"),
    "facility_life_years": ("life of the building", number, " years"),
    "colocation_usd_per_kw_month": ("rent", usd, " a kW-month"),
    "cost_of_capital": ("cost of capital", percent, ""),
    "operations_usd_per_gw_year": ("operations", usd, " a GW-year"),
    "pue": ("PUE", number, ""),
    "electricity_usd_per_kwh": ("electricity", usd, " a kWh"),
}


def shown(name: str, value: float) -> str:
    """An input's value with its unit."""
    _, show, unit = INPUTS[name]
    return f"{show(value)}{unit}"


def explained(one: Exchange) -> str:
    """Which input, from ours to what: theirs, or the end of our range nearer to them."""
    whose = "theirs" if one.stated else "theirs is not published; the nearer end of our range"
    return f"{INPUTS[one.name][0]}: {shown(one.name, one.ours)} here, {shown(one.name, one.at)} ({whose})"


def row(found: Beside) -> Row:
    """One published rate beside ours."""
    theirs, best = found.published["usd_per_gpu_hour"], next(iter(found.exchanges), None)
    said = explained(best) if best else "no gap"
    whole = shown(best.name, found.closed_at) if best and found.closed_at else BLANK
    return Row(
        (
            phrase(found.published["gpu"]),
            found.published["owner"],
            text(f"{found.published['publisher']}, ", address(found.published["source"])),
            usd(theirs),
            f"{usd(found.middle)} ({interval(found.low, found.high, usd)})",
            number(found.middle / theirs),
            said,
            f"{usd(best.usd_per_gpu_hour)} ({percent(best.closes)} of the gap)" if best else BLANK,
            whole,
        )
    )


def rates_table(material: Material) -> Table:
    """Published rates beside ours."""
    columns = (
        *("GPU", "owner", "published by", ">theirs", ">ours, 80% interval", ">ours / theirs"),
        *("what explains most of it", ">ours then", ">it alone would close it at"),
    )
    found = beside(material.as_of)
    note = "USD per provisioned GPU-hour. Inputs are exchanged one at a time, the rest drawn as they were."
    return Table(
        "Owner's cost beside published",
        columns,
        tuple(row(one) for one in found),
        empty="No published rate is known.",
        note=text(note),
        id="owner-rates",
    )


def parts_table(material: Material) -> Table:
    """Every owner of the price book, part by part."""
    rows = []
    for provider in standing(providers().values(), material.as_of):
        for own in provider.owned:
            parts = owned.parts(owned.inputs(own))
            price = owned.price(own)
            middles = [usd(float(np.median(np.asarray(parts[name])))) for name in owned.PARTS]
            said = "modelled from its maker's claim" if own.modelled else "projected"
            span = interval(price.low, price.high, usd)
            rows.append(
                Row((provider.name, phrase(own.gpu), *middles, f"{usd(price.usd_per_gpu_hour)} ({span})", said))
            )
    columns = ("owner", "GPU", *(f">{name}" for name in owned.PARTS), ">whole, 80% interval", "basis")
    note = "Medians of each part; they do not add up to the median of the whole exactly."
    return Table("Owner's cost, USD per provisioned GPU-hour", columns, tuple(rows), note=text(note))


def section(material: Material) -> Section:
    """The two tables."""
    return Section(
        id="owners",
        title="Owner's cost",
        text=(
            text(
                "What the machine costs whoever owns it: an annuity on machines and building, each over its own life,"
                " or rent; operations; energy. Per provisioned hour, used or not. Every input is a range with a source"
                " (configs/providers)."
            ),
        ),
        tables=(rates_table(material), parts_table(material)),
    )
