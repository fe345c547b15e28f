"""Run a suite: plan, find the run to resume, measure what is missing, write each row as it comes.

The parent holds the journal and imports no torch; cells run in a worker process (bench/measure/worker.py), which
is replaced after any status but ok and on a change of backend. Whatever a cell does, the run goes on.
"""

from __future__ import annotations

import datetime
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from bench import config, plan
from bench.config import Suite
from bench.crew import Crew, Ended
from bench.journal import Journal
from bench.measure.clock import now
from bench.measure.worker import Worker, WorkerDied
from bench.plan import Cell

DESCRIBE_LIMIT_S = 180.0  # a first `import torch` on a cold disk can take a minute


class Caller(Protocol):
    """The part of a Worker that a run uses; tests replay recorded answers through it."""

    def call(self, target: str, arguments: dict[str, Any], limit_s: float) -> Any: ...

    def stop(self) -> None: ...


class Listener(Protocol):
    """Who is told how the run goes: the display."""

    def planned(self, suite: Suite, cells: list[Cell], finished: set[str], folder: Path) -> None: ...

    def started(self, cell: Cell) -> None: ...

    def ended(self, cell: Cell, row: dict[str, Any]) -> None: ...

    def stopped(self, left_out: list[Cell], reason: str) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """What a run did. `left_out`: cells a budget cut."""

    folder: Path
    measured: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[Cell] = field(default_factory=list)


def detect(worker: Caller) -> str:
    """cuda where torch finds a CUDA device, else cpu."""
    return "cuda" if worker.call("bench.measure.device:has_cuda", {}, DESCRIBE_LIMIT_S) else "cpu"


def facts_of(suite: Suite, worker: Caller) -> dict[str, Any]:
    """The machine, for environment.json. Raises WorkerDied where the suite's device is not there."""
    facts: dict[str, Any] = worker.call("bench.measure.device:describe", {"device": suite.device}, DESCRIBE_LIMIT_S)
    gpu = "cpu" if suite.device == "cpu" else plan.gpu_key(facts["device_name"])
    several = {"n_gpus": worker.world.size} if isinstance(worker, Crew) else {}
    return {"suite": suite.key, "gpu": gpu, **facts, **several, **commit()}


def cells_of(suite: Suite, facts: dict[str, Any]) -> list[Cell]:
    """What the suite measures on this machine; ranks on a CPU share its memory, and it may have no bf16 arithmetic."""
    ranks = facts.get("n_gpus", 1)
    memory = facts.get("device_memory_bytes") or facts["memory_bytes"] / ranks
    return plan.cells(suite, memory, ranks, bf16=facts.get("cpu_bf16", True))


def commit() -> dict[str, Any]:
    """The git commit and whether the tree is dirty: recorded, never a key. Blank without git."""

    def git(*arguments: str) -> str | None:
        try:
            answer = subprocess.run(("git", *arguments), cwd=plan.ROOT, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return answer.stdout.strip()

    status = git("status", "--porcelain", "--", "bench", "kernels", "configs")
    return {"git_commit": git("rev-parse", "HEAD"), "git_dirty": None if status is None else bool(status)}


def run(
    suite: Suite,
    out: Path,
    listener: Listener,
    *,
    fresh: bool = False,
    worker: Caller | None = None,
    clock: Callable[[], float] = now,
) -> Outcome:
    """Measure the suite into `out`/runs. Raises ConfigError, JournalError, WorkerDied (no such device)."""
    begun = clock()
    worker = worker or Worker()
    try:
        facts = facts_of(suite, worker)
        cells = cells_of(suite, facts)
        facts |= {"source_hash": plan.source_hash(suite.key, cells), "plan": [cell.key for cell in cells]}
        with Journal.open(out / "runs", facts, fresh=fresh) as journal:
            journal.forget_passing_failures()
            finished = journal.finished()
            listener.planned(suite, cells, finished, journal.folder)
            todo = [cell for cell in cells if cell.key not in finished]
            return _measure(todo, suite, facts, journal, worker, listener, begun, clock)
    finally:
        worker.stop()


def _measure(
    todo: list[Cell],
    suite: Suite,
    facts: dict[str, Any],
    journal: Journal,
    worker: Caller,
    listener: Listener,
    begun: float,
    clock: Callable[[], float],
) -> Outcome:
    outcome = Outcome(journal.folder)
    backend = None
    for position, cell in enumerate(todo):
        left = suite.budget_s - (clock() - begun)
        if cell.estimate_s > left:
            outcome.left_out.extend(todo[position:])
            listener.stopped(outcome.left_out, f"the budget of {suite.budget_s:g} s is used up")
            break
        if backend not in (None, cell.backend):
            worker.stop()
        backend = cell.backend
        listener.started(cell)
        started = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"
        ended = None
        try:
            answer = _answer(cell, suite.device, worker, min(cell.limit_s, max(left, cell.estimate_s)))
        except Ended as end:
            ended, answer = end, {"status": "crashed", "reason": str(end)}
        if answer["status"] == "timeout" and left < cell.limit_s:  # the budget cut it, not its own limit: no verdict
            worker.stop()
            outcome.left_out.extend(todo[position:])
            listener.stopped(outcome.left_out, f"the budget of {suite.budget_s:g} s ended while {cell.key} ran")
            break
        samples, tables = answer.pop("step_s", []), answer.pop("tables", None)
        row = cell.columns() | answer
        row |= {"run": journal.folder.name, "suite": suite.key, "device": suite.device, "gpu": facts["gpu"]}
        row |= {"device_name": facts["device_name"], "started_at": started}
        if cell.is_part:
            # its rate is not the model's: only the two-depth fit, right of the CSV, may use a slice's times
            row |= dict.fromkeys(("system_tokens_per_s", "system_tokens_per_s_low", "system_tokens_per_s_high"))
        journal.append(row, samples, tables)
        outcome.measured.append(row)
        listener.ended(cell, row)
        if ended:
            raise ended
        if row["status"] != "ok":
            worker.stop()
    return outcome


def _answer(cell: Cell, device: str, worker: Caller, limit_s: float) -> dict[str, Any]:
    """The worker's columns for one cell, or a status with its reason."""
    if cell.unavailable:
        return {"status": "unavailable", "reason": cell.unavailable}
    try:
        reason = worker.call(*cell.possible(device), DESCRIBE_LIMIT_S)
        if reason:
            return {"status": "unavailable", "reason": reason}
        request = cell.request() | {"device": device}
        if cell.n_gpus > 1:
            assert isinstance(worker, Crew)
            shared: dict[str, Any] = worker.together(request, limit_s)
            return shared
        answer: dict[str, Any] = worker.call("bench.measure.cell:run", request, limit_s)
    except WorkerDied as death:
        return {"status": death.status, "reason": death.reason}
    return answer


def suite_for(key: str, worker: Caller) -> Suite:
    """The suite of that key, or the one it names for a machine without CUDA; `auto` is quick, or smoke on a CPU."""
    if key == "auto":
        key = "quick" if detect(worker) == "cuda" else "smoke"
    suite = config.load(Suite, key)
    return config.load(Suite, suite.on_cpu) if suite.on_cpu and detect(worker) == "cpu" else suite
