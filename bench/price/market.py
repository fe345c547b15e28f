"""What follows from rates and prices beside costs.csv, each a CSV of its own: buying tokens, and a day's load.

`derive.py` asks this file alone, and everything it writes is listed here.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import results
from bench.price import break_even_api, day_costs
from bench.price.book import Provider
from bench.price.carbon import with_carbon
from bench.price.quoted import with_quotes

Row = dict[str, Any]
TABLES: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "break_even_api": break_even_api.COLUMNS,
    "day_costs": day_costs.COLUMNS,
}
FILES = tuple(f"{name}.csv" for name in TABLES)


def finished(costs: Iterable[Row], rows: Sequence[Row], as_of: datetime.date) -> list[Row]:
    """Cost rows with energy, carbon and what must be said of them."""
    return with_quotes(with_carbon(costs, rows, as_of), rows)


def market(rows: Sequence[Row], as_of: datetime.date, book: Sequence[Provider]) -> dict[str, list[Row]]:
    """The tables by name. Raises ConfigError or ResultsError for a malformed config."""
    return {
        "break_even_api": break_even_api.break_evens(rows, as_of, book),
        "day_costs": day_costs.day_costs(rows, as_of, book),
    }


def write(folder: Path, made: Mapping[str, list[Row]]) -> list[Path]:
    """Write each table as a CSV of its name."""
    for name, rows in made.items():
        results.write(folder / f"{name}.csv", TABLES[name], rows)
    return [folder / f"{name}.csv" for name in made]
