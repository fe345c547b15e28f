"""Run folders read back: strictly, because everything derived stands on them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from bench.results import CELLS, STATUSES, ResultsError, read_rows, text


def read_cells(run: Path) -> list[dict[str, Any]]:
    """The rows of a run folder's cells.csv, each one held against what a cell must be. Raises ResultsError."""
    path = run / "cells.csv"
    rows = read_rows(path, CELLS)
    seen: set[str] = set()
    for number, row in enumerate(rows, start=2):
        where = f"{path}: line {number}"
        for name in ("run", "cell", "phase", "workload", "backend", "device"):
            if row[name] is None:
                raise ResultsError(f"{where}: {name}: blank; every cell has one")
        if row["status"] not in STATUSES:
            raise ResultsError(f"{where}: status: expected one of {', '.join(STATUSES)}, got {row['status']!r}")
        if row["cell"] in seen:
            raise ResultsError(f"{where}: cell: {row['cell']} stands twice")
        seen.add(row["cell"])
        for name, (kind, _) in CELLS.items():
            if kind != "s" and row[name] is not None and row[name] < 0:
                raise ResultsError(f"{where}: {name}: expected no negative number, got {row[name]}")
        timed = row["status"] == "ok" and row["phase"] != "serve"  # which has load points, and no one step
        for name in ("step_s_median", "step_s_last_third") if timed else ():
            if not row[name]:
                raise ResultsError(f"{where}: {name}: expected a positive time, got {text(row[name])!r}")
    return rows


def read_environment(run: Path) -> dict[str, Any]:
    """A run folder's environment.json. Raises ResultsError."""
    path = run / "environment.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ResultsError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(facts, dict):
        raise ResultsError(f"{path}: expected a JSON object")
    return facts


def tracked_runs(runs: Path) -> set[str] | None:
    """Names of the run folders git tracks: committed facts, closed for good. None where there is no git."""
    try:
        command = ("git", "ls-files", "--", ".")
        listed = subprocess.run(command, cwd=runs, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return {line.split("/")[0] for line in listed.stdout.splitlines()}
