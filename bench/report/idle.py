"""The same bill twice: by usage and by allocation, with idle as a line of its own.

    usage-based + idle time + idle GPUs = allocation-based

By usage a token pays for the hours that worked on it. By allocation it pays for the instance whole, for as long as it
is held. What lies between is idle: hours in which the GPUs in use did nothing, and GPUs of the instance nobody uses.
"""

from __future__ import annotations

from bench.report.material import Material, Rows
from bench.report.numbers import BLANK, known, percent, usd
from bench.report.offers import SIDES, Shown, chosen, over_regions
from bench.report.page import Row, Table, text, trimmed
from bench.report.sources import row_links
from bench.report.words import LEVELS, TERMS, phrase

PARTS = ("x_usage_based_usd", "x_idle_time_usd", "x_idle_gpus_usd", "x_allocation_based_usd")


def offers_of(rows: Rows) -> dict[tuple[str, str, str], Rows]:
    """The median offer of each level: its cost rows by level, provider and term; sizes of instances are never mixed."""
    groups: dict[tuple[str, str, str], Rows] = {}
    for row in rows:
        groups.setdefault((row["x_level"], row["ProviderName"], row["x_term"]), []).append(row)
    one_size = {key: group for key, group in groups.items() if len({row["x_gpu_count"] for row in group}) == 1}
    found = {}
    for level in LEVELS:
        here = [(over_regions(group, "x_usd_per_million_tokens"), key) for key, group in one_size.items()]
        if ranked := sorted(one for one in here if one[1][0] == level):
            key = ranked[len(ranked) // 2][1]
            found[key] = one_size[key]
    return found


def line(side: str, key: tuple[str, str, str], group: Rows) -> Row:
    """One offer: the parts by the median over its regions."""
    values = {name: over_regions(group, name) if known(group[0][name]) else None for name in PARTS}
    used, whole = values["x_usage_based_usd"], values["x_allocation_based_usd"]
    idle = percent(1 - used / whole) if used is not None and whole else BLANK
    level, provider, term = key
    return Row((side, provider, TERMS.get(term, phrase(term)), level, *(usd(v) for v in values.values()), idle))


def table(shown: Shown | None, material: Material) -> Table | None:
    """The median offer of each level and side of one model and GPU; None where the costs carry no such parts."""
    made, notes = [], []
    for side in SIDES:
        rows = [row for row in chosen(material.costs, side, shown) if known(row["x_allocation_based_usd"])]
        if rows:
            made += [line(side, key, group) for key, group in offers_of(rows).items()]
            first = rows[0]
            said = f"{side.capitalize()}: {first['x_n_gpus']} of {first['x_gpu_count']} GPUs, row "
            notes += [text(said, row_links(first["x_row"], material), ". ")]
    if not made:
        return None
    columns = (
        *("side", "provider", "term", "level", ">usage-based", ">idle time", ">idle GPUs", ">allocation-based"),
        ">idle part",
    )
    named = f"{phrase(shown[0])} on {phrase(shown[1])}" if shown else "no GPU row"
    blank = (
        "The median offer of each level; costs.csv has all. A dash: the rate was taken over time that already contains"
        " idling, so nobody knows how much was used."
    )
    return trimmed(
        Table(
            f"USD per million tokens, by usage and by allocation: {named}",
            columns,
            tuple(made),
            note=text(*notes, blank),
            id="idle",
        )
    )
