"""Snapshots of refreshed prices: results/local/prices/<date>.csv, the columns of a provider's CSV behind a `provider`.

`bench prices refresh` writes them, this machine's own derivation reads the newest one, the public files never do: they
rest on what is committed. A snapshot is a seller's whole catalogue of a day, under names of its own, so where it has a
GPU under a term, the seller's older prices of that GPU and term stand back.
"""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path

from bench import results
from bench.config import ConfigError
from bench.price.book import LISTED, Price, Provider, priced

COLUMNS = {"provider": ("s", "key of configs/providers"), **LISTED}
Prices = dict[str, list[Price]]  # by provider


def newest(folder: Path, as_of: datetime.date) -> Path | None:
    """The newest snapshot of a folder that was there on a day."""
    found = {}
    for path in folder.glob("*.csv"):
        try:
            found[datetime.date.fromisoformat(path.stem)] = path
        except ValueError:
            raise ConfigError(f"{path}: expected a snapshot named by its day, such as 2026-11-28.csv") from None
    return max(((day, path) for day, path in found.items() if day <= as_of), default=(None, None))[1]


def read(path: Path) -> Prices:
    """The prices of a snapshot by provider. Raises ConfigError or ResultsError, naming file and line."""
    found: Prices = defaultdict(list)
    for row, price in priced(path, COLUMNS):
        if not row["provider"]:
            raise ConfigError(f"{path}: {price.sku} in {price.region}: provider: blank; every price has one")
        found[row["provider"]].append(price)
    return dict(found)


def write(path: Path, prices: Mapping[str, Iterable[Price]]) -> None:
    """A snapshot, whole."""
    names = [field.name for field in fields(Price)]
    rows = [
        {"provider": key, **{name: getattr(price, name) or None for name in names}}
        for key in sorted(prices)
        for price in prices[key]
    ]
    results.write(path, COLUMNS, rows)


def refreshed(book: Mapping[str, Provider], folder: Path, as_of: datetime.date) -> dict[str, Provider]:
    """The book with the newest snapshot in `folder`, as of a day; unchanged where there is none. Raises ConfigError."""
    path = newest(folder, as_of)
    if path is None:
        return dict(book)
    snapshot = read(path)
    for key in snapshot:
        if key not in book:
            raise ConfigError(f"{path}: provider: expected a key of configs/providers, got {key!r}")
    return {key: with_snapshot(seller, snapshot.get(key, ())) for key, seller in book.items()}


def with_snapshot(seller: Provider, fresh: Iterable[Price]) -> Provider:
    """A seller whose prices of each GPU and term are the snapshot's, unless one of ours is as new."""
    seen: dict[tuple[str, str], datetime.date] = {}
    for price in fresh:
        seen[price.gpu, price.term] = max(price.as_of, seen.get((price.gpu, price.term), datetime.date.min))
    ours = [p for p in seller.price if p.includes == "instance" and (p.gpu, p.term) in seen]
    newer = {(p.gpu, p.term) for p in ours if p.as_of >= seen[p.gpu, p.term]}
    kept = [p for p in seller.price if p not in ours or (p.gpu, p.term) in newer]
    return replace(seller, price=(*kept, *(p for p in fresh if (p.gpu, p.term) not in newer)))
