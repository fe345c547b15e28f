"""Energy and carbon of a million tokens, by region: one model and GPU, where a grid factor is published."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.report.material import Material, Rows
from bench.report.numbers import number
from bench.report.offers import SIDES, chosen, priced
from bench.report.page import Link, Row, Section, Table, Text, text
from bench.report.sources import row_links
from bench.report.words import phrase

TITLE = "Energy and carbon"


def shown(material: Material) -> dict[str, Rows]:
    """By side, one rate's cost rows whose region has a factor, one a region; the model and GPU with most regions."""
    having = [row for row in priced(material.costs) if row["x_g_co2e_per_million_tokens"] is not None]
    keys = {(row["x_model"], row["x_gpu"]) for row in having}

    def regions(key: tuple[str, str]) -> tuple[int, int, tuple[str, str]]:
        rows = [row for row in having if (row["x_model"], row["x_gpu"]) == key]
        return -len({row["x_phase"] for row in rows}), -len({row["RegionId"] for row in rows}), key

    best = min(keys, key=regions, default=None)
    found = {}
    for side in SIDES:
        each = {place(row): row for row in chosen(having, side, best)}
        if each:
            found[side] = sorted(each.values(), key=lambda row: (row["x_grid_g_co2e_per_kwh"], place(row)))
    return found


def table(found: Mapping[str, Rows], material: Material) -> Table:
    """A row a region, cleanest grid first; a column a side."""
    grams = {side: {place(row): row["x_g_co2e_per_million_tokens"] for row in rows} for side, rows in found.items()}
    regions = {place(row): row for rows in found.values() for row in rows}
    made = tuple(
        Row(
            (
                f"{row['ProviderName']}, {row['RegionId']}",
                number(row["x_pue"]),
                number(row["x_grid_g_co2e_per_kwh"]),
                Link(f"{row['x_grid_year']}", row["x_grid_source"]),
                *(number(each.get(place(row))) for each in grams.values()),
            )
        )
        for row in regions.values()
    )
    firsts = {side: rows[0] for side, rows in found.items()}
    heads = (f">{side}: gCO2e, {phrase(row['x_token_kind'])} tokens" for side, row in firsts.items())
    first = next(iter(firsts.values()))
    notes = [text(side.capitalize(), ": ", energy(row, material)) for side, row in firsts.items()]
    return Table(
        f"Carbon of a million tokens: {phrase(first['x_model'])} on {phrase(first['x_gpu'])}",
        ("region", ">PUE", ">gCO2e/kWh", ">factor of", *heads),
        made,
        note=text(*notes),
    )


def place(row: Mapping[str, Any]) -> tuple[str, str]:
    """Whose region."""
    return row["x_provider"], row["RegionId"]


def energy(row: Mapping[str, Any], material: Material) -> Text:
    """What a million tokens take, and how that is known."""
    bound = "rated power of the boards, an upper bound for them" if row["x_energy_basis"] == "modelled" else "metered"
    kwh = f"{number(row['x_energy_kwh_per_million_tokens'])} kWh a million, {row['x_energy_basis']} ({bound}), row "
    return text(kwh, row_links(row["x_row"], material), ". ")


def section(material: Material) -> Section | None:
    """The table; nothing where no priced region has a factor."""
    found = shown(material)
    if not found:
        return None
    rows = priced(material.costs)
    having = sum(row["x_g_co2e_per_million_tokens"] is not None for row in rows)
    return Section(
        id="carbon",
        title=TITLE,
        text=(
            text(
                f"{having} of {len(rows)} priced rows stand in a region whose grid has a published factor; the others"
                " have no carbon rather than a guess. Location-based: the grid's mean of a year, whatever certificates"
                " its buyers hold. Only while the deployment works: hosts, networks, paid hours in which nothing runs"
                " and what building the machines emitted (embodied carbon) are left out."
            ),
        ),
        tables=(table(found, material),),
    )
