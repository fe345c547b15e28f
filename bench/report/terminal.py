"""The verdict in a terminal: one sentence, one table, what a token costs, and where the files are.

rich draws the table where it is installed and the output is a terminal; in a pipe it is plain text, so `| grep` works.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from bench.claim import spec
from bench.claim.table import verdict_line
from bench.price.quoted import quotes
from bench.report.first_screen import verdict_cells, verdicts
from bench.report.material import Rows
from bench.report.numbers import BLANK, usd
from bench.report.offers import SIDES, chosen, headline, offers
from bench.report.page import Link, as_text
from bench.report.words import TERMS, Files, definition, phrase, statement

COLUMNS = ("", "verdict", "P", "p10", "median", "p90", "basis")


def show(claims: Rows, costs: Rows, paths: Sequence[Path], own: Sequence[Path] = ()) -> None:
    """Print verdict, verdict table, cost lines and paths to stdout."""
    files = spec.claims(own)
    rows = verdicts(claims, files)
    print(verdict_line(claims) if rows else "No claim was tested.")
    if rows:
        print()
        table([line for row in grouped(rows, files) for line in row])
        print()
    for line in cost_lines(costs):
        print(line)
    if said := quotes(row["quotes"] for row in claims):
        print(f"Verdicts rest on {said}")
    for path in paths:
        print(f"wrote {path}")


def grouped(rows: Rows, files: Files) -> list[list[list[str]]]:
    """Each statement as a line of its own, and under it a line a definition."""
    found: dict[str, list[list[str]]] = {}
    for row in rows:
        said = statement(row, files)
        _, *rest = (
            "".join(p.text if isinstance(p, Link) else p for p in as_text(c)) for c in verdict_cells(row, files)
        )
        lines = found.setdefault(said, [[said, *("" for _ in COLUMNS[1:])]])
        by = definition(row["definition"]) if row["definition"] else f"{row['year'] or BLANK}"
        lines.append([f"  {by}", *rest])
    return list(found.values())


def table(rows: list[list[str]]) -> None:
    """The verdict table: rich in a terminal, aligned text elsewhere."""
    if not (sys.stdout.isatty() and drawn(rows)):
        widths = [max(len(line[i]) for line in (COLUMNS, *rows)) for i in range(len(COLUMNS))]
        for line in (COLUMNS, *rows):
            print("  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip())


def drawn(rows: list[list[str]]) -> bool:
    """Draw the table with rich; False where rich is not installed."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        return False
    shown = Table(*COLUMNS, box=None, pad_edge=False)
    for row in rows:
        shown.add_row(*row)
    Console().print(shown)
    return True


def cost_lines(costs: Rows) -> list[str]:
    """For each side, one line a price level: cheapest and median offer of the headline row."""
    found, shown = [], headline(costs)
    for side in SIDES:
        rows = chosen(costs, side, shown)
        for level in dict.fromkeys(offer["level"] for offer in offers(rows)):
            here = [offer for offer in offers(rows) if offer["level"] == level]
            first, middle = here[0], here[len(here) // 2]
            what = f"{phrase(rows[0]['x_model'])} on {phrase(rows[0]['x_gpu'])}"
            found.append(
                f"{side}, {level}: {usd(middle['median'])} per million {rows[0]['x_token_kind']} tokens (median of"
                f" {len(here)} offers), cheapest {usd(first['median'])} ({first['provider']}, {TERMS[first['term']]});"
                f" {what}, {rows[0]['x_precision']}, {rows[0]['x_basis']} rate"
                + (f", {rows[0]['x_quote']}" if rows[0]["x_quote"] else "")
            )
    return found
