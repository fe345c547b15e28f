"""One cell, inside the worker: build, check against float64, time, and say what came out.

Correct before fast: a workload whose check fails is `incorrect` and gets no number. A run under Triton's
interpreter is refused: its times mean nothing. Where several ranks measure a cell together (ranks.py) all of them come
to the same row.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from bench.measure import device as machine
from bench.measure import ranks
from bench.measure.clock import CudaTimer, HostTimer, PartTimer, Timer, Timing, measure, now
from bench.measure.communication import exposed_s
from bench.measure.energy import Board, BoardReading, open_board
from bench.measure.statistics import summarise

BUSY = 0.1  # share of all cores


@dataclass(frozen=True)
class Check:
    """How far a backend is from float64, how far it may be, and at which shape that was found."""

    error: float
    tolerance: float
    shape: str


class Runnable(Protocol):
    """What a file in bench/workloads builds. FLOPs and bytes are of one step, from accounting.py."""

    tokens_per_step: int | None
    token_kind: str | None
    flops: float
    flops_unhalved: float
    bytes: float

    def check(self) -> tuple[float, float, str]:
        """Relative RMS error against float64, the tolerance, and the shape checked."""

    def prepare(self) -> None:
        """Allocate what the timed step needs: weights, data, a captured graph."""

    def step(self) -> None:
        """One step, on the current stream; must not wait for the device."""

    def ops_ran(self) -> str | None:
        """Backend best: which side each op took since the last call; a peer: its version. None for all others."""

    # Optional: `measure(seconds, watch)`, in place of `step`, for what is no repetition of one step (serve.py);
    # `mark`, a callable to be set, which `step` calls with the name of each part it has finished;
    # `columns`, further columns of the row, known once `prepare` has run.


def resolve(target: str) -> Callable[..., Any]:
    """The function named "module:function"."""
    module, _, name = target.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def status_of(error: BaseException) -> str:
    """oom for anything that ran out of memory, else error."""
    text = f"{type(error).__name__}: {error}".lower()
    memory = isinstance(error, MemoryError) or "out of memory" in text or "outofmemory" in text
    return "oom" if memory or "can't allocate memory" in text else "error"


def run(
    build: str, arguments: dict[str, Any], device: str, seconds: float, world: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Measure one cell. The answer holds columns of cells.csv, and `step_s`: the samples.

    `world`: see ranks.joined. Never raises: whatever goes wrong is a status with one line of reason.
    """
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        return {"status": "unavailable", "reason": "TRITON_INTERPRET is set: interpreted kernels are never timed"}
    try:
        import torch

        torch.compiler.reset()  # a worker outlives its cells, and torch.compile keeps only so many variants
        with ranks.joined(world, device):
            arguments = arguments | ({"world": world} if world else {})
            return _measure(resolve(build)(device=device, **arguments), device, seconds, world is not None)
    except Exception as error:  # reported as a row, and the worker is replaced
        return {"status": status_of(error), "reason": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
    finally:
        gc.collect()


def host_is_busy(before: float | None, after: float | None, seconds: float) -> bool:
    """Whether other processes, or the host under this virtual machine, took more than a tenth of its cores."""
    if before is None or after is None:
        return False
    return after - before > BUSY * seconds * machine.cpu_count()


def _watcher(board: Board | str) -> Callable[[Callable[[], None]], Any]:
    """Runs something and answers (joules between two instants or None, columns of the board and the host)."""

    def watch(run: Callable[[], None]) -> tuple[Callable[[float, float], float | None], dict[str, Any]]:
        if not isinstance(board, Board):
            run()
            return (lambda start, end: None), {}
        reading = board.watch(run)
        return board.joules_between, _board_columns(reading)

    return watch


def _board_columns(reading: BoardReading) -> dict[str, Any]:
    return {
        "sm_clock_hz": reading.sm_clock_hz,
        "temperature_c": reading.temperature_c,
        "throttle_reasons": "+".join(reading.throttle_reasons),
    }


def _others_cpu_s(several: bool) -> float | None:
    """CPU seconds of all processes but this one, or all ranks: they are no strangers to each other."""
    own = ranks.total(machine.own_cpu_s()) if several else machine.own_cpu_s()
    busy = machine.busy_cpu_s()
    return None if busy is None else busy - own


def _measure(workload: Runnable, device: str, seconds: float, several: bool) -> dict[str, Any]:
    start = now()
    check = Check(*workload.check())
    if several:
        check = dataclasses.replace(check, error=ranks.worst(check.error))
    row: dict[str, Any] = {
        "check_error": check.error,
        "check_tolerance": check.tolerance,
        "check_shape": check.shape,
    }
    if not check.error <= check.tolerance:  # also when the error is NaN
        reason = f"relative error {check.error:.3g} against float64, allowed {check.tolerance:.3g}"
        return row | {"status": "incorrect", "reason": reason}
    workload.ops_ran()  # those of the check are not the cell's
    gc.collect()
    machine.reset_peak_memory(device)  # the check's float64 twin is not part of the cell
    workload.prepare()
    timer: Timer = CudaTimer() if device == "cuda" else HostTimer()
    setup_s = timer.now() - start
    board = open_board(_uuid()) if device == "cuda" else "no GPU"
    if hasattr(workload, "measure"):
        row |= getattr(workload, "measure")(seconds, _watcher(board))  # noqa: B009  optional, as `mark`
        return row | {"setup_s": setup_s, "peak_memory_bytes": machine.peak_memory_bytes(device)}
    readings: list[BoardReading] = []
    parts = PartTimer(device == "cuda")
    if hasattr(workload, "mark"):
        setattr(workload, "mark", parts.mark)  # noqa: B010  optional: Runnable does not have it

    def around(sample: Callable[[], None]) -> None:
        parts.clear()
        if isinstance(board, Board):
            readings.append(board.watch(sample))
        else:
            sample()

    others = _others_cpu_s(several)
    begun = now()
    timing = measure(workload.step, ranks.RankTimer(timer) if several else timer, seconds, around=around)
    busy = host_is_busy(others, _others_cpu_s(several), now() - begun)
    row |= _figures(workload, timing, readings, busy)
    row |= {f"{part}_s_median": value for part, value in parts.medians().items() if part != parts.last}
    row |= {"setup_s": setup_s, "peak_memory_bytes": machine.peak_memory_bytes(device)}
    if several:
        row["exposed_communication_s"] = exposed_s(workload.step, device)
        row = ranks.together(row)
    return row


def _figures(workload: Runnable, timing: Timing, readings: list[BoardReading], busy: bool) -> dict[str, Any]:
    """The columns that samples, counts and the board give."""
    summary = summarise(timing.samples)
    row: dict[str, Any] = {
        "status": "ok",
        "samples": len(timing.samples),
        "step_s_median": summary.median,
        "step_s_low": summary.low,
        "step_s_high": summary.high,
        "step_s_first_third": summary.first_third,
        "step_s_last_third": summary.last_third,
        "compile_s": timing.compile_s,
        "warmup_s": timing.warmup_s,
        "tokens_per_step": workload.tokens_per_step,
        "token_kind": workload.token_kind,
        "flops_per_step": workload.flops,
        "flops_per_step_unhalved": workload.flops_unhalved,
        "bytes_per_step": workload.bytes,
        "ops_ran": workload.ops_ran(),
        "step_s": timing.samples,
        **getattr(workload, "columns", {}),
    }
    if workload.tokens_per_step:
        sustained = workload.tokens_per_step / summary.last_third
        row["system_tokens_per_s"] = sustained
        row["system_tokens_per_s_low"] = workload.tokens_per_step / summary.last_high
        row["system_tokens_per_s_high"] = workload.tokens_per_step / summary.last_low
    flags = summary.flags + ["busy_host"] * busy
    for reading in readings:
        row |= {
            "energy_joules_per_step": None if reading.energy_joules is None else reading.energy_joules / timing.steps,
            "energy_source": reading.energy_source,
            **_board_columns(reading),
        }
        flags = flags + ["throttled"] * bool(reading.throttle_reasons)
    return row | {"flags": "+".join(flags)}


def _uuid() -> str | None:
    import torch

    uuid = getattr(torch.cuda.get_device_properties(torch.cuda.current_device()), "uuid", None)
    return None if uuid is None else str(uuid)
