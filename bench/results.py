"""The schema of every CSV, and the only code that reads or writes them.

A run folder `results/runs/<UTC>_<suite>_<gpu>_<src8>/` holds facts: `environment.json`, `cells.csv` (a row a cell)
and `samples.csv` (a row a sample). Facts are written once, appended row by row and flushed, and never edited.
`costs.csv` and `claims.csv` are derived: rebuilt any time from facts and configs.

Columns are listed by hand, append-only; base units stand in the name; missing is blank, never 0 or inf.
This module needs pandas to read and nothing but the standard library to write.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.money_results import BACKTEST as BACKTEST
from bench.money_results import CLAIMS as CLAIMS  # what is derived from facts has its columns there
from bench.money_results import COSTS as COSTS

if TYPE_CHECKING:
    import pandas

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "results" / "runs"

STATUSES = ("ok", "oom", "unavailable", "incorrect", "timeout", "crashed", "error", "skipped")
TOKEN_KINDS = ("trained", "input", "cached_input", "output", "total")
BASES = ("measured", "imported", "modelled")

# name -> (type, meaning). s = text, i = count, f = number.
CELLS: dict[str, tuple[str, str]] = {
    "run": ("s", "run folder"),
    "cell": ("s", "key of the cell in its suite: model/workload/backend[/layers]"),
    "suite": ("s", "suite key"),
    "phase": ("s", "train_step, rl_step, prefill, decode, serve, kernel or ceiling"),
    "model": ("s", "model key; blank where the cell needs none"),
    "workload": ("s", "workload key"),
    "backend": ("s", "resolved backend: reference, compile, triton, best or peer:<name>"),
    "precision": ("s", "precision of weights and matmuls"),
    "device": ("s", "cpu or cuda"),
    "gpu": ("s", "GPU key; cpu on a CPU; blank for a GPU no config names"),
    "device_name": ("s", "as the driver says it"),
    "n_gpus": ("i", "GPUs of the deployment (1 CPU host counts as 1)"),
    "batch_size": ("i", "sequences a step (of a micro-batch in training)"),
    "input_tokens": ("i", "tokens a sequence: trained, prefilled, or the context decoding starts from; serve: mean"),
    "output_tokens": ("i", "tokens decoded from that context; serve: mean"),
    "layers": ("i", "layers of the whole model"),
    "layers_measured": ("i", "layers that ran; fewer than `layers`: a slice, priced only through a two-depth fit"),
    "status": ("s", "ok, or why there is no number: " + ", ".join(STATUSES[1:])),
    "reason": ("s", "one line behind any status but ok"),
    "samples": ("i", "timed steps kept in samples.csv"),
    "step_s_median": ("f", "median time of a step, all samples"),
    "step_s_low": ("f", "95% bootstrap interval of that median, low end"),
    "step_s_high": ("f", "and its high end"),
    "step_s_first_third": ("f", "median of the first third of samples: burst"),
    "step_s_last_third": ("f", "median of the last third of samples: sustained; money uses this"),
    "token_kind": ("s", "what tokens_per_step counts: " + ", ".join(TOKEN_KINDS)),
    "tokens_per_step": ("i", "tokens a step, whole deployment"),
    "system_tokens_per_s": ("f", "sustained rate of the whole deployment; blank for a slice"),
    "system_tokens_per_s_low": ("f", "its 95% interval, low end"),
    "system_tokens_per_s_high": ("f", "and its high end"),
    "flops_per_step": ("f", "floating-point operations a step, FMA = 2, causal attention halved"),
    "flops_per_step_unhalved": ("f", "the same, attention not halved (PaLM, torchtitan)"),
    "bytes_per_step": ("f", "least device-memory traffic a step"),
    "peak_memory_bytes": ("i", "peak device memory of the cell (process RSS on a CPU)"),
    "setup_s": ("f", "check, weights, kernel compilation, graph capture: everything before the first step"),
    "compile_s": ("f", "first step: what compilation and autotuning were left to it; apart from the samples"),
    "warmup_s": ("f", "warm-up until steady"),
    "energy_joules_per_step": ("f", "GPU board energy a step; blank without NVML"),
    "energy_source": ("s", "counter, power_integral or blank; boundary: the GPU board"),
    "sm_clock_hz": ("f", "median SM clock over the cell"),
    "temperature_c": ("f", "highest GPU temperature over the cell"),
    "throttle_reasons": ("s", "NVML throttle reasons seen, joined by +"),
    "flags": ("s", "unsteady, wide_interval, throttled, busy_host: reasons to doubt the row, joined by +"),
    "check_error": ("f", "relative RMS error against float64"),
    "check_tolerance": ("f", "what was allowed"),
    "check_shape": ("s", "the shape the check ran at"),
    "started_at": ("s", "UTC, ISO 8601"),
    "ops_ran": ("s", "backend best: which side each op took, such as matmul=reference rms_norm=triton"),
    "expert_parallel": (
        "i",
        "the experts that ran are one GPU's share of this many; its rate is never a whole model's",
    ),
    "expert_load": ("f", "tokens of the busiest expert over the mean, where routing is drawn"),
    "rollout_s_median": ("f", "rl_step: the part of a step spent generating answers, inference booked as training"),
    "scoring_s_median": ("f", "rl_step: the part spent scoring them; the rest is the policy's update"),
    "tensor_parallel": ("i", "GPUs that share each layer's matrices"),
    "exposed_communication_s": (
        "f",
        "time a step spends only communicating: nothing computes meanwhile; blank on one GPU",
    ),
    "lora_rank": (
        "i",
        "rank of the adapters; the base is frozen, so the rate is never that of training a whole model",
    ),
    "routing_zipf": ("f", "exponent experts are drawn with; 0 uniform; blank: the router's own"),
    "rollout_idle_share": (
        "f",
        "rl_step: share of the static batch's decoded places that come after their answer's end",
    ),
    "cached_input_tokens": ("f", "serve: input tokens of a request found in the prefix cache, mean"),
    "point": ("s", "serve: the load point of points.csv whose rate this is"),
}
SAMPLES: dict[str, tuple[str, str]] = {
    "cell": ("s", "key of the cell"),
    "sample": ("i", "0, 1, 2 ... in time order"),
    "step_s": ("f", "time of one step"),
}
# configs/published.csv: other people's measurements, kept by hand.
PUBLISHED: dict[str, tuple[str, str]] = {
    "id": ("s", "key of the row"),
    "phase": ("s", "train_step, prefill, decode or serve (prefill and decode together)"),
    "model": ("s", "model key"),
    "gpu": ("s", "GPU key"),
    "n_gpus": ("i", "GPUs of the deployment"),
    "precision": ("s", "precision of the matmuls"),
    "token_kind": ("s", "what the rate counts: " + ", ".join(TOKEN_KINDS)),
    "system_tokens_per_s": ("f", "rate of the whole deployment"),
    "input_tokens": ("f", "tokens in, a request (sequence length in training)"),
    "output_tokens": ("f", "tokens out, a request"),
    "workload": ("s", "what ran: benchmark, scenario, batch, in one phrase"),
    "software": ("s", "framework and version"),
    "as_of": ("s", "date or round of the measurement"),
    "source": ("s", "address of the figure"),
    "note": ("s", "conversions made, caveats"),
}


class ResultsError(Exception):
    """A CSV that is not what it should be: one line naming file, line, column and expectation. Exit code 2."""


def text(value: Any) -> str:
    """A CSV field: 6 significant digits, blank for None and for NaN or inf (missing is blank)."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else ""
    return str(value).replace("\n", " ").replace("\r", " ")


def line(columns: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """One CSV line with its newline. Raises KeyError for a field that is not a column."""
    unknown = set(row) - set(columns)
    if unknown:
        raise KeyError(f"not a column: {', '.join(sorted(unknown))}")
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow([text(row.get(name)) for name in columns])
    return buffer.getvalue()


def append(path: Path, columns: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows in one write and flush them to disk, with the header first in a new file.

    A write that fails (disk full) is cut back to the length before it, so no half-written row stays. Raises OSError.
    """
    body = "".join(line(columns, row) for row in rows)
    with open(path, "ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        data = (body if before else ",".join(columns) + "\n" + body).encode()
        try:
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(before)
            if not before:
                path.unlink()
            raise


def write(path: Path, columns: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a derived CSV whole: to a neighbour first, then renamed, so a reader never sees half a file."""
    body = ",".join(columns) + "\n" + "".join(line(columns, row) for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(body, encoding="utf-8")
    part.replace(path)


def read_rows(path: Path, columns: Mapping[str, tuple[str, str]]) -> list[dict[str, Any]]:
    """Every row as a dict, counts and numbers converted, blank as None. Raises ResultsError, naming the line.

    Columns this file lacks read as None (a file written before a column was added); unknown ones are an error.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ResultsError(f"{path}: cannot be read as CSV: {error}") from None
    if lines and not path.read_bytes().endswith(b"\n"):
        raise ResultsError(f"{path}: line {len(lines)}: no newline at its end: cut off")
    if not lines:
        raise ResultsError(f"{path}: empty; expected a header line of {', '.join(list(columns)[:4])} ...")
    header = lines[0]
    unknown = [name for name in header if name not in columns]
    if unknown:
        raise ResultsError(f"{path}: line 1: unknown column {unknown[0]!r}; expected {', '.join(columns)}")
    doubled = [name for name in header if header.count(name) > 1]
    if doubled:
        raise ResultsError(f"{path}: line 1: column {doubled[0]!r} stands twice")
    rows = []
    for number, fields in enumerate(lines[1:], start=2):
        if len(fields) != len(header):
            raise ResultsError(
                f"{path}: line {number}: {len(fields)} fields, expected {len(header)}: malformed or cut off"
            )
        row: dict[str, Any] = dict.fromkeys(columns)
        for name, field in zip(header, fields, strict=True):
            row[name] = _value(field, columns[name][0], f"{path}: line {number}: {name}")
        rows.append(row)
    return rows


def _value(field: str, kind: str, where: str) -> Any:
    if field == "":
        return None
    if kind == "s":
        return field
    try:
        number = int(field) if kind == "i" else float(field)
    except ValueError:
        raise ResultsError(f"{where}: expected a {'count' if kind == 'i' else 'number'}, got {field!r}") from None
    if not math.isfinite(number):
        raise ResultsError(f"{where}: expected a finite number or blank, got {field!r}")
    return number


def frame(rows: list[dict[str, Any]], columns: Mapping[str, tuple[str, str]]) -> pandas.DataFrame:
    """Rows as a DataFrame with these columns: counts nullable, numbers float, text object with None for blank."""
    import pandas as pd

    table = pd.DataFrame(rows, columns=list(columns))
    kinds = {"i": "Int64", "f": "float64", "s": "object"}
    return table.astype({name: kinds[kind] for name, (kind, _) in columns.items()})
