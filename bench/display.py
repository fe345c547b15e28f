"""What a person sees while a suite runs: the plan, then a line a cell, with a live bar where there is a terminal.

In a pipe the same lines come plain. Everything here goes to standard error, so standard output stays for data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from bench.config import Suite
from bench.plan import Cell
from bench.points.ladder import Served


def seconds(value: float | None) -> str:
    """A time for people: 3 significant digits with its unit."""
    if value is None:
        return "–"
    for limit, scale, unit in ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms"), (180.0, 1.0, "s")):
        if value < limit:
            return f"{value * scale:.3g} {unit}"
    return f"{value / 60:.3g} min"


def rate(row: dict[str, Any]) -> str:
    """What a row says in one phrase: tokens/s, or the ceiling's FLOP/s or bytes/s, or why there is nothing."""
    if row["status"] != "ok":
        return f"{row['status']}: {row.get('reason') or ''}"
    step, point = row.get("step_s_last_third"), row.get("point")
    if row.get("system_tokens_per_s"):
        said = f"{row['system_tokens_per_s']:,.0f} {row['token_kind']} tokens/s" + (f" at {point}" if point else "")
    elif row.get("tokens_per_step"):
        said = f"{seconds(step)} a step of {row['layers_measured']} of {row['layers']} layers"
    elif row.get("flops_per_step", 0) > 100 * (row.get("bytes_per_step") or 1):
        said = f"{row['flops_per_step'] / step / 1e12:.3g} TFLOP/s"
    else:
        said = f"{row['bytes_per_step'] / step / 1e9:.4g} GB/s"
    # what serves has no one step: the interval is the rate's
    low, high, middle = ("_low", "_high", "") if point else ("low", "high", "median")
    of = "system_tokens_per_s" if point else "step_s_"
    spread = (row[of + high] - row[of + low]) / 2 / row[of + middle]
    flags = f"  [{row['flags'].replace('+', ', ')}]" if row.get("flags") else ""
    return f"{said} ± {spread:.1%}{flags}"


class Display:
    """Listens to a run (bench/run.py: Listener)."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.task = self.progress.add_task("", total=0)
        self.width = 0  # of the longest cell key

    def planned(self, suite: Suite, cells: list[Cell], finished: set[str], folder: Path) -> None:
        todo = [cell for cell in cells if cell.key not in finished]
        self.width = max((len(cell.key) for cell in todo), default=0)
        estimate = sum(cell.estimate_s for cell in todo)
        self.say(f"suite {suite.key}: {suite.about}")
        if finished:
            self.say(f"resuming {folder.name}: {len(finished)} of {len(cells)} cells are measured")
        if not todo:
            self.say("nothing left to measure; --fresh (make bench FRESH=1) starts a new run")
            return
        self.say(f"plan: {len(todo)} cells, about {seconds(estimate)}, budget {seconds(suite.budget_s)}")
        if self.console.is_terminal:
            table = Table(box=None, padding=(0, 2), header_style="bold")
            for name in ("cell", "phase", "precision", "time"):
                table.add_column(name, justify="right" if name == "time" else "left")
            for cell in todo:
                table.add_row(cell.key, cell.workload.phase, cell.workload.precision, seconds(cell.estimate_s))
            self.console.print(table)
        else:
            for cell in todo:
                self.say(f"  {cell.key}  {cell.workload.precision}  {seconds(cell.estimate_s)}")
        self.progress.update(self.task, total=len(todo))
        self.progress.start()

    def started(self, cell: Cell) -> None:
        self.progress.update(self.task, description=cell.key)

    def ended(self, cell: Cell, row: dict[str, Any]) -> None:
        mark, colour = {"ok": ("ok", "green"), "unavailable": ("--", "yellow")}.get(row["status"], ("!!", "red"))
        self.progress.advance(self.task)
        # one print a line: a live bar takes the screen back between two
        self.console.print(Text.assemble((mark, colour), f" {cell.key:<{self.width}}  {rate(row)}"))

    def point(self, one: Served) -> None:
        """One load of a ladder that was climbed here: what its users saw."""
        p = one.point
        if p.output_tokens_per_s is None:
            became = {"completed": p.requests_completed, "failed": p.requests_failed, "cut": p.requests_cut}
            counts = ", ".join(f"{count} {name}" for name, count in became.items())
            self.say(f"-- {one.name:<16}  too few requests for a steady window: {counts} {p.failed_by_status}".rstrip())
        else:
            half = ((p.output_tokens_per_s_high or 0) - (p.output_tokens_per_s_low or 0)) / 2 / p.output_tokens_per_s
            said = f"{p.output_tokens_per_s:,.0f} output tokens/s ± {half:.1%}"
            said += f"  TTFT {seconds(p.ttft_s_p50)}  TPOT {seconds(p.tpot_s_p50)}"
            said += f"  SLO kept by {p.slo_attainment:.0%}" if p.slo_attainment is not None else ""
            flags = [*p.flags, *(f"void: {reason}" for reason in p.void)]
            self.say(f"ok {one.name:<16}  {said}" + (f"  [{', '.join(flags)}]" if flags else ""))
        for note in one.course.notes:
            self.say(f"   {note}")

    def stopped(self, left_out: list[Cell], reason: str) -> None:
        self.say(f"stopped: {reason}; left out: {', '.join(cell.key for cell in left_out)}")
        self.say("the same command goes on with them")

    def say(self, text: str) -> None:
        """One plain line."""
        self.console.print(text, markup=False)

    def close(self) -> None:
        """Take the bar off the screen."""
        self.progress.stop()
