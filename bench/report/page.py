"""The page before it is HTML or Markdown: sections of paragraphs, tables and figures, with links as data.

Both templates read the same `Page`, so the two outputs cannot disagree. Every row that can be pointed at has an id;
`dangling` lists the internal links that lead nowhere (a test and the build both want that list empty).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Link:
    """Words that lead somewhere: `#row-id` on this page, or an address."""

    text: str
    href: str


Inline = str | Link
Text = tuple[Inline, ...]
Cell = str | Link | Text


@dataclass(frozen=True)
class Row:
    """One row of a table; `id` is the anchor others point at, `tone` a class (holds, fails, void ...)."""

    cells: tuple[Cell, ...]
    id: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """`columns` starting with ">" are right-aligned numbers. `empty` is said where there is no row."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    empty: str = "No rows."
    note: Text = ()
    id: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name.removeprefix(">") for name in self.columns)

    @property
    def numeric_class(self) -> str:
        """n2 n5: the numeric columns, from 1, as classes of the table (a class a cell would weigh 30 kB)."""
        return " ".join(f"n{index}" for index, numeric in enumerate(self.numeric, start=1) if numeric)

    @property
    def numeric(self) -> tuple[bool, ...]:
        return tuple(name.startswith(">") for name in self.columns)


@dataclass(frozen=True)
class Layout:
    """How wide a chart may be, in px, and how many panels stand side by side."""

    width: int
    columns: int


@dataclass(frozen=True)
class Figure:
    """A chart by name; `draw(layout)` returns an Altair chart; `alt` says in words what the picture shows."""

    name: str
    title: str
    alt: str
    draw: Callable[[Layout], Any]


@dataclass(frozen=True)
class Section:
    """A headline, what it says, and what it shows."""

    id: str
    title: str
    text: tuple[Text, ...] = ()
    bullets: tuple[Text, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    code: str = ""
    after: tuple[Text, ...] = field(default=())


@dataclass(frozen=True)
class Page:
    """The whole report."""

    title: str
    subtitle: str
    verdict: Text
    sections: tuple[Section, ...]


def trimmed(table: Table, blank: str = "–") -> Table:
    """The table without the columns in which every cell is blank."""
    kept = [
        index
        for index in range(len(table.columns))
        if any(as_text(row.cells[index]) not in ((blank,), ()) for row in table.rows)
    ]
    rows = tuple(replace(row, cells=tuple(row.cells[i] for i in kept)) for row in table.rows)
    return replace(table, columns=tuple(table.columns[i] for i in kept), rows=rows) if rows else table


def text(*parts: Cell) -> Text:
    """Parts joined into one run of words and links."""
    run: list[Inline] = []
    for part in parts:
        run.extend(part if isinstance(part, tuple) else (part,))
    return tuple(run)


def as_text(cell: Cell) -> Text:
    """A cell as a run of words and links."""
    return cell if isinstance(cell, tuple) else (cell,)


def listed(items: list[Inline], glue: str = ", ") -> Text:
    """Items with `glue` between them."""
    run: list[Inline] = []
    for index, item in enumerate(items):
        run.extend((glue, item) if index else (item,))
    return tuple(run)


def slug(*parts: Any) -> str:
    """An anchor from any values: lower case, letters, digits and dashes; blanks are left out."""
    words = "-".join(str(part) for part in parts if part not in (None, ""))
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def ids(page: Page) -> list[str]:
    """Every anchor of the page, in order."""
    found = [section.id for section in page.sections]
    found += [figure.name for section in page.sections for figure in section.figures]
    tables = [table for section in page.sections for table in section.tables]
    found += [table.id for table in tables if table.id]
    return found + [row.id for table in tables for row in table.rows if row.id]


def links(page: Page) -> Iterator[Link]:
    """Every link of the page."""
    runs: list[Text] = [page.verdict]
    for section in page.sections:
        runs.extend((*section.text, *section.bullets, *section.after))
        for table in section.tables:
            runs.append(table.note)
            runs.extend(as_text(cell) for row in table.rows for cell in row.cells)
    for run in runs:
        yield from (part for part in run if isinstance(part, Link))


def dangling(page: Page) -> list[str]:
    """Internal links whose anchor is not on the page."""
    known = set(ids(page))
    return sorted({ln.href for ln in links(page) if ln.href.startswith("#")} - {f"#{i}" for i in known})
