"""What must be said under every section that shows a figure of MLPerf's: which results, and that ours is derived."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from bench.price.quoted import by_row, quotes
from bench.report.material import Material, row_id
from bench.report.page import Link, Page, Section, Text, as_text, text


def with_quotes(page: Page, material: Material) -> Page:
    """The page, each section that names or links such a row ending in its quote."""
    said = by_row(material.throughput)
    anchors = {f"#{row_id(name)}": quote for name, quote in said.items()}
    return replace(page, sections=tuple(_quoted(section, anchors) for section in page.sections))


def _quoted(section: Section, anchors: Mapping[str, str]) -> Section:
    runs: list[Text] = [*section.text, *section.bullets, *section.after]
    named: list[str] = []
    for table in section.tables:
        named += [f"#{row.id}" for row in table.rows if row.id]
        runs += [table.note, *(as_text(cell) for row in table.rows for cell in row.cells)]
    named += [part.href for run in runs for part in run if isinstance(part, Link)]
    found = quotes(anchors[name] for name in named if name in anchors)
    return replace(section, after=(*section.after, text(f"{found}."))) if found else section
