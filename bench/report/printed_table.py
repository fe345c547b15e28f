"""What the news printed, row by row: its dollars held against compute, its words against serving's share.

Under the table stands every other figure in print that equals a printed number, so that a reader sees what the
numbers were before they were called compute cost.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bench.report.material import Material, claim_id
from bench.report.numbers import BLANK, bare, chance, interval_in, usd
from bench.report.page import Inline, Link, Row, Table, Text, listed, text
from bench.report.sources import evidence_links, number_of
from bench.report.words import Files, definition, phrase


def printed_tables(material: Material, lead: str | None) -> tuple[Table, ...]:
    """What somebody printed, a table a claim: dollars and words of each year, each with its verdict.

    Words are judged by `lead`, the headline definition. The note says what else is in print under the same numbers.
    """
    groups: dict[str, dict[int, dict[str, dict[str, Any]]]] = {}
    for row in material.of_kind("printed"):
        side = "dollars" if (row["unit"] or "").startswith("USD") else "words"
        if side == "dollars" or row["definition"] == lead:
            groups.setdefault(row["claim"], {}).setdefault(row["year"], {})[side] = row
    columns = ("year", ">printed", ">compute by the evidence", "dollars", "printed words", ">serving's share", "words")
    return tuple(
        Table(
            material.files[key].question if key in material.files else phrase(key),
            columns,
            tuple(printed_row(key, year, found, material.files) for year, found in sorted(years.items())),
            note=text(f"Words by {definition(lead)}.", *same_numbers(key, material)),
        )
        for key, years in groups.items()
    )


def printed_row(key: str, year: int, found: Mapping[str, dict[str, Any]], files: Files) -> Row:
    """One printed year: its dollars held against compute, its words against serving's share."""
    said = {row.year: row.words for row in files[key].printed} if key in files else {}
    cells: list[Text] = []
    for side in ("dollars", "words"):
        row = found.get(side)
        if row is None:
            cells += [(said.get(year) or BLANK if side == "words" else BLANK,), (BLANK,), (BLANK,)]
            continue
        to = f"#{claim_id(row)}"
        first: Inline = (
            Link(bare(row["threshold"], row["unit"]), to) if side == "dollars" else said.get(year) or "words"
        )
        middle = Link(f"{bare(row['p50'], row['unit'])} ({interval_in(row)})", to)
        verdict = text(f"{row['verdict'] or BLANK}, P ", Link(chance(row["probability"]), to))
        cells += [(first,), (middle,), verdict]
    return Row((f"{year}", *cells))


def same_numbers(key: str, material: Material) -> Text:
    """Every figure in print that equals a printed number, by its own name, each leading to its source."""
    found = [r for r in material.of_kind("finding") if r["claim"] == key and "same number" in (r["subject"] or "")]
    said: list[Inline] = []
    for row in found:
        figures = [Link(label(one.text, material), one.href) for one in figure_links(row, material)]
        number = Link(bare(row["threshold"], row["unit"]), f"#{claim_id(row)}")
        said += ["; " if said else "", f"{row['year']} ", number, ": ", *listed([*figures], " and ")] if figures else []
    return text(" The same numbers are in print as ", *said, ".") if said else ()


def figure_links(row: Mapping[str, Any], material: Material) -> list[Link]:
    """The public figures a row cites that this page shows."""
    return [part for part in evidence_links(row["evidence"], material) if isinstance(part, Link)]


def label(name: str, material: Material) -> str:
    """A public figure by its metric, without what is said in brackets; a negative one with its value."""
    row = material.evidence[name]
    value = number_of(row["value"])
    sign = f" ({usd(value)})" if value is not None and value < 0 else ""
    return re.sub(r"\s*\([^)]*\)", "", row["metric"]) + sign
