"""Re-tune the kernels on this GPU: try each op's launch candidates at real shapes, keep what is right and faster.

Writes two tables of this machine's own, results/local/tuning.csv (launch parameters, read by kernels/tuning.py) and
results/local/best.csv (torch's own op or ours, read by kernels/best.py). A first run never searches: without a table
the heuristics stand. A candidate must agree with the default within the op's tolerance and beat it by MARGIN.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton

from bench import results
from bench.config import ConfigError
from bench.kernels import best, tuning
from bench.kernels.best import key_of
from bench.kernels.op import Op, architecture, discover, output_errors, owned, relative_error, tensors, why_not
from bench.kernels.tuning import asked, text_of, trying
from bench.measure.clock import CudaTimer, now

MARGIN = 0.02  # below the spread of repeated timings a choice means nothing
SAMPLES = 15


class TuneError(OSError):
    """This machine cannot tune: one line of why. Exit code 1."""


def local_tables() -> tuple[Path, Path]:
    """Where this machine's own tuning and best tables stand."""
    return results.ROOT / "results" / "local" / "tuning.csv", results.ROOT / "results" / "local" / "best.csv"


@dataclass(frozen=True)
class Run:
    """One side of an op at one set of inputs, with its backward where gradients are asked for."""

    op: Op
    side: str
    kwargs: dict[str, Any]

    def __call__(self) -> tuple[list[Any], list[Any]]:
        """Outputs, and gradients of the inputs that require one."""
        leaves = [self.kwargs[name] for name in self.op.leaves(self.kwargs) if self.kwargs[name].requires_grad]
        outputs = tensors(getattr(self.op, self.side)(**self.kwargs))
        if not leaves:
            return outputs, []
        wanted = [x for x in outputs if x.requires_grad]
        return outputs, list(torch.autograd.grad(wanted, leaves, [torch.ones_like(x) for x in wanted]))

    def fresh(self) -> tuple[list[Any], list[Any]]:
        """The same on copies of what it writes in place, so that two runs can be compared."""
        return Run(self.op, self.side, owned(self.op, self.kwargs))()

    def error(self, expected: tuple[list[Any], list[Any]]) -> float:
        """The largest error of outputs and gradients against those expected; the op's own measure for choices."""
        outputs, gradients = self.fresh()
        errors = output_errors(self.op, self.kwargs, outputs, expected[0])
        errors += [relative_error(ours, theirs) for ours, theirs in zip(gradients, expected[1], strict=True)]
        return float(np.max(errors))  # NaN where one is


def seconds(step: Callable[[], Any]) -> float:
    """Median device time of a step: a warm-up, then SAMPLES of at least about a millisecond."""
    timer = CudaTimer()
    rough = float(np.median(timer.times(step, 3, 1)))
    return float(np.median(timer.times(step, SAMPLES, max(1, round(1e-3 / rough)))))


def faster(run: Run, kernel: str, tolerance: float) -> tuple[dict[str, Any], float, float] | None:
    """(change, seconds before, seconds after) of the best candidate that is right, or None where none is faster."""
    expected, before = run.fresh(), seconds(run)
    fastest: tuple[dict[str, Any], float] | None = None
    for change in run.op.candidates[kernel]:
        with trying(kernel, change):
            try:
                if not run.error(expected) <= 2 * tolerance:
                    continue
                time_s = seconds(run)
            except Exception as error:
                if "illegal" in str(error):  # the device is lost to this process
                    raise
                continue  # too much shared memory or too many registers for this GPU: not a choice
        if time_s < (fastest[1] if fastest else before * (1 - MARGIN)):
            fastest = dict(change), time_s
    return None if fastest is None else (fastest[0], before, fastest[1])


def tune(ops: list[str] | None, budget_s: float | None, say: Callable[[str], None]) -> tuple[Path, Path]:
    """Tune these ops (default: all) within the budget and write both tables. Raises TuneError, ConfigError."""
    found = discover()
    unknown = set(ops or ()) - set(found)
    if unknown:
        raise ConfigError(f"--op: no op named {min(unknown)!r}; known: {', '.join(found)}")
    reason = why_not("triton")
    if reason or not torch.cuda.is_available():
        raise TuneError(f"tune needs a CUDA device: {reason or 'the interpreter is never timed'}")
    launches, choices = local_tables()
    end = now() + (budget_s or float("inf"))
    here = architecture(torch.device("cuda"))
    for name in ops or list(found):
        for shape, size in found[name].shapes.items():
            if now() > end:
                say(f"budget spent before {name} {shape}: the rest keeps its heuristics")
                return launches, choices
            if here not in found[name].architectures(size):
                continue
            try:
                launch_rows, best_rows = rows_of(name, found[name], size)
            except Exception as error:
                if "illegal" in str(error):
                    raise TuneError(f"{name} {shape}: the device is lost: {str(error).splitlines()[0]}") from None
                say(f"{name} {shape}: left out: {type(error).__name__}: {str(error).splitlines()[0][:120]}")
                continue
            merge(launches, launch_rows, ("device_name", "triton", "kernel", "key"))
            merge(choices, best_rows, ("device_name", "op", "key"))
            for row in launch_rows:
                say(f"{row['kernel']} {row['key']}: {row['change']} {row['default_us']} -> {row['tuned_us']} us")
            say(f"{name} {shape}: {' '.join(row['choice'] for row in best_rows)}")
    return launches, choices


def rows_of(name: str, op: Op, size: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the tuning table for one op at one shape, and of the best table: with gradients, and without."""
    device, dtype = torch.device("cuda"), torch.bfloat16
    plain = op.inputs(size, dtype, device, torch.Generator(device).manual_seed(0))
    trained = op.trained(plain)
    common = {"device_name": torch.cuda.get_device_name(), "date": datetime.now(UTC).date().isoformat()}
    ours = Run(op, "triton", trained)
    with asked() as keys:
        ours.fresh()
    launch_rows, chosen = [], {}
    for kernel, key in keys.items():
        better = faster(ours, kernel, op.tolerance[dtype]) if kernel in op.candidates else None
        if better is not None:
            change, before, after = better
            chosen[kernel] = change
            times = {"default_us": round(before * 1e6, 2), "tuned_us": round(after * 1e6, 2)}
            row = {"triton": triton.__version__, "kernel": kernel, "key": text_of(key), "change": json.dumps(change)}
            launch_rows.append(common | row | times)
    best_rows = []
    for kwargs in [plain, trained] if op.leaves(plain) else [plain]:
        with ExitStack() as stack:
            for kernel, change in chosen.items():
                stack.enter_context(trying(kernel, change))
            ours_s = seconds(Run(op, "triton", kwargs))
        reference_s = seconds(Run(op, "reference", kwargs))
        choice = "reference" if reference_s < ours_s * (1 - MARGIN) else "triton"
        times = {"triton_us": round(ours_s * 1e6, 2), "reference_us": round(reference_s * 1e6, 2)}
        key_text = key_of(op.reference, (), kwargs)
        best_rows.append(common | times | {"op": name, "key": key_text, "choice": choice, "run": "bench tune"})
    return launch_rows, best_rows


def merge(path: Path, rows: list[dict[str, Any]], key: tuple[str, ...]) -> None:
    """Put rows into a table, in place of those with the same key."""
    columns = dict.fromkeys(tuning.COLUMNS if "kernel" in key else best.COLUMNS, ("s", ""))
    kept = results.read_rows(path, columns) if path.is_file() else []
    fresh = {tuple(str(row[name]) for name in key) for row in rows}
    kept = [row for row in kept if tuple(str(row[name]) for name in key) not in fresh]
    if kept or rows:
        results.write(path, columns, kept + rows)
