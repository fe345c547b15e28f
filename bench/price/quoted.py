"""What must be said wherever a figure of MLPerf's is shown: its result, and that ours is derived from it.

MLCommons asks that a figure computed from its results names the result and says it was not verified. Rows of
configs/published.csv and of `bench import` carry both in their note; this file carries them on: a throughput row's
`quote`, costs.csv's `x_quote`, the `quote` of the tables of market prices, claims.csv's `quotes`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from bench.import_results import VERIFIED

Row = dict[str, Any]
_QUOTE = re.compile(rf"MLPerf results? (.*): {VERIFIED}")
_RESULT = re.compile(r"(?:^|; )result ([^;\s]+)")


def quote(note: str | None, source: str | None = None) -> str | None:
    """`MLPerf result 5.1-0083: derived, not verified by MLCommons`; None for a note that does not ask for it.

    A file that tells no id of its result is named by its source.
    """
    if VERIFIED not in (note or ""):
        return None
    found = _RESULT.search(note or "")
    return f"MLPerf result {found[1] if found else source or 'without an id'}: {VERIFIED}"


def quotes(texts: Iterable[str | None]) -> str | None:
    """Several (or several of several) as one: `MLPerf results 5.1-0015, 5.1-0083: derived, ...`; None of none."""
    named = (_QUOTE.fullmatch(one) for one in texts if one)
    ids = sorted({one for found in named if found for one in found[1].split(", ")})
    return f"MLPerf result{'s' * (len(ids) > 1)} {', '.join(ids)}: {VERIFIED}" if ids else None


def by_row(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The quotes of throughput rows that have one."""
    return {row["row"]: row["quote"] for row in rows if row.get("quote")}


def with_quotes(costs: Iterable[Row], rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Cost rows with `x_quote`, that of the throughput row behind each."""
    said = by_row(rows)
    return [cost | {"x_quote": said.get(cost["x_row"])} for cost in costs]


def claims_quoted(claims: Iterable[Row], rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Findings with `quotes`: MLPerf's results among the rows they rest on, with what must be said of them."""
    said = by_row(rows)
    names = ((row, (name.strip() for name in (row["rests_on"] or "").split(";"))) for row in claims)
    return [row | {"quotes": quotes(said.get(name) for name in resting)} for row, resting in names]
