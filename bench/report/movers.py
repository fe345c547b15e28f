"""What moves each verdict most: three factors by total-order Sobol index, and the value at which each would flip it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bench.report.first_screen import unit_of
from bench.report.material import Material, Rows, claim_id
from bench.report.numbers import BLANK, number
from bench.report.page import Link, Row, Table, Text, text
from bench.report.words import definition, parts, phrase, prose, statement

TOP = 3
SAID = (
    "What moves each verdict most, in the tables below: total-order Sobol indices of its margin, the distance of a draw"
    " from the threshold in logarithms (log-odds of a share, the ratio of two prices). Inputs are the independent"
    " normals before the copula, so parameters that move together are one factor, and so is r; N = 1,024 (512 for"
    " portfolios). ± is the 95% bootstrap interval; ≈ marks a place that is not settled, because the interval of the"
    " next factor overlaps. Below stands the value at which the verdict would be another one, the rest as drawn; none:"
    " not within 0.1% to 99.9% of its prior."
)
COLUMNS = ("verdict", "moves it most", "second", "third")


def tables(material: Material) -> tuple[Table, ...]:
    """A table a claim, a row a verdict: of a share claim the leading statement's, of the others all."""
    found: dict[str, dict[tuple[str, str], Rows]] = {}
    for row in material.of_kind("sobol"):
        name, claim = parts(row["subject"])[0], material.files.get(row["claim"])
        if claim is None or not claim.headline or claim.headline.statement == name:
            found.setdefault(row["claim"], {}).setdefault((row["definition"] or "", name), []).append(row)
    return tuple(
        Table(f"What moves it: {phrase(claim)}", COLUMNS, tuple(_row(material, rows) for rows in groups.values()))
        for claim, groups in found.items()
    )


def _row(material: Material, rows: Rows) -> Row:
    first, ranked = rows[0], sorted(rows, key=lambda row: -row["total_order"])[:TOP]
    name = parts(first["subject"])[0]
    about = statement({**first, "subject": name}, material.files)
    named = definition(first["definition"]) if material.files[first["claim"]].headline else about
    cells = [_factor(material, row, name) for row in ranked]
    return Row((named, *cells, *[(BLANK,)] * (TOP - len(cells))))


def _factor(material: Material, row: Mapping[str, Any], name: str) -> Text:
    """Index and interval, then each of its parameters with the value that flips the verdict."""
    factor = parts(row["subject"])[1]
    flips = [flip for flip in material.of_kind("flip") if _same(flip, row, name)]
    unsure = "≈ " if "not settled" in (row["note"] or "") else ""
    head = f"{phrase_all(factor)}: {unsure}{row['total_order']:.2f} ± {row['total_order_interval']:.2f}"
    said: list[Any] = []
    for flip in flips:
        member = prose(parts(flip["subject"])[1])
        lead = f"{member} " if len(flips) > 1 else ""
        said += ["; " if said else ". ", lead, Link(turns(flip, material), f"#{claim_id(flip)}")]
    return text(head, *said)


def _same(flip: Mapping[str, Any], row: Mapping[str, Any], name: str) -> bool:
    """Whether a flip is about a parameter of this row's factor, in this verdict."""
    alike = all(flip[key] == row[key] for key in ("claim", "definition", "year"))
    return alike and parts(flip["subject"])[0] == name and flip["total_order"] == row["total_order"]


def phrase_all(factor: str) -> str:
    """A factor's parameters in words."""
    return " + ".join(prose(name) for name in factor.split(" + "))


def turns(flip: Mapping[str, Any], material: Material) -> str:
    """`holds above 2.05 x a year`, or none."""
    if flip["threshold"] is None:
        return "none"
    side = re.search(r"\b(above|below)\b", flip["note"] or "")
    unit = unit_of(flip, material.files).partition(",")[0]
    return f"{flip['verdict']} {side[0] if side else 'at'} {number(flip['threshold'])} {unit}".rstrip()
