"""Re-tune the kernels on this GPU: try each op's launch candidates at real shapes, keep what is right and faster.

Writes two tables of this machine's own, results/local/tuning.csv (launch parameters, read by kernels/tuning.py) and
results/local/best.csv (torch's own op or ours, read by kernels/best.py). A first run never searches: without a table
the heuristics stand. A candidate must agree with the default within the op's tolerance and beat it by MARGIN.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from bench import results
from bench.measure.clock import CudaTimer, now

MARGIN = 0.02  # below the spread of repeated timings a choice means nothing
SAMPLES = 15


class TuneError(OSError):
    """This machine cannot tune: one line of why. Exit code 1."""


def local_tables() -> tuple[Path, Path]:
    """Where this machine's own tuning and best tables stand."""
    return results.ROOT / "results" / "local" / "tuning.csv", results.ROOT / "results" / "local" / "best.csv"


def steps(op: Any, kwargs: dict[str, Any], side: str) -> Callable[[], list[Any]]:
    """One call of a side, with its backward where the op has one; answers outputs and gradients."""
    import torch

    from bench.kernels.op import tensors

    leaves = [kwargs[name] for name in op.differentiable if kwargs.get(name) is not None]
    call = getattr(op, side)

    def step() -> list[Any]:
        outputs = tensors(call(**kwargs))
        if not leaves:
            return outputs
        wanted = [x for x in outputs if x.requires_grad]
        return [*outputs, *torch.autograd.grad(wanted, leaves, [torch.ones_like(x) for x in wanted])]

    return step


def seconds(step: Callable[[], Any]) -> float:
    """Median device time of a step: a warm-up, then SAMPLES of at least about a millisecond."""
    timer = CudaTimer()
    rough = float(np.median(timer.times(step, 3, 1)))
    return float(np.median(timer.times(step, SAMPLES, max(1, round(1e-3 / rough)))))


def faster(
    step: Callable[[], list[Any]], kernel: str, op: Any, tolerance: float
) -> tuple[dict[str, Any], float, float] | None:
    """(change, seconds before, seconds after) of the best candidate that is right, or None where none is faster."""
    from bench.kernels.op import relative_error
    from bench.kernels.tuning import trying

    expected, before = step(), seconds(step)
    best: tuple[dict[str, Any], float] | None = None
    for change in op.candidates[kernel]:
        with trying(kernel, change):
            try:
                outputs = step()
                pairs = [(a, b) for a, b in zip(outputs, expected, strict=True) if a.is_floating_point()]
                if not all(relative_error(a, b) <= 2 * tolerance for a, b in pairs):
                    continue
                time_s = seconds(step)
            except Exception as error:
                if "illegal" in str(error):  # the device is lost to this process
                    raise
                continue  # too much shared memory or too many registers for this GPU: not a choice
        if time_s < (best[1] if best else before * (1 - MARGIN)):
            best = dict(change), time_s
    return None if best is None else (best[0], before, best[1])


def tune(ops: list[str] | None, budget_s: float | None, say: Callable[[str], None]) -> tuple[Path, Path]:
    """Tune these ops (default: all) within the budget and write both tables. Raises TuneError, ConfigError."""
    from bench.config import ConfigError
    from bench.kernels.op import discover, why_not

    reason = why_not("triton")
    import torch

    if reason or not torch.cuda.is_available():
        raise TuneError(f"tune needs a CUDA device: {reason or 'the interpreter is never timed'}")
    found = discover()
    unknown = set(ops or ()) - set(found)
    if unknown:
        raise ConfigError(f"--op: no op named {min(unknown)!r}; known: {', '.join(found)}")
    tuning, best = local_tables()
    end = now() + (budget_s or float("inf"))
    for name in ops or list(found):
        for shape in found[name].shapes:
            if now() > end:
                say(f"budget spent before {name} {shape}: the rest keeps its heuristics")
                return tuning, best
            try:
                launch_rows, best_row = rows_of(name, found[name], shape)
            except torch.cuda.OutOfMemoryError:
                say(f"{name} {shape}: does not fit this GPU")
                continue
            merge(tuning, launch_rows, ("device_name", "triton", "kernel", "key"))
            merge(best, [best_row], ("device_name", "op", "key"))
            for row in launch_rows:
                say(f"{row['kernel']} {row['key']}: {row['change']} {row['default_us']} -> {row['tuned_us']} us")
            say(f"{name} {shape}: {best_row['choice']}")
    return tuning, best


def rows_of(name: str, op: Any, shape: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of the tuning table for one op at one shape, and its row of the best table."""
    import torch
    import triton

    from bench.kernels.best import key_of
    from bench.kernels.tuning import asked, text_of, trying

    device, dtype = torch.device("cuda"), torch.bfloat16
    kwargs = op.inputs(op.shapes[shape], dtype, device, torch.Generator(device).manual_seed(0))
    for leaf in op.differentiable:
        if kwargs.get(leaf) is not None:
            kwargs[leaf] = kwargs[leaf].detach().requires_grad_()
    ours = steps(op, kwargs, "triton")
    with asked() as keys:
        ours()
    common = {"device_name": torch.cuda.get_device_name(), "date": datetime.now(UTC).date().isoformat()}
    launch_rows, chosen = [], {}
    for kernel, key in keys.items():
        better = faster(ours, kernel, op, op.tolerance[dtype]) if kernel in op.candidates else None
        if better is not None:
            change, before, after = better
            chosen[kernel] = change
            times = {"default_us": round(before * 1e6, 2), "tuned_us": round(after * 1e6, 2)}
            row = {"triton": triton.__version__, "kernel": kernel, "key": text_of(key), "change": json.dumps(change)}
            launch_rows.append(common | row | times)

    with ExitStack() as stack:
        for kernel, change in chosen.items():
            stack.enter_context(trying(kernel, change))
        ours_s = seconds(ours)
    reference_s = seconds(steps(op, kwargs, "reference"))
    best_row = common | {
        "op": name,
        "key": key_of(op.reference, (), kwargs),
        "choice": "reference" if reference_s < ours_s * (1 - MARGIN) else "triton",
        "triton_us": round(ours_s * 1e6, 2),
        "reference_us": round(reference_s * 1e6, 2),
        "run": "bench tune",
    }
    return launch_rows, best_row


def merge(path: Path, rows: list[dict[str, Any]], key: tuple[str, ...]) -> None:
    """Put rows into a table, in place of those with the same key."""
    from bench.kernels import best, tuning

    columns = dict.fromkeys(tuning.COLUMNS if "kernel" in key else best.COLUMNS, ("s", ""))
    kept = results.read_rows(path, columns) if path.is_file() else []
    fresh = {tuple(str(row[name]) for name in key) for row in rows}
    kept = [row for row in kept if tuple(str(row[name]) for name in key) not in fresh]
    if kept or rows:
        results.write(path, columns, kept + rows)
