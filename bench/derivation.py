"""Which facts a derivation rests on, where its files go, and the day it speaks of."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from bench import runs as run_folders
from bench.config import ConfigError
from bench.price import imports


@dataclass(frozen=True)
class Derivation:
    """Which runs, into which folder, as of which date."""

    runs: list[Path]
    target: Path
    as_of: datetime.date
    tracked: bool = False  # the public files: the README's table is one of them
    prices: tuple[Path, ...] = ()  # providers of the user's own
    imports: tuple[Path, ...] = ()  # what `bench import` landed

    @classmethod
    def of(
        cls,
        out: Path,
        runs: list[Path] | None,
        tracked: bool,
        as_of: datetime.date | None = None,
        prices: list[Path] | None = None,
    ) -> Derivation:
        """The public files (`tracked`) or this machine's own. Raises ConfigError for what cannot be.

        With `as_of`, runs of later days are left out, unless they are named.
        """
        for folder in runs or []:
            if not (folder / "cells.csv").is_file():
                raise ConfigError(f"{folder}: no cells.csv there; expected a run folder")
        if tracked:
            if prices:
                raise ConfigError(
                    "--prices: expected without --tracked: the public files rest on configs/providers alone"
                )
            day = as_of or read_as_of(out / "as_of")
            return cls(until(tracked_runs(out / "runs"), as_of), out, day, True, imports=imports.landed(out, True))
        chosen = runs or until(sorted(path.parent for path in (out / "runs").glob("*/cells.csv")), as_of)
        day = as_of or datetime.datetime.now(datetime.UTC).date()
        return cls(chosen, out / "local", day, prices=tuple(prices or ()), imports=imports.landed(out, False))


def until(runs: list[Path], as_of: datetime.date | None) -> list[Path]:
    """Runs started by a day; the folder's name begins with its UTC date."""
    return [run for run in runs if as_of is None or run.name[:8] <= f"{as_of:%Y%m%d}"]


def read_as_of(path: Path) -> datetime.date:
    """The date the public files speak of. Raises ConfigError."""
    try:
        return datetime.date.fromisoformat(path.read_text().strip())
    except (OSError, ValueError):
        raise ConfigError(f"{path}: expected one date, YYYY-MM-DD") from None


def tracked_runs(runs: Path) -> list[Path]:
    """Run folders git tracks; where there is no git, every run folder."""
    folders = sorted(path.parent for path in runs.glob("*/cells.csv"))
    names = run_folders.tracked_runs(runs)
    return [folder for folder in folders if names is None or folder.name in names]
