"""Renting or buying: from which load whole instances cost less than the same tokens from an API.

break_even_api.csv holds every served row, rental and list price. Here stands one served row a model, the one renting
stands best with, at the cheapest and the median price on demand against the cheapest and the median seller. Rows that
say they were batch work (MLPerf's Offline) stand back where a model has another: no API's customer waits so long. So do
list prices whose page nobody told.
"""

from __future__ import annotations

from typing import Any

from bench.price.api_prices import standing_api
from bench.price.history import name_of
from bench.report.material import Material, Rows
from bench.report.numbers import BLANK, number, percent, usd
from bench.report.page import Link, Row, Section, Table, listed, text
from bench.report.sources import dates, row_links
from bench.report.words import TERMS, phrase

SHOWN = "on_demand"  # what anybody can rent today
OFFLINE = "Offline"


def lines(material: Material) -> Rows:
    """The rows shown, by model: at most two rentals by two sellers."""
    found: Rows = []
    for model in sorted({row["model"] for row in material.break_even_api}):
        rows = [r for r in material.break_even_api if r["model"] == model and r["term"] == SHOWN]
        rows = [row for row in rows if row["api_confidence"] != "low"] or rows
        if not rows:
            continue
        served = min(rows, key=rank)["row"]
        rows = [row for row in rows if row["row"] == served]
        for rented in ends(rows, ("provider", "gpu_count"), "rent_usd_per_request"):
            found += ends(rented, ("seller", "sold_as"), "buy_usd_per_request", flat=True)
    return found


def rank(row: dict[str, Any]) -> tuple[bool, float, str]:
    """Batch work last, then how little renting costs over buying."""
    over = row["rent_usd_per_request"] / row["buy_usd_per_request"]
    return OFFLINE in (row["workload"] or ""), over, row["row"]


def ends(rows: Rows, of: tuple[str, ...], by: str, flat: bool = False) -> list[Any]:
    """The cheapest and the median of what `of` names, each once: its rows, or the first of them (`flat`)."""
    groups: dict[tuple[Any, ...], Rows] = {}
    for row in sorted(rows, key=lambda r: (r[by], *(str(r[name]) for name in of))):
        groups.setdefault(tuple(row[name] for name in of), []).append(row)
    ranked = list(groups.values())
    chosen = [ranked[at] for at in sorted({0, len(ranked) // 2})]
    return [group[0] for group in chosen] if flat else chosen


def table(material: Material) -> Table:
    """A row a rental and list price."""
    made, before = [], None
    pages = {(p.seller, p.sold_as): p.source_url for p in standing_api(material.as_of)}
    for row in lines(material):
        first = row["row"] != before
        before, page = row["row"], pages.get((row["seller"], row["sold_as"]))
        what = text(row_links(row["row"], material), f", {row['basis']}: {row['workload']}") if first else ""
        if row["answer"] == "never":
            answer = (f"never: {number(row['missing_factor'])} times too dear", BLANK, BLANK)
        else:
            load, always = (number(row[f"{end}_requests_per_s"]) for end in ("first", "always"))
            answer = (f"{load} requests/s", percent(row["first_share"]), f"{always} (units: {row['always_units']})")
        made.append(
            Row(
                (
                    f"{phrase(row['model'])} on {phrase(row['gpu'])}" if first else "",
                    what,
                    f"{name_of(row['provider'])}, {row['instances_per_unit']} × {row['gpu_count']} GPUs",
                    usd(1000 * row["rent_usd_per_request"]),
                    Link(row["seller"], page) if page else row["seller"],
                    usd(1000 * row["buy_usd_per_request"]),
                    *answer,
                )
            )
        )
    columns = (
        *("model and GPU", "served as in", "a unit", ">1,000 requests rented"),
        *("bought from", ">1,000 requests bought", ">cheaper from", ">of a unit", ">always from"),
    )
    note = (
        "A unit is the fewest instances that hold whole deployments, each at the rate of its row times the fleet's"
        " utilisation; 1,000 requests have the row's own lengths and cache hits. Cheapest and median price on demand"
        " against cheapest and median seller, of those whose page is told or whose price two tables agree on. The load"
        " is taken as steady. A rate at maximum load keeps no promise of latency, so renting looks better beside it"
        " than it is."
    )
    return Table("Renting whole instances or buying tokens", columns, tuple(made), note=(note,))


def section(material: Material) -> Section | None:
    """The table with what it does not say; nothing where no served model is sold."""
    if not lines(material):
        return None
    rows = material.break_even_api
    never = sum(row["answer"] == "never" for row in rows)
    days = dates(row["api_as_of"] for row in rows)
    models = listed([phrase(model) for model in sorted({row["model"] for row in rows})])
    return Section(
        id="rent-or-buy",
        title="Rent or buy",
        text=(
            text(
                f"Of {len(rows)} pairs of a rental and a list price of the same model (break_even_api.csv: ",
                models,
                f"), renting is never cheaper in {never}, even at full load. List prices, of {days}, are what customers"
                " pay, not what serving costs their sellers: they may be below cost, or far above it. "
                f"{TERMS[SHOWN].capitalize()} is shown; commitments stand in the file.",
            ),
        ),
        tables=(table(material),),
    )
