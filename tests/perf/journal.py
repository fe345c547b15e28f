"""The run folder of kernel measurements: found or made, appended to row by row, with a note of what is running.

Each case is noted before it starts and its row is appended and flushed when it ends, so whatever stops the process,
what was measured is kept and what stopped it is known.
"""

from __future__ import annotations

import datetime
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import results
from bench.config import Gpu
from bench.kernel_results import KERNELS, derived, key_of, read_kernels

SCHEMA = 1
ROOT = Path(__file__).resolve().parents[2]


def new_folder(out: Path, facts: Mapping[str, Any]) -> Path:
    """A run folder under `out` (kernels/<UTC>_<gpu>_<source>; a CPU's under local/), with its environment.json."""
    started = datetime.datetime.now(datetime.UTC)
    gpu = facts["gpu"] or "unknown"
    place = out / "local" / "kernels" if gpu == "cpu" else out / "kernels"
    folder = place / f"{started:%Y%m%dT%H%M%S}_{gpu}_{facts['source_hash']}"
    folder.mkdir(parents=True)
    record = {"schema": SCHEMA, "run": folder.name, "started_at": f"{started:%Y-%m-%dT%H:%M:%SZ}", **facts}
    (folder / "environment.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return folder


class Journal:
    """One run folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.path = folder / "kernels.csv"
        self.note = folder / ".running"
        self.facts = json.loads((folder / "environment.json").read_text(encoding="utf-8"))

    def rows(self) -> list[dict[str, Any]]:
        """Every row so far."""
        return read_kernels(self.folder) if self.path.exists() else []

    def finished(self) -> set[tuple[str, ...]]:
        """The keys that have a row."""
        return {key_of(row) for row in self.rows()}

    def start(self, key: tuple[str, ...]) -> None:
        """Note what is about to run."""
        self.note.write_text(json.dumps(key), encoding="utf-8")

    def running(self) -> tuple[str, ...] | None:
        """What was running when its process stopped."""
        return tuple(json.loads(self.note.read_text(encoding="utf-8"))) if self.note.exists() else None

    def seconds_running(self) -> float:
        """Since the case that is running was noted; 0 between cases."""
        try:
            return time.time() - self.note.stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def append(self, key: tuple[str, ...], row: Mapping[str, Any]) -> None:
        """The row of what ended. The run, the machine and the date are filled in here."""
        op, part, shape, implementation = key
        known = {
            "run": self.folder.name,
            "op": op or None,
            "part": part or None,
            "shape": shape or None,
            "implementation": implementation,
            "device_name": self.facts["device_name"],
            "torch": self.facts["torch"],
            "triton": self.facts["triton"],
            "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}",
        }
        results.append(self.path, KERNELS, [known | row])
        self.note.unlink(missing_ok=True)

    def derive(self, gpu: Gpu | None, sizes: Mapping[tuple[str, str], str]) -> list[dict[str, Any]]:
        """Fill in what follows from the run's own rows; the file is replaced whole."""
        rows = self.rows()
        if rows:
            peaks = gpu.peak_flops_per_s if gpu else {}
            rows = derived(rows, sizes, peaks, gpu.hbm_bytes_per_s if gpu else None)
            results.write(self.path, KERNELS, rows)
        return rows


def setting(name: str, default: str) -> str:
    """An environment variable of `make perf`; blank counts as unset."""
    return os.environ.get(name) or default
