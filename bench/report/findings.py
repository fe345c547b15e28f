"""Every finding with its id: the rows of claims.csv, and what each rests on.

Routes stand in a section of their own, number by number (bench/report/routes.py); Sobol indices and break-evens of
modelled pairs are many, and stand in claims.csv alone. A number anywhere
else on the page links to its row here; the row links to its grounds (throughput rows R1, public figures F1, notes N1),
and those to the address they are from. Many rows share their grounds, so each set stands once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from bench.report.material import Material, Rows, claim_id
from bench.report.numbers import BLANK, bare, chance
from bench.report.page import Cell, Link, Row, Section, Table, listed, text, trimmed
from bench.report.sources import evidence_links, row_links
from bench.report.words import definition, phrase, prose

TITLES = {
    "verdict": "verdicts",
    "share": "share by year",
    "break_even": "break-even",
    "sensitivity": "the verdict at other limits",
    "flip": "what would flip a verdict",
    "printed": "figures as printed, held against evidence",
    "price": "price levels compared",
    "blend": "portfolios, part by part",
    "finding": "other findings",
}
COLUMNS = (
    *("definition", "subject", ">year", ">p10", ">p50", ">p90", "unit", ">threshold", ">P(claim)"),
    *("verdict", "basis", "grounds", "note"),
)


def named(values: Iterable[str | None], letter: str, least: int = 1) -> dict[str, str]:
    """Distinct values that stand in at least `least` rows, by name: G1, G2 ... in the order of claims.csv."""
    found = [value for value, times in Counter(values).items() if value and times >= least]
    return {value: f"{letter}{number}" for number, value in enumerate(found, start=1)}


@dataclass(frozen=True)
class Grounds:
    """What findings stand on, each distinct set once: throughput rows, public figures, notes that several share."""

    rows: dict[str, str]
    figures: dict[str, str]
    notes: dict[str, str]

    @classmethod
    def of(cls, claims: Rows) -> Grounds:
        """The grounds of every finding."""
        return cls(
            named((row["rests_on"] for row in claims), "R"),
            named((row["evidence"] for row in claims), "F"),
            named((row["note"] for row in claims), "N", least=2),
        )


def lead(name: str | None) -> tuple[Link, ...]:
    """A link to a ground, or nothing."""
    return (Link(name, f"#{name}"),) if name else ()


def finding(row: dict[str, Any], grounds: Grounds) -> Row:
    """One row of claims.csv, numbers in the unit it states."""
    *ends, threshold = (bare(row[name], row["unit"]) for name in ("p10", "p50", "p90", "threshold"))
    rests = (grounds.rows.get(row["rests_on"] or ""), grounds.figures.get(row["evidence"] or ""))
    note = grounds.notes.get(row["note"] or "")
    cells: tuple[Cell, ...] = (
        definition(row["definition"]),
        prose(row["subject"]),
        f"{row['year']}" if row["year"] is not None else BLANK,
        *ends,
        row["unit"] or BLANK,
        threshold,
        chance(row["probability"]),
        row["verdict"] or BLANK,
        row["basis"] or BLANK,
        listed([link for name in rests for link in lead(name)], " ") or BLANK,
        lead(note) or prose(row["note"]),
    )
    return Row(cells, id=claim_id(row), tone=row["verdict"] or "")


def one_unit(table: Table) -> Table:
    """The table with its unit in the caption, where every row has the same one."""
    where = table.columns.index("unit") if "unit" in table.columns else -1
    units = {row.cells[where] for row in table.rows} if where >= 0 else set()
    if len(units) != 1:
        return table
    rows = tuple(Row((*r.cells[:where], *r.cells[where + 1 :]), r.id, r.tone) for r in table.rows)
    columns = (*table.columns[:where], *table.columns[where + 1 :])
    return Table(f"{table.caption} (unit: {units.pop()})", columns, rows)


def listed_here(row: dict[str, Any]) -> bool:
    """Whether a finding has a row on this list."""
    return row["kind"] not in ("route", "sobol") and (row["kind"], row["basis"]) != ("break_even", "modelled")


def tables(material: Material) -> list[Table]:
    """A table for each claim, kind of finding and unit it is measured in."""
    grounds = Grounds.of([*filter(listed_here, material.claims)])
    groups: dict[tuple[str, str, bool], list[Row]] = {}
    for row in filter(listed_here, material.claims):
        swing = row["kind"] == "sensitivity" and row["unit"] == "probability"
        groups.setdefault((row["claim"], row["kind"], swing), []).append(finding(row, grounds))
    found = []
    for (claim, kind, swing), rows in groups.items():
        said = "sensitivity to each parameter" if swing else TITLES.get(kind, phrase(kind))
        caption = f"{phrase(claim).capitalize()}: {said}"
        found.append(one_unit(trimmed(Table(caption, COLUMNS, tuple(rows)))))
    return found


def grounds_tables(material: Material) -> tuple[Table, ...]:
    """What the findings stand on, by name."""
    grounds = Grounds.of([*filter(listed_here, material.claims)])
    rows = [Row((name, row_links(key, material)), name) for key, name in grounds.rows.items()]
    figures = [Row((name, evidence_links(key, material)), name) for key, name in grounds.figures.items()]
    notes = [Row((name, prose(key)), name) for key, name in grounds.notes.items()]
    return (
        Table(
            "Throughput rows and price histories that findings rest on",
            ("", "rows"),
            tuple(rows),
            empty="No throughput row.",
            id="grounds",
        ),
        Table("Public figures that findings rest on", ("", "figures"), tuple(figures), empty="No public figure."),
        Table("Notes", ("", "note"), tuple(notes), empty="No note is shared."),
    )


def section(material: Material) -> Section:
    """The findings by claim and kind, then their grounds."""
    found = tables(material) or [Table("Findings", COLUMNS, (), empty="No claim was tested.")]
    return Section(
        id="findings",
        title="Findings, row by row",
        text=(text("claims.csv without Sobol indices and modelled pairs; grounds lead to rows and public figures."),),
        tables=(*found, *grounds_tables(material)),
    )
