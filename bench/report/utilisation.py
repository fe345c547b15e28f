"""How much of the machine a cell used: MFU and MBU, against the datasheet and against what this run measured.

    MFU = flops_per_step / (step_s_last_third * n_gpus * peak_flops_per_s)
    MBU = bytes_per_step / (step_s_last_third * n_gpus * bytes_per_s)

Model FLOPs, not hardware FLOPs: recomputation does not count (PaLM, arXiv 2204.02311, appendix B). Causal attention is
counted halved; the unhalved convention of PaLM and torchtitan stands beside it, so that numbers compare. The measured
ceiling is the best matmul and the best copy or read of the same run on the same device: above it a cell is flagged (the
ceiling was not the ceiling), above the datasheet it is void (time, FLOPs or peak are wrong).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.config import CONFIGS, Gpu, load_all

NO_TIME = "no sustained step time"
NO_FLOPS = "no FLOP count"
NO_BYTES = "no byte count"


@dataclass(frozen=True)
class Ceiling:
    """The best rates one run measured on one device, per GPU; None where it measured none. The cells behind them."""

    flops_per_s: Mapping[str, float]  # by precision
    bytes_per_s: float | None
    flops_cell: Mapping[str, str]
    bytes_cell: str


@dataclass(frozen=True)
class Use:
    """One share, or None with the reason; `mark` is "", "above_measured_ceiling" or "void"."""

    share: float | None
    reason: str = ""
    mark: str = ""


@dataclass(frozen=True)
class Utilisation:
    """What one cell used. `datasheet`: against the vendor's peak; `measured`: against this run's ceiling."""

    mfu_datasheet: Use
    mfu_datasheet_unhalved: Use
    mfu_measured: Use
    mbu_datasheet: Use
    mbu_measured: Use

    @property
    def mark(self) -> str:
        """The gravest mark of the five."""
        marks = {use.mark for use in vars(self).values()}
        return "void" if "void" in marks else next(iter(marks - {""}), "")


def gpus() -> dict[str, Gpu]:
    """Every GPU of configs/gpus by key, or none where the folder is absent."""
    return load_all(Gpu) if (CONFIGS / Gpu.FOLDER).is_dir() else {}


def device_of(cell: Mapping[str, Any]) -> tuple[Any, ...]:
    """Cells share a ceiling when they ran in one run on one device."""
    return (cell.get("run"), cell.get("gpu"), cell.get("device_name"))


def step_s(cell: Mapping[str, Any]) -> float | None:
    """The sustained step time, s: the one money uses; None for a cell without a number."""
    return cell.get("step_s_last_third") if cell.get("status") == "ok" else None


def rate(cell: Mapping[str, Any], quantity: str) -> float | None:
    """`quantity` (flops_per_step, bytes_per_step) per second and GPU; None where either is missing."""
    seconds, amount = step_s(cell), cell.get(quantity)
    return amount / (seconds * (cell.get("n_gpus") or 1)) if seconds and amount else None


def ceilings(cells: Iterable[Mapping[str, Any]]) -> dict[tuple[Any, ...], Ceiling]:
    """The measured ceilings by device: best matmul by precision, best copy or read."""
    found: dict[tuple[Any, ...], Ceiling] = {}
    for cell in cells:
        if cell.get("phase") != "ceiling":
            continue
        best = found.setdefault(device_of(cell), Ceiling({}, None, {}, ""))
        flops, stream = rate(cell, "flops_per_step"), rate(cell, "bytes_per_step")
        key = str(cell.get("precision"))
        if is_matmul(cell) and flops and flops > best.flops_per_s.get(key, 0.0):
            flops_by, cell_by = {**best.flops_per_s, key: flops}, {**best.flops_cell, key: str(cell["cell"])}
            best = Ceiling(flops_by, best.bytes_per_s, cell_by, best.bytes_cell)
        elif not is_matmul(cell) and stream and stream > (best.bytes_per_s or 0.0):
            best = Ceiling(best.flops_per_s, stream, best.flops_cell, str(cell["cell"]))
        found[device_of(cell)] = best
    return found


def is_matmul(cell: Mapping[str, Any]) -> bool:
    """Whether a ceiling cell bounds FLOPs (a matmul) rather than bytes (copy, read)."""
    return "matmul" in f"{cell.get('workload')}"


def use(achieved: float | None, peak: float | None, missing: str, no_peak: str, above: str) -> Use:
    """achieved / peak with its reason or mark; `above` is the mark for a share over 1."""
    if achieved is None:
        return Use(None, missing)
    if not peak:
        return Use(None, no_peak)
    share = achieved / peak
    return Use(share, mark=above if share > 1 else "")


def utilisation(cell: Mapping[str, Any], ceiling: Ceiling | None, gpu: Gpu | None) -> Utilisation:
    """MFU and MBU of one cell. A missing share carries the reason; nothing is clipped."""
    precision = str(cell.get("precision"))
    late = step_s(cell)
    flops, unhalved = rate(cell, "flops_per_step"), rate(cell, "flops_per_step_unhalved")
    moved = rate(cell, "bytes_per_step")
    no_flops, no_bytes = (NO_FLOPS, NO_BYTES) if late else (NO_TIME, NO_TIME)
    if gpu is None:
        named = "a CPU has none" if cell.get("device") == "cpu" else f"no configs/gpus file for {cell.get('gpu')}"
        no_peak = no_stream = f"no datasheet peak: {named}"
    else:
        no_peak, no_stream = f"no {precision} peak in configs/gpus/{gpu.key}.toml", "no bandwidth"
    peak = gpu.peak_flops_per_s.get(precision) if gpu else None
    stream = gpu.hbm_bytes_per_s if gpu else None
    no_matmul, no_copy = f"no {precision} matmul ceiling in this run", "no copy ceiling in this run"
    top = ceiling.flops_per_s.get(precision) if ceiling else None
    wide = ceiling.bytes_per_s if ceiling else None
    flagged = "above_measured_ceiling"
    return Utilisation(
        mfu_datasheet=use(flops, peak, no_flops, no_peak, "void"),
        # The unhalved convention counts work nobody does: above 1 it proves nothing, so it is never void.
        mfu_datasheet_unhalved=use(unhalved, peak, no_flops, no_peak, ""),
        mfu_measured=use(flops, top, no_flops, no_matmul, flagged),
        mbu_datasheet=use(moved, stream, no_bytes, no_stream, "void"),
        mbu_measured=use(moved, wide, no_bytes, no_copy, flagged),
    )
