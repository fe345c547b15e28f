"""Who pays for a serving GPU's time: input tokens, cached input tokens, output tokens.

One step computes pieces of prompts and decodes for others at once, so its time is shared out by what it did:

    duration = a · uncached prefill tokens + b · decoding sequences + c · keys read        a, b, c >= 0

by non-negative least squares (Lawson & Hanson 1974) over the steps of a load point's steady window. Prompts then cost
a · tokens and their part of the keys, answers b · tokens and theirs. What a step costs whatever it does (weights are
read once for all) falls to the parts it came with: mostly decoding, at this load. A cached input token costs nothing to
compute; it is charged what it is kept for: the time of looking it up, and of the GPU's time the share of its memory
that blocks nobody uses, but somebody may find again, held:

    kept = (bytes of the cache / memory of the GPU) · (idle blocks that hold a prefix / all blocks), mean over time

Parts are scaled to sum to the time that was paid for, idle time included. The residual, what the fit left of the busy
time before that, is a column, and so is how far single steps are off. All in GPU-seconds: a price per GPU-second makes
them dollars.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

from bench import runs, serving_results

Row = Mapping[str, Any]
MILLION = 1e6

# One row a load point. GPU-seconds of the whole deployment: n_gpus times the time.
COLUMNS: dict[str, tuple[str, str]] = {
    "row": ("s", "<run>/<cell>"),
    "point": ("s", "load point"),
    "input_share": ("f", "of the paid time: uncached input tokens"),
    "cached_input_share": ("f", "cached input tokens: look-up and memory"),
    "output_share": ("f", "output tokens"),
    "residual": ("f", "busy time the fit did not explain, over the busy time; before the parts are scaled up"),
    "fit_error": ("f", "how far the fit is off a step's time, its sign aside: the sum over the busy time"),
    "gpu_s_per_million_input_tokens": ("f", "uncached input tokens; blank where there were none"),
    "gpu_s_per_million_cached_input_tokens": ("f", "cached ones"),
    "gpu_s_per_million_output_tokens": ("f", "output tokens, as their part of the bill"),
    "gpu_s_per_million_output_tokens_whole": ("f", "output tokens, carrying the whole bill"),
    "gpu_s_per_request": ("f", "one request, all its tokens"),
}


def bills(run: Path) -> list[dict[str, Any]]:
    """The bill of every load point of a run that has steps and a steady window. Raises ResultsError."""
    points = serving_results.read(run, "points")
    if not points:
        return []
    memory = runs.read_environment(run).get("device_memory_bytes")
    steps: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for step in serving_results.read(run, "steps"):
        steps[step["cell"], step["point"]].append(step)
    found = []
    for point in points:
        taken = within(point, steps[point["cell"], point["point"]])
        if taken and point["window_s"] and not point["void"]:
            found.append({"row": f"{run.name}/{point['cell']}", "point": point["point"], **bill(point, taken, memory)})
    return found


def within(point: Row, steps: Sequence[Row]) -> Sequence[Row]:
    """The steps that began in the point's steady window, whose rates they are held against."""
    begin = point["window_start_s"]
    return (
        [step for step in steps if begin <= step["start_s"] <= begin + point["window_s"]] if point["window_s"] else []
    )


def fitted(steps: Sequence[Row]) -> tuple[float, float, float]:
    """Seconds for one prefill token, one decoding sequence, one key read."""
    names = ("prefill_tokens", "decode_sequences", "kv_tokens")
    x = np.array([[step[name] for name in names] for step in steps], dtype=float)
    size = np.maximum(x.max(axis=0), 1.0)  # columns of one size: the solver's tolerance is absolute
    found, _ = nnls(x / size, np.array([step["duration_s"] for step in steps], dtype=float))
    a, b, c = (float(value) for value in found / size)
    return a, b, c


def bill(point: Row, steps: Sequence[Row], memory_bytes: float | None) -> dict[str, Any]:
    """Shares of the paid time and GPU-seconds a million tokens of one load point."""
    a, b, c = fitted(steps)

    def total(name: str) -> float:
        return float(sum(step[name] or 0 for step in steps))

    decode_keys = total("decode_kv_tokens")
    prompts = a * total("prefill_tokens") + c * (total("kv_tokens") - decode_keys)
    answers = b * total("decode_sequences") + c * decode_keys
    busy = total("duration_s")
    kept = _kept(point, steps, memory_bytes) + total("lookup_s") / max(busy, 1e-30) * (point["busy_share"] or 1.0)
    rates = {
        "input": (point["input_tokens_per_s"] or 0) - (point["cached_input_tokens_per_s"] or 0),
        "cached_input": point["cached_input_tokens_per_s"] or 0,
        "output": point["output_tokens_per_s"] or 0,
    }
    kept = kept if rates["cached_input"] else 0.0
    computed = prompts + answers
    shares = {
        "input": (1 - kept) * prompts / computed,
        "cached_input": kept,
        "output": (1 - kept) * answers / computed,
    }
    gpus = point["n_gpus"]
    row: dict[str, Any] = {f"{name}_share": share for name, share in shares.items()}
    row["residual"] = (busy - computed) / busy
    names = ("prefill_tokens", "decode_sequences", "kv_tokens")
    off = [step["duration_s"] - sum(k * step[name] for k, name in zip((a, b, c), names, strict=True)) for step in steps]
    row["fit_error"] = sum(map(abs, off)) / busy
    for name, rate in rates.items():
        row[f"gpu_s_per_million_{name}_tokens"] = gpus * shares[name] / rate * MILLION if rate > 0 else None
    output, requests = rates["output"], point["requests_per_s"]
    row["gpu_s_per_million_output_tokens_whole"] = gpus / output * MILLION if output else None
    row["gpu_s_per_request"] = gpus / requests if requests else None
    return row


def _kept(point: Row, steps: Sequence[Row], memory_bytes: float | None) -> float:
    """Share of the GPU's time charged for prefixes kept for nobody yet; 0 where its memory is not known (a CPU)."""
    if not memory_bytes or not point["kv_cache_bytes"]:
        return 0.0
    time = np.array([step["duration_s"] for step in steps], dtype=float)
    idle = np.array([step["cached_blocks"] or 0 for step in steps], dtype=float)
    held = float(idle @ time / time.sum()) / point["kv_cache_blocks"]
    return float(point["kv_cache_bytes"] / memory_bytes * held)
