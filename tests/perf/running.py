"""One case from start to row: whatever happens to it, it ends as a row and the next case runs."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from bench.peers.found import Unsupported, one_line
from tests.perf.cases import Case, Incorrect
from tests.perf.journal import Journal, setting
from tests.perf.machine import CUDA, kernels_launched, largest, lost, memory_held
from tests.perf.timing import Step, measured, prepared, stream

DEVICE_LOST = 70  # exit status: the process cannot measure any more, another can (tests/perf/__main__.py)
SECONDS = float(setting("PERF_SECONDS", "0.3" if CUDA else "0.05"))  # timed, a case; check and warm-up come on top
DEADLINE = float(setting("PERF_DEADLINE", "inf"))  # seconds since the epoch: cases after it are left for another run
OURS = ("triton", "reference", "compile", "torch")


@dataclass(frozen=True)
class Plan:
    """What to time, and the columns known before it is. Holds the inputs, through the steps."""

    steps: Sequence[Step]
    row: dict[str, Any] = field(default_factory=dict)


def attempt(case: Case, journal: Journal, benchmark: Any, plan: Callable[[], Plan]) -> None:
    """Measure the case, append its row, and fail, skip or pass as its status says."""
    if case.key in journal.finished():
        pytest.skip("this run has its row")
    if time.time() > DEADLINE:
        pytest.skip("past the deadline")
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()  # a compiled function keeps 8 variants, and would then run uncompiled
    benchmark.group = f"{case.op} {case.part} {case.shape}"
    journal.start(case.key)
    row = _row(benchmark, plan)
    gc.collect()
    if CUDA and row["status"] != "crashed":
        torch.cuda.empty_cache()
    journal.append(case.key, row)
    if row["status"] == "crashed":
        pytest.exit(f"the device was lost in {case}: {row['reason']}", DEVICE_LOST)
    if row["status"] in ("incorrect", "error") and case.implementation in OURS:
        pytest.fail(f"{row['status']}: {row['reason']}", pytrace=False)
    if row["status"] != "ok":
        pytest.skip(f"{row['status']}: {row['reason']}")


def _row(benchmark: Any, plan: Callable[[], Plan]) -> dict[str, Any]:
    try:
        with stream():
            return _timed(benchmark, plan())
    except Unsupported as error:
        return {"status": "unavailable", "reason": str(error)}
    except Incorrect as error:
        return {"status": "incorrect", "reason": str(error)}
    except (torch.OutOfMemoryError, MemoryError) as error:
        return {"status": "oom", "reason": one_line(error)}
    except (Exception, SystemExit) as error:  # a kernel's own, or that of any library a peer is made of
        return {"status": "crashed" if lost() else "error", "reason": one_line(error)}


def _timed(benchmark: Any, plan: Plan) -> dict[str, Any]:
    with kernels_launched() as kernels:
        plan.steps[0]()
    held = memory_held(plan.steps[0])
    for step in plan.steps[1:]:
        step()
    round_ = prepared(plan.steps)
    times = measured(benchmark, round_, SECONDS)
    return plan.row | {
        "status": "ok",
        "reason": round_.reason,
        "timer": round_.timer,
        "calls": round_.calls,
        "rounds": times.rounds,
        "time_s": times.median,
        "time_s_low": times.low,
        "time_s_high": times.high,
        "peak_memory_bytes": held,
        **largest(kernels),
    }
