"""What was measured: every cell with its status, rate and interval, failures with their reason, and the machines.

A failed cell is a row like any other: leaving it out would make the suite look as if it had never been tried.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bench.report.material import Material, row_id
from bench.report.numbers import BLANK, count, interval, number, scaled
from bench.report.page import Row, Section, Table, Text, text

# environment.json keys a reader asks for first; the rest follow in the file's own order.
FIRST = ("started_at", "suite", "device_name", "gpu", "cpu_name", "torch", "triton", "python", "git_commit")


def cell_row(cell: Mapping[str, Any]) -> Row:
    """One cell: what ran, on what, how fast, how sure; or why there is no number."""
    rate = cell["system_tokens_per_s"]
    low, high = cell["system_tokens_per_s_low"], cell["system_tokens_per_s_high"]
    remark = cell["reason"] if cell["status"] != "ok" else (cell["flags"] or "").replace("+", ", ")
    return Row(
        (
            cell["cell"],
            cell["status"],
            number(rate),
            interval(low, high, number),
            cell["token_kind"] if rate is not None else BLANK,
            scaled(cell["step_s_last_third"], "s"),
            count(cell["samples"]),
            text(remark or BLANK),
        ),
        id=row_id(f"{cell['run']}/{cell['cell']}"),
    )


def device_of(cell: Mapping[str, Any]) -> str:
    """The device's own name, with how many of it where there are several."""
    name = cell["device_name"] or cell["gpu"] or "unknown device"
    return f"{count(cell['n_gpus'])} × {name}" if (cell["n_gpus"] or 1) > 1 else f"{name}"


def environment_table(run: str, environment: Mapping[str, Any]) -> Table:
    """One run's environment.json, flat, the keys people ask for first."""
    keys = [key for key in FIRST if key in environment]
    keys += [key for key in environment if key not in keys]
    rows = tuple(Row((key, plain(environment[key]))) for key in keys)
    return Table(f"Environment of run {run}", ("fact", "value"), rows)


def plain(value: Any) -> str:
    """A JSON value in words."""
    if value is None or value == "":
        return BLANK
    if isinstance(value, dict):
        return "; ".join(f"{key} {plain(item)}" for key, item in value.items()) or BLANK
    if isinstance(value, list):
        return ", ".join(plain(item) for item in value) or BLANK
    return value if isinstance(value, str) else json.dumps(value)


def fitted_table(material: Material) -> Table:
    """Rates of whole models that no single cell measured: fits over slices of two depths."""
    cells = {f"{cell['run']}/{cell['cell']}" for cell in material.cells}
    rows = tuple(
        Row(
            (
                row["row"],
                row["basis"],
                row["layers_measured"] or BLANK,
                number(row["system_tokens_per_s"]),
                interval(row["low"], row["high"], number),
                row["token_kind"] or BLANK,
            ),
            id=row_id(row["row"]),
        )
        for row in material.throughput
        if row["basis"] == "measured" and row["row"] not in cells
    )
    columns = ("row", "basis", "layers measured", ">tokens/s", ">95% interval", "tokens")
    return Table("Rates derived from cells: fits over two depths", columns, rows)


def section(material: Material) -> Section:
    """A table of cells for each run, then the environments."""
    runs = list(dict.fromkeys(cell["run"] for cell in material.cells))
    columns = (
        "cell",
        "status",
        ">tokens/s",
        ">95% interval",
        "tokens",
        ">step",
        ">samples",
        "flags or reason",
    )
    tables = []
    for run in runs:
        cells = [cell for cell in material.cells if cell["run"] == run]
        devices = ", ".join(dict.fromkeys(device_of(cell) for cell in cells))
        tables.append(Table(f"Run {run}, {devices}", columns, tuple(cell_row(cell) for cell in cells)))
    fitted = fitted_table(material)
    tables += [fitted] if fitted.rows else []
    tables += [environment_table(run, facts) for run, facts in sorted(material.environments.items())]
    failed = sum(cell["status"] != "ok" for cell in material.cells)
    said = (
        f"{len(material.cells)} cells in {len(runs)} {'run' if len(runs) == 1 else 'runs'}, {failed} without a number."
    )
    return Section(
        id="measured",
        title="What was measured",
        text=(
            text(
                said if runs else "No run is in results/runs: nothing was measured.",
                " Rates are sustained (the last third of samples) and for the whole deployment; the interval is the 95%"
                " bootstrap interval of the median within one run."
                if runs
                else "",
            ),
        ),
        bullets=left_out(material),
        tables=tuple(tables),
    )


def left_out(material: Material) -> tuple[Text, ...]:
    """Cells a run had planned and never came to, so that a cut budget is not taken for a small suite."""
    lines = []
    for run, facts in sorted(material.environments.items()):
        done = {cell["cell"] for cell in material.cells if cell["run"] == run}
        missing = [name for name in facts.get("plan") or [] if name not in done]
        lines += [text(f"{run}: planned and not measured: {', '.join(missing)}.")] if missing else []
    return tuple(lines)
