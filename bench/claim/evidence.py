"""The public figures a claim is held against: configs/evidence.csv, by id.

A claim may only lean on figures somebody can look up, so every number in a claim file names ids of
this table (E001 ...), and a sum in it is written as ids, never as its result: "E030 over E030 plus
E028 x E183" is 1.8 / (1.8 + 5.0 x 0.096) = 0.79, and stays right when a figure is corrected.
Standard library only.
"""

from __future__ import annotations

import csv
import datetime
import difflib
import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import config
from bench.price.known import known


@dataclass(frozen=True)
class Figure:
    """One public figure; `value` is None where the source states a formula or no number."""

    key: str
    organisation: str
    metric: str
    value: float | None
    unit: str
    start: str  # period the figure is about: "2024" or "2024-01"
    end: str
    published: str  # day, month or year; blank where nobody says
    kind: str = ""  # reported, leak, statement, estimate or projection


def figures() -> dict[str, Figure]:
    """Every figure by id. Raises config.ConfigError where the file cannot be read."""
    return _read(config.CONFIGS / "evidence.csv")


@functools.cache
def _read(path: Path) -> dict[str, Figure]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            found: dict[str, Figure] = {}
            for number, row in enumerate(csv.DictReader(file), start=2):
                figure = _figure(row)
                if figure.key in found or not row["source_url"] or not figure.key:
                    wrong = "id: stands twice" if figure.key in found else "id and source_url: expected both"
                    raise config.ConfigError(f"{path}: line {number}: {wrong}")
                found[figure.key] = figure
            return found
    except (OSError, UnicodeDecodeError, KeyError, ValueError) as error:
        raise config.ConfigError(f"{path}: not a readable evidence table: {error!r}") from None


def _number(field: str, key: str) -> float:
    value = float(field)
    if not math.isfinite(value):
        raise ValueError(f"{key}: value: expected a finite number, got {field!r}")
    return value


def _figure(row: dict[str, str]) -> Figure:
    return Figure(
        key=row["id"],
        organisation=row["organisation"],
        metric=row["metric"],
        value=_number(row["value"], row["id"]) if row["value"] else None,
        unit=row["unit"],
        start=row["period_start"],
        end=row["period_end"],
        published=row["published"],
        kind=row["kind"],
    )


def hindsight(ids: Iterable[str], as_of: datetime.date) -> str | None:
    """One line where claims lean on figures published after `as_of`: their priors are those of today."""
    cited = sorted(set(ids))
    later = [name for name in cited if not known(figures()[name].published, as_of)]
    if not later:
        return None
    return f"{len(later)} of {len(cited)} public figures behind the claims were published after {as_of}: hindsight"


def require_known(ids: Iterable[str], key: str = "evidence") -> None:
    """Raises ValueError("key: expected ...") at the first id that is not in the table."""
    known = figures()
    for name in ids:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            expected = "an id of configs/evidence.csv"
            config.require(False, key, f"{expected}, got {name!r}{hint}")


def total(products: Sequence[Sequence[str]]) -> float:
    """A sum of products: [["E030"], ["E028", "E183"]] -> E030 + E028 x E183. Raises ValueError."""
    table = figures()
    values = [[table[key].value for key in product] for product in products]
    if any(value is None for product in values for value in product):
        raise ValueError(f"expected figures with a value, got {products}")
    return sum(math.prod(value for value in product if value is not None) for product in values)


def share(serving: Sequence[Sequence[str]], other: Sequence[Sequence[str]]) -> float:
    """serving / (serving + other), each a sum of products of figures; a fraction."""
    top = total(serving)
    return top / (top + total(other))


def same_number(usd: float, year: int, organisation: str) -> list[Figure]:
    """The organisation's dollar figures of that year that print as the same whole billions.

    The sign is dropped: a cash flow of -9 billion is printed as a burn of 9.
    """
    return [
        figure
        for figure in figures().values()
        if figure.unit == "USD"
        and figure.value is not None
        and figure.organisation == organisation
        and figure.start[:4] == figure.end[:4] == str(year)
        and round(abs(figure.value) / 1e9) == round(usd / 1e9)
    ]
