"""A day of rising and falling load: what static, autoscaled and perfect fleets pay for a million tokens.

day_costs.csv holds every served row; here stands one model and GPU, at the median price on demand, and the cheapest
reserved base of any seller.
"""

from __future__ import annotations

from bench import config
from bench.price.history import name_of
from bench.price.load_curve import Autoscaler, LoadCurve
from bench.report.material import Material, Rows, address
from bench.report.numbers import BLANK, number, percent, usd
from bench.report.offers import chosen, headline
from bench.report.page import Row, Section, Table, text
from bench.report.sources import row_links
from bench.report.words import phrase

FLEETS = {
    "static": "peak held all day",
    "autoscaled": "autoscaled",
    "perfect": "perfect, a bound",
    "reserved_base": "autoscaled on a reserved base",
}


def shown(material: Material) -> Rows:
    """The rows of one served row: the headline's where it has any, else the first by name."""
    rows = material.day_costs
    served = [row["x_row"] for row in chosen(material.costs, "serving", headline(material.costs))]
    known = sorted({row["row"] for row in rows})
    name = next((one for one in served if one in known), known[0] if known else None)
    return [row for row in rows if row["row"] == name]


def lines(rows: Rows) -> Rows:
    """Of each curve and size the three fleets at the retail median, and the cheapest reserved base."""
    found = []
    for curve, size in dict.fromkeys((row["curve"], row["mean_units"]) for row in rows):
        here = [row for row in rows if (row["curve"], row["mean_units"]) == (curve, size)]
        found += [row for row in here if row["level"] == "retail"]
        based = [row for row in here if row["fleet"] == "reserved_base"]
        found += sorted(based, key=lambda row: (row["usd_per_million_tokens"], row["provider"], row["term"]))[:1]
    return found


def table(rows: Rows, material: Material) -> Table:
    """A row a fleet."""
    made = []
    for row in lines(rows):
        parts = (row[f"{part}_usd_per_million_tokens"] for part in ("usage", "idle", "startup"))
        first = row["fleet"] == "static"
        base = f": {row['base_units']} of {row['peak_units']}" if row["base_units"] is not None else ""
        made.append(
            Row(
                (
                    phrase(row["curve"]) if first else "",
                    number(row["mean_units"]) if first else "",
                    f"{FLEETS[row['fleet']]}{base}",
                    name_of(row["provider"]),
                    f"{row['peak_units']}" if row["peak_units"] is not None else BLANK,
                    percent(row["utilisation"]),
                    *(usd(part) for part in parts),
                    usd(row["usd_per_million_tokens"]),
                )
            )
        )
    columns = (
        *("day", ">mean load, units", "fleet", "rented from", ">units at the peak", ">used of paid"),
        *(">usage", ">idle", ">start-up", ">together"),
    )
    first = rows[0]
    caption = f"USD per million tokens in and out over a day: {phrase(first['model'])} on {phrase(first['gpu'])}"
    note = text(
        "Served as in ", row_links(first["row"], material), f", {first['basis']}. Usage, idle and start-up add up."
    )
    return Table(caption, columns, tuple(made), note=note)


def section(material: Material) -> Section | None:
    """The table, the days and the autoscaler behind it; nothing where no row tells its mix."""
    rows = shown(material)
    if not rows:
        return None
    scaler, curves = Autoscaler.load(), config.load_all(LoadCurve)
    known = {row["curve"] for row in rows}
    days = tuple(
        text(
            f"{phrase(key)}: {c.name}, peak hour {number(c.peak_over_mean)} of the mean, ",
            address(c.source),
            f". {c.note}.",
        )
        for key, c in curves.items()
        if key in known
    )
    return Section(
        id="a-day",
        title="A day's load",
        text=(
            text(
                f"Whole units follow the hours of a day: none loaded above {percent(scaler.target_utilisation.value)},"
                f" started {number(scaler.start_s.value / 60)} minutes ahead, kept"
                f" {number(scaler.scale_down_delay_s.value / 60)} minutes after (configs/autoscaling.toml). A small"
                " fleet pays for the free part of its last unit; a large one does not. Prices on demand, median seller;"
                " the base is the cheapest any seller's commitment makes it. day_costs.csv has every served row."
            ),
        ),
        bullets=days,
        tables=(table(rows, material),),
    )
