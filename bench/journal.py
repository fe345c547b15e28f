"""A run folder on disk: found again or made, locked, mended after a kill, appended to row by row.

A row of cells.csv is what finishes a cell; its samples are written just before it. After a kill, samples of
a cell without a row are dropped and a torn last line is cut, so nothing is lost and nothing is doubled.
"""

from __future__ import annotations

import datetime
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import filelock

from bench import results, serving_results
from bench import runs as run_folders

# what must agree to resume a run
IDENTITY = ("suite", "plan", "device_uuid", "n_gpus", "threads", "source_hash", "torch", "triton")
SCHEMA = 1
BESIDE = {"samples": results.SAMPLES, **serving_results.TABLES}  # files with rows of a cell, written before its own
TRIED_AGAIN = ("crashed", "timeout", "error", "unavailable")  # by the next `make bench` of the same run


class JournalError(Exception):
    """The results folder cannot be used: one clear line. Exit code 1."""


def find(runs: Path, facts: Mapping[str, Any]) -> Path | None:
    """The newest run folder whose identity equals that of `facts`, finished or not; a committed run is closed."""
    closed = run_folders.tracked_runs(runs) or set()
    for folder in sorted(runs.glob("*/environment.json"), reverse=True):
        if folder.parent.name in closed:
            continue
        try:
            there = json.loads(folder.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # a run folder killed before its first file was whole: nothing was measured in it
        if all(there.get(name) == facts.get(name) for name in IDENTITY):
            return folder.parent
    return None


def pack(folder: Path, into: Path) -> Path:
    """The run folder as one .tar.gz in `into`, to carry it off a GPU host. Raises JournalError."""
    archive = into / f"{folder.name}.tar.gz"
    try:
        into.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(folder, arcname=folder.name)
    except OSError as error:
        raise JournalError(f"{archive}: cannot be written: {error.strerror}") from None
    return archive


class Journal:
    """One run folder, held by this process alone. Use as a context manager."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.lock = filelock.FileLock(folder.parent / f".{folder.name}.lock")

    @classmethod
    def open(cls, runs: Path, facts: Mapping[str, Any], *, fresh: bool = False) -> Journal:
        """Resume the newest run with these facts' identity, or start one. Raises JournalError."""
        folder = None if fresh else find(runs, facts)
        try:
            runs.mkdir(parents=True, exist_ok=True)
            if folder is None:
                started = datetime.datetime.now(datetime.UTC)
                name = f"{started:%Y%m%dT%H%M%S}_{facts['suite']}_{facts['gpu'] or 'unknown'}_{facts['source_hash']}"
                while (runs / name).exists():  # two fresh runs within one second
                    name += "x"
                folder = runs / name
                record = {"schema": SCHEMA, "run": name, "started_at": f"{started:%Y-%m-%dT%H:%M:%SZ}", **facts}
                part = runs / f".{name}.part"  # a run folder is there with its first file, or not at all
                part.mkdir()
                (part / "environment.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
                part.rename(folder)
            return cls(folder)
        except OSError as error:
            raise JournalError(f"{runs}: cannot write results there: {error.strerror}") from None

    def __enter__(self) -> Journal:
        try:
            self.lock.acquire(timeout=0)
        except filelock.Timeout:
            raise JournalError(f"{self.folder}: another process is writing this run") from None
        except OSError as error:
            raise JournalError(f"{self.folder}: cannot write results there: {error.strerror}") from None
        try:
            self._mend()
        except BaseException:
            self.lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.release()  # the lock file stays: removing it would let two others hold one run

    @property
    def cells(self) -> Path:
        return self.folder / "cells.csv"

    def rows(self) -> list[dict[str, Any]]:
        """The finished cells, in the order they were measured."""
        return results.read_rows(self.cells, results.CELLS) if self.cells.exists() else []

    def finished(self) -> set[str]:
        """Keys of the cells that have a row."""
        return {row["cell"] for row in self.rows()}

    def forget_passing_failures(self) -> None:
        """Drop the rows of cells that failed for a reason that may have passed, so that they are tried again."""
        rows = self.rows()
        kept = [row for row in rows if row["status"] not in TRIED_AGAIN]
        if len(kept) < len(rows):
            results.write(self.cells, results.CELLS, kept)

    def append(
        self, row: Mapping[str, Any], samples: list[float], tables: Mapping[str, list[dict[str, Any]]] | None = None
    ) -> None:
        """Record one finished cell. Raises JournalError, with nothing half-written, where the disk refuses.

        `tables`: rows of points, requests and steps, where the cell serves.
        """
        timed = [{"sample": i, "step_s": s} for i, s in enumerate(samples)]
        self.beside(row["cell"], {"samples": timed, **(tables or {})})
        self._write("cells", results.CELLS, [row])

    def beside(self, cell: str, tables: Mapping[str, list[dict[str, Any]]]) -> None:
        """Rows that stand beside a cell's own, which comes last. Raises JournalError."""
        for name, rows in tables.items():
            self._write(name, BESIDE[name], [{"cell": cell, **one} for one in rows])

    def _write(self, name: str, columns: Mapping[str, Any], rows: list[Any]) -> None:
        try:
            if rows:
                results.append(self.folder / f"{name}.csv", columns, rows)
        except OSError as error:
            raise JournalError(f"{self.folder}: cannot write results there: {error.strerror}") from None

    def _mend(self) -> None:
        """Cut a torn last line of any file; drop what stands beside a cell that never got its row."""
        for path in (self.cells, *(self.folder / f"{name}.csv" for name in BESIDE)):
            if path.exists() and not path.read_bytes().endswith(b"\n"):
                whole = path.read_bytes()
                path.write_bytes(whole[: whole.rfind(b"\n") + 1])
                if not path.read_bytes():
                    path.unlink()
        finished = self.finished()
        for name, columns in BESIDE.items():
            path = self.folder / f"{name}.csv"
            taken = results.read_rows(path, columns) if path.exists() else []
            kept = [row for row in taken if row["cell"] in finished]
            if len(kept) < len(taken):
                results.write(path, columns, kept)
