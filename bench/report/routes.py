"""One spending, told twice: what serving cost as reported, and what the tokens counted would cost, with what explains
the difference where it is more than a factor of two (bench/claim/routes.py).
"""

from __future__ import annotations

from typing import Any

from bench.claim.verdict import ids
from bench.report.material import Material, Rows, claim_id
from bench.report.numbers import BLANK, bare, interval_in, number
from bench.report.page import Link, Row, Section, Table, Text, text
from bench.report.sources import evidence_links, few, names, row_links
from bench.report.words import phrase, prose

COLUMNS = (
    *("of", ">year", ">reported spending", ">tokens × cost", ">tokens × cost over reported"),
    *(">share by spending", ">by tokens"),
)
WHY = ("of", ">year", "what explains the gap")


def pairs(material: Material) -> list[Rows]:
    """The rows of each organisation and year, in the order of claims.csv."""
    found: dict[tuple[Any, ...], Rows] = {}
    for row in material.of_kind("route"):
        found.setdefault((row["claim"], row["definition"], row["year"]), []).append(row)
    return list(found.values())


def shown(row: dict[str, Any] | None) -> str:
    """Median and 80% interval."""
    return f"{bare(row['p50'], row['unit'])} ({interval_in(row)})" if row else BLANK


def line(rows: Rows) -> Row:
    """One organisation in one year, under the id of its disagreement."""
    by = {row["subject"]: row for row in rows}
    cells = (shown(by.get(n)) for n in ("top-down", "bottom-up", "disagreement", "share, top-down", "share, bottom-up"))
    where = claim_id(by["disagreement"]) if "disagreement" in by else ""
    return Row((phrase(rows[0]["definition"]), f"{rows[0]['year']}", *cells), where)


def why(rows: Rows) -> Row | None:
    """What explains its disagreement; None within a factor of two."""
    apart = next((row for row in rows if row["subject"] == "disagreement"), None)
    if apart is None or not any(row["subject"].startswith("explained: ") for row in rows):
        return None
    return Row((phrase(apart["definition"]), f"{apart['year']}", prose(apart["note"].partition("; ")[2])))


def sentence(material: Material) -> Text:
    """How many agree within a factor of two, and the widest gap."""
    rows = [row for row in material.of_kind("route") if row["subject"] == "disagreement"]
    if not rows:
        return ("Nothing was found to price tokens with.",)
    far = [row for row in rows if not 0.5 <= row["p50"] <= 2]
    most = max(rows, key=lambda row: max(row["p50"], 1 / row["p50"]))
    side = "below" if most["p50"] < 1 else "above"
    times = number(max(most["p50"], 1 / most["p50"]))
    return text(
        f"In {len(far)} of {len(rows)} comparisons they differ by more than a factor of two; furthest apart are those"
        f" of {phrase(most['definition'])} in {most['year']}, where tokens times cost stay ",
        Link(f"{times} times", f"#{claim_id(most)}"),
        f" {side} what was reported.",
    )


def section(material: Material) -> Section | None:
    """The table and its sentence; None where no claim compares routes."""
    found = pairs(material)
    if not found:
        return None
    reasons = tuple(reason for rows in found if (reason := why(rows)))
    cited = ids(*(names(row["evidence"]) for row in material.of_kind("route")))
    rested = next((row["rests_on"] for row in material.of_kind("route") if row["rests_on"]), "")
    return Section(
        id="routes",
        title="Spending by two routes",
        text=(
            text(
                "What serving costs in a year, as reported or planned, and as tokens served times the cost of a token:"
                " throughput of rows as in r, contract prices, load, active parameters of what is served. The routes"
                " share no input; the share holds each against the same X. ",
                *sentence(material),
            ),
        ),
        tables=(
            Table(
                "Serving, USD a year: median and 80% interval",
                COLUMNS,
                tuple(line(rows) for rows in found),
                note=text(
                    "Throughput rows of the tokens route: ",
                    *few(row_links(rested, material), "#imported"),
                    ". Public figures: ",
                    *few(evidence_links(cited, material), "#evidence"),
                    "; those of each number in claims.csv.",
                ),
            ),
            *([Table("Why they differ by more than a factor of two", WHY, reasons)] if reasons else []),
        ),
    )
