"""The price book: who sells a GPU hour, where, on which terms, at what price, seen when and where.

A provider is one TOML in configs/providers. Its prices are `[[price]]` tables there or, where they are many, lines of
the CSV of the same stem beside it. A price without date or source does not load, because a price nobody can check is
not a fact. Prices come at three levels and only the same level is compared:

    retail    on_demand, spot, capacity_block        what anybody pays today (a block: paid ahead, for days to weeks)
    contract  reserved_1y, reserved_3y, contract     what a tenant pays who signs for years
    owner     owned                                  what the machine costs its owner (an annuity: owned.py)

`usd_per_gpu_hour` is per provisioned hour, always: how much of the hour does work is said once, in cost.py.

Old prices stay. `standing` is the book on a day: of each offer (region, SKU, GPU, term) the newest price known then.
Whoever prices anything asks it, so a superseded price is in no median.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from bench import config, results
from bench.config import ConfigError
from bench.price.offer import INCLUDES, KINDS, LEVELS, CpuPrice, Owned, Price, Provider, Range

__all__ = ["INCLUDES", "KINDS", "LEVELS", "CpuPrice", "Owned", "Price", "Provider", "Range"]

Row = dict[str, Any]
STALE_DAYS = 90
STALE_DAYS_SPOT = 14  # spot moves within weeks
LISTED: dict[str, tuple[str, str]] = {  # configs/providers/<key>.csv, and what `bench prices refresh` writes
    "region": ("s", "as the seller names it"),
    "sku": ("s", "instance or product"),
    "gpu": ("s", "GPU key"),
    "gpu_count": ("i", "GPUs sold together"),
    "includes": ("s", "instance, or gpu_only: CPU, memory and disk are billed on top"),
    "term": ("s", ", ".join(LEVELS)),
    "usd_per_gpu_hour": ("f", "per provisioned hour"),
    "low": ("f", "where the source gives a range"),
    "high": ("f", "likewise"),
    "as_of": ("s", "the day it was seen, YYYY-MM-DD"),
    "source": ("s", "full address of the figure"),
    "note": ("s", "caveats"),
}


def provider(path: Path) -> Provider:
    """A provider's TOML with the CSV of the same stem beside it. Raises ConfigError."""
    found, beside = config.read(Provider, path), path.with_suffix(".csv")
    if beside.is_file():
        try:
            found = replace(found, price=(*found.price, *listed(beside)))
        except ValueError as error:
            raise ConfigError(f"{shown(beside)}: {error}") from None
    if not (found.price or found.cpu_price or found.owned):
        tables = "at least one [[price]], [[cpu_price]] or [[owned]] table, or a CSV of that stem beside it"
        raise ConfigError(f"{shown(path)}: price: expected {tables}")
    return found


def listed(path: Path) -> tuple[Price, ...]:
    """The prices of a CSV with the columns LISTED. Raises ConfigError or ResultsError, naming file and line."""
    return tuple(price for _, price in priced(path, LISTED))


def priced(path: Path, columns: Mapping[str, tuple[str, str]]) -> Iterator[tuple[Row, Price]]:
    """Each row of a CSV as it stands and as a price; `columns` are LISTED and perhaps more."""
    for number, row in enumerate(results.read_rows(path, columns), start=2):
        where = f"{shown(path)} line {number}"
        filled = {name: row[name] for name in LISTED if row[name] is not None}
        try:
            filled["as_of"] = datetime.date.fromisoformat(row["as_of"] or "")
        except ValueError:
            raise ConfigError(f"{where}: as_of: expected a date, YYYY-MM-DD, got {row['as_of']!r}") from None
        yield row, config.build(Price, filled, where)


def shown(path: Path) -> Path:
    """A path as messages name it: configs/... where it is one of ours."""
    return path.relative_to(config.CONFIGS.parent) if path.is_relative_to(config.CONFIGS.parent) else path


def providers(own: Iterable[Path] = ()) -> dict[str, Provider]:
    """Every provider by key: the listing of configs/providers, then the user's `own` files, marked by their names."""
    folder = config.CONFIGS / Provider.FOLDER
    found = {key: provider(folder / f"{key}.toml") for key in config.keys(Provider)}
    for path in folder.glob("*.csv"):
        if path.stem not in found:
            raise ConfigError(f"{shown(path)}: expected {path.stem}.toml beside it, which names the provider")
    for path in own:
        if path.stem in found:
            raise ConfigError(f"{path}: {path.stem} is a provider already; rename the file: its stem is the key")
        mine = provider(path)
        found[path.stem] = replace(mine, name=f"{mine.name} ({path.name})")
    return found


Dated = TypeVar("Dated", Price, CpuPrice, Owned)


def newest(rows: Iterable[Dated], as_of: datetime.date) -> tuple[Dated, ...]:
    """Of each offer the newest row known at `as_of`."""
    found: dict[tuple[str, ...], Dated] = {}
    for row in rows:
        if row.as_of <= as_of and (row.offer not in found or found[row.offer].as_of < row.as_of):
            found[row.offer] = row
    return tuple(found.values())


def standing(book: Iterable[Provider], as_of: datetime.date) -> list[Provider]:
    """The book on a day: superseded and later prices left out, and whoever had none then."""
    there = (
        replace(p, price=newest(p.price, as_of), cpu_price=newest(p.cpu_price, as_of), owned=newest(p.owned, as_of))
        for p in book
    )
    return [p for p in there if p.price or p.cpu_price or p.owned]


def is_stale(price: Price | CpuPrice, as_of: datetime.date) -> bool:
    """Whether a price is too old to be quoted at `as_of` without a warning."""
    days = STALE_DAYS_SPOT if price.term == "spot" else STALE_DAYS
    return (as_of - price.as_of).days > days


def staleness(book: Iterable[Provider], as_of: datetime.date) -> str | None:
    """One line for all prices that stand at `as_of` and are too old, or None where none is."""
    rows: list[tuple[str, Price | CpuPrice]] = []
    for seller in standing(book, as_of):
        rows += [(seller.key, price) for price in seller.price]
        rows += [(seller.key, price) for price in seller.cpu_price]
    old = [(price.as_of, key) for key, price in rows if is_stale(price, as_of)]
    if not old:
        return None
    sellers = ", ".join(sorted({key for _, key in old}))
    return (
        f"{len(old)} of {len(rows)} prices are older than {STALE_DAYS} days (spot: {STALE_DAYS_SPOT} days) "
        f"at {as_of}; the oldest is of {min(old)[0]}: {sellers}"
    )
