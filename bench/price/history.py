"""What a GPU-hour has cost over time: configs/price_history.csv, a month a line, one product a series.

A series is one seller's price of one GPU under one term, always of the same product in the same region (`what`): the
median over all a seller lists moves when the list does, and would tell of changes of price that never were. `n` is the
number of days (or regions, or offers) its month is the median of. Sellers that have no file in configs/providers stand
here too: a history needs many, a bill does not.
"""

from __future__ import annotations

import datetime
import functools
import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import config, results
from bench.config import ConfigError
from bench.price.book import LEVELS, Provider

COLUMNS: dict[str, tuple[str, str]] = {
    "month": ("s", "YYYY-MM"),
    "provider": ("s", "key of configs/providers, or the seller's or index's own name"),
    "gpu": ("s", "GPU key"),
    "term": ("s", ", ".join(LEVELS)),
    "usd_per_gpu_hour": ("f", "median of the month"),
    "n": ("i", "observations it is the median of"),
    "what": ("s", "the product and its region: the same all along"),
    "source": ("s", "full address"),
}
PREFIX = "price_history:"  # <provider>/<gpu>/<term>: a series, where a finding says what it rests on
_MONTH = re.compile(r"20\d\d-(0[1-9]|1[0-2])")


@dataclass(frozen=True)
class Change:
    """How far one series moved within some months."""

    provider: str
    gpu: str
    term: str
    first: dict[str, Any]
    last: dict[str, Any]

    @property
    def months(self) -> int:
        """Months from the first price to the last."""
        (y0, m0), (y1, m1) = (map(int, row["month"].split("-")) for row in (self.first, self.last))
        return 12 * (y1 - y0) + m1 - m0

    @property
    def log(self) -> float:
        """Logarithm of last over first."""
        return math.log(self.last["usd_per_gpu_hour"] / self.first["usd_per_gpu_hour"])

    @property
    def log_per_year(self) -> float:
        """The same, a year."""
        return self.log * 12 / self.months


def history(as_of: datetime.date = datetime.date.max) -> list[dict[str, Any]]:
    """Every month that was over by `as_of`, in order. Raises ConfigError or ResultsError, naming file and line."""
    path = config.CONFIGS / "price_history.csv"
    rows = results.read_rows(path, COLUMNS) if path.is_file() else []
    gpus, seen, products = config.keys(config.Gpu), set(), dict[tuple[str, ...], str]()
    for number, row in enumerate(rows, start=2):
        where = f"configs/price_history.csv line {number}"
        for name in COLUMNS:
            if row[name] is None:
                raise ConfigError(f"{where}: {name}: blank; every month has one")
        if not _MONTH.fullmatch(row["month"]):
            raise ConfigError(f"{where}: month: expected YYYY-MM, got {row['month']!r}")
        for name, allowed in (("gpu", gpus), ("term", list(LEVELS))):
            if row[name] not in allowed:
                raise ConfigError(f"{where}: {name}: expected one of {', '.join(allowed)}, got {row[name]!r}")
        if row["usd_per_gpu_hour"] <= 0:
            raise ConfigError(f"{where}: usd_per_gpu_hour: expected a positive price, got {row['usd_per_gpu_hour']}")
        if not row["source"].startswith("http"):
            raise ConfigError(f"{where}: source: expected the full address of the figure, got {row['source']!r}")
        key = (row["provider"], row["gpu"], row["term"])
        if (*key, row["month"]) in seen:
            raise ConfigError(f"{where}: expected one price a month; twice: {', '.join(key)}, {row['month']}")
        seen.add((*key, row["month"]))
        if (product := products.setdefault(key, row["what"])) != row["what"]:
            raise ConfigError(f"{where}: what: expected {product!r}, one product a series, got {row['what']!r}")
    return sorted((row for row in rows if row["month"] < f"{as_of:%Y-%m}"), key=lambda row: row["month"])


def series(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """Rows by provider, GPU and term, each in order of its months."""
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        found[row["provider"], row["gpu"], row["term"]].append(row)
    return dict(found)


def changes(rows: Iterable[dict[str, Any]], gpu: str, term: str, since: str, until: str, least: int) -> list[Change]:
    """The change of each series of a GPU and term within some months, of those that cover at least `least` months."""
    inside = [r for r in rows if (r["gpu"], r["term"]) == (gpu, term) and since <= r["month"] <= until]
    found = [Change(*key, line[0], line[-1]) for key, line in series(inside).items() if len(line) > 1]
    return sorted((one for one in found if one.months >= max(least, 1)), key=lambda one: one.provider)


def name_of(provider: str) -> str:
    """A seller as people say it: a key's name, and whoever has none by its own."""
    return _names(config.CONFIGS).get(provider, provider)


@functools.cache
def _names(configs: Path) -> dict[str, str]:
    """Names by key, of the sellers in a folder of configs."""
    return {path.stem: config.read(Provider, path).name for path in (configs / Provider.FOLDER).glob("*.toml")}
