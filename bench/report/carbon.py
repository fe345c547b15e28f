"""Energy and carbon of a million tokens, by region: one model and GPU, where a grid factor is published."""

from __future__ import annotations

from bench.report.material import Material, Rows, address
from bench.report.numbers import BLANK, number
from bench.report.offers import SIDES, chosen, priced
from bench.report.page import Row, Section, Table, text
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
        each = {(row["x_provider"], row["RegionId"]): row for row in chosen(having, side, best)}
        if each:
            found[side] = sorted(each.values(), key=lambda row: (row["x_g_co2e_per_million_tokens"], row["RegionId"]))
    return found


def table(side: str, rows: Rows, material: Material) -> Table:
    """A row a region, cleanest first."""
    made = tuple(
        Row(
            (
                f"{row['ProviderName']}, {row['RegionId']}",
                number(row["x_energy_kwh_per_million_tokens"]),
                number(row["x_pue"]),
                number(row["x_grid_g_co2e_per_kwh"]),
                f"{row['x_grid_year']}",
                address(row["x_grid_source"]),
                number(row["x_g_co2e_per_million_tokens"]),
            )
        )
        for row in rows
    )
    first = rows[0]
    columns = ("region", ">kWh", ">PUE", ">gCO2e/kWh", ">year", "factor from", ">gCO2e")
    kind = phrase(first["x_token_kind"])
    caption = f"Per million {kind} tokens, {side}: {phrase(first['x_model'])} on {phrase(first['x_gpu'])}"
    bound = "rated power of the boards, an upper bound for them" if first["x_energy_basis"] == "modelled" else "metered"
    note = text(
        "Row ",
        row_links(first["x_row"], material),
        f". Energy {first['x_energy_basis']}: {bound}; boundary {first['x_energy_boundary'] or BLANK}.",
    )
    return Table(caption, columns, made, note=note)


def section(material: Material) -> Section | None:
    """One table a side; nothing where no priced region has a factor."""
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
        tables=tuple(table(side, rows, material) for side, rows in found.items()),
    )
