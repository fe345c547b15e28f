"""The schema of `results/kernels/<run>/kernels.csv`, its only reader, and what follows from its rows.

A row is one implementation of one op at one shape, forward, backward or both; the ceilings of the same run (a large
copy, a large read, cuBLAS) are rows too. A case that could not be measured is a row with a status and a reason.
Times are facts, appended as they come; rates, fractions, ratios and the bound follow from the rows of the same run
and are filled in by `derived`, which may be run again at any time.

Columns are listed by hand, append-only; base units stand in the name; missing is blank. Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.results import STATUSES, ResultsError, read_rows, text

PARTS = ("forward", "backward", "forward_backward", "ceiling")
TIMERS = ("cuda_graph", "synchronised", "host")
BOUNDS = ("compute", "memory", "launch")
CEILINGS = ("copy", "read", "cublas")  # in the column `op`
LARGE_MATMUL = "8192x8192x8192"  # the cuBLAS shape that stands for every op which has none of its own
LAUNCH_S = 3e-6  # about what a kernel that does nothing takes in a CUDA graph: below it neither rate matters

Row = dict[str, Any]

# name -> (type, meaning). s = text, i = count, f = number.
KERNELS: dict[str, tuple[str, str]] = {
    "run": ("s", "run folder"),
    "op": ("s", "op, or a ceiling: " + ", ".join(CEILINGS) + "; blank for a peer that does not import at all"),
    "part": ("s", ", ".join(PARTS) + "; blank where a peer cannot run the op here at any shape"),
    "shape": ("s", "the op's name for the shape, or M x N x K, or bytes; blank likewise"),
    "implementation": ("s", "triton, reference, compile, peer:<file in bench/peers>; of a ceiling torch, or torch fp8"),
    "status": ("s", "ok, or why there is no number: " + ", ".join(STATUSES[1:])),
    "reason": ("s", "one line behind any status but ok; of an ok row, why no CUDA graph was used"),
    "device_name": ("s", "as the driver says it"),
    "dtype": ("s", "dtype of the activations"),
    "timer": ("s", "cuda_graph (replayed, then synchronised), synchronised (the same calls, launched) or host (CPU)"),
    "calls": ("i", "calls in one round"),
    "rounds": ("i", "timed rounds"),
    "time_s": ("f", "median time of one call"),
    "time_s_low": ("f", "its 95% interval, low end"),
    "time_s_high": ("f", "and its high end"),
    "flops": ("f", "least floating-point operations of one call as the op counts them, FMA = 2"),
    "bytes": ("f", "least device-memory traffic of one call"),
    "flops_per_s": ("f", "flops over the median time"),
    "bytes_per_s": ("f", "bytes over the median time"),
    "fraction_of_copy": ("f", "bytes_per_s over that of the copy of the same run"),
    "fraction_of_cublas": (
        "f",
        "flops_per_s over cuBLAS's of the same run: same M, N, K where measured, else " + LARGE_MATMUL,
    ),
    "fraction_of_peak_flops": ("f", "flops_per_s over the data sheet's; blank for a GPU no config names"),
    "fraction_of_peak_bandwidth": ("f", "bytes_per_s over the data sheet's"),
    "ratio_to_triton": ("f", "time of this over time of triton in the same run: above 1, triton is faster"),
    "check_error": ("f", "relative RMS error against float64, the worst of outputs and gradients"),
    "check_tolerance": ("f", "what was allowed"),
    "checked_at": ("s", "the shape the check ran at, or why there was none"),
    "kernel": ("s", "the Triton kernel of the call that takes most registers; blank where none was launched"),
    "registers": ("i", "its registers a thread"),
    "shared_bytes": ("i", "its shared memory a program"),
    "spill_bytes": ("i", "its local memory a thread: spills, and any stack"),
    "bound": (
        "s",
        "the largest of three times: compute (flops at cuBLAS's rate), memory (bytes at the copy's), launch",
    ),
    "peak_memory_bytes": ("i", "most device memory one call held beyond its inputs"),
    "date": ("s", "UTC, ISO 8601"),
    "torch": ("s", "version"),
    "triton": ("s", "version"),
    "version": ("s", "version of the peer's package; blank for ours and for torch"),
}
KEY = ("op", "part", "shape", "implementation")


def key_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What no two rows of a run share."""
    return tuple(row.get(name) or "" for name in KEY)


def read_kernels(folder: Path) -> list[Row]:
    """The rows of a run folder's kernels.csv, each held against what a row must be. Raises ResultsError."""
    path = folder / "kernels.csv"
    rows = read_rows(path, KERNELS)
    seen: set[tuple[str, ...]] = set()
    for number, row in enumerate(rows, start=2):
        where = f"{path}: line {number}"
        if row["run"] is None or row["implementation"] is None:
            raise ResultsError(f"{where}: run and implementation: every row has both")
        for name, allowed in (("status", STATUSES), ("part", PARTS), ("timer", TIMERS), ("bound", BOUNDS)):
            if row[name] not in allowed and (row[name] is not None or name == "status"):
                raise ResultsError(f"{where}: {name}: expected one of {', '.join(allowed)}, got {row[name]!r}")
        if key_of(row) in seen:
            raise ResultsError(f"{where}: {'/'.join(key_of(row))} stands twice")
        seen.add(key_of(row))
        for name, (kind, _) in KERNELS.items():
            if kind != "s" and row[name] is not None and row[name] < 0:
                raise ResultsError(f"{where}: {name}: expected no negative number, got {row[name]}")
        if row["status"] == "ok" and not row["time_s"]:
            raise ResultsError(f"{where}: time_s: expected a positive time, got {text(row['time_s'])!r}")
        if row["status"] != "ok" and row["time_s"] is not None:
            raise ResultsError(f"{where}: time_s: a row that is {row['status']} has none")
    return rows


@dataclass(frozen=True)
class Ceilings:
    """What the machine did at best in one run. Rates a second; `cublas` by (dtype, M x N x K)."""

    copy: float | None = None
    cublas: Mapping[tuple[str, str], float] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Ceilings:
        """From the ceiling rows of a run."""
        timed = [row for row in rows if row["status"] == "ok" and row["time_s"]]
        copies = [row["bytes"] / row["time_s"] for row in timed if row["op"] == "copy"]
        matmuls = {(row["dtype"], row["shape"]): row["flops"] / row["time_s"] for row in timed if row["op"] == "cublas"}
        return cls(max(copies, default=None), matmuls)

    def matmul(self, dtype: str, size: str | None = None) -> float | None:
        """cuBLAS's rate for this dtype at M x N x K where it was measured, else at the large square."""
        return self.cublas.get((dtype, size or LARGE_MATMUL), self.cublas.get((dtype, LARGE_MATMUL)))


def bound(flops: float | None, traffic: float | None, compute: float | None, memory: float | None) -> str | None:
    """Which term of the roofline is the largest; None where a rate or a count is not known.

    `flops` and `traffic` (bytes) of one call; `compute` and `memory`: what the machine did of each a second.
    """
    if flops is None or traffic is None or not compute or not memory:
        return None
    terms = {"compute": flops / compute, "memory": traffic / memory, "launch": LAUNCH_S}
    return max(terms, key=lambda name: terms[name])


def derived(
    rows: Sequence[Row],
    sizes: Mapping[tuple[str, str], str] | None = None,
    peaks: Mapping[str, float] | None = None,
    bandwidth: float | None = None,
) -> list[Row]:
    """The same rows with rates, fractions, ratios and bounds, as far as the run's other rows allow.

    `sizes`: (op, shape) -> M x N x K, for ops that are one matmul. `peaks` by dtype and `bandwidth`: the data sheet's.
    """
    ceilings = Ceilings.of(rows)
    triton = {key_of(row)[:3]: row["time_s"] for row in rows if row["implementation"] == "triton"}
    return [_derived(row, ceilings, triton, sizes or {}, peaks or {}, bandwidth) for row in rows]


def _derived(
    row: Row,
    ceilings: Ceilings,
    triton: Mapping[tuple[str, ...], float | None],
    sizes: Mapping[tuple[str, str], str],
    peaks: Mapping[str, float],
    bandwidth: float | None,
) -> Row:
    time_s = row["time_s"]
    op, _, shape, _ = key_of(row)
    dtype = row["dtype"] or ""
    size = shape if op == "cublas" else sizes.get((op, shape))
    compute = ceilings.matmul(dtype, size)
    flops_per_s, bytes_per_s = over(row["flops"], time_s), over(row["bytes"], time_s)
    return row | {
        "flops_per_s": flops_per_s,
        "bytes_per_s": bytes_per_s,
        "fraction_of_copy": over(bytes_per_s, ceilings.copy),
        "fraction_of_cublas": over(flops_per_s, compute),
        "fraction_of_peak_flops": over(flops_per_s, peaks.get(dtype)),
        "fraction_of_peak_bandwidth": over(bytes_per_s, bandwidth),
        "ratio_to_triton": over(time_s, triton.get(key_of(row)[:3])),
        "bound": None if op in CEILINGS else bound(row["flops"], row["bytes"], compute, ceilings.copy),
    }


def over(value: float | None, by: float | None) -> float | None:
    """value / by; None where either is missing or zero."""
    return value / by if value and by else None


def table(rows: Sequence[Row]) -> list[str]:
    """A line a case for the terminal: our time, the fraction of what limits it, and every other's time over ours."""
    cases: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row["part"]:
            cases.setdefault(key_of(row)[:3], []).append(row)
    shown: list[tuple[str, ...]] = [
        ("op", "part", "shape", "implementation", "time", "of its limit", "others: their time over it, or why none")
    ]
    shown += [_line(case, found) for case, found in cases.items()]
    widths = [max(len(fields[column]) for fields in shown) for column in range(len(shown[0]) - 1)]
    lines = [
        "  ".join([*(f"{field:{width}}" for field, width in zip(fields, widths, strict=False)), fields[-1]]).rstrip()
        for fields in shown
    ]
    absent = sorted({f"{row['implementation']}: {row['reason']}" for row in rows if not row["part"]})
    return lines + absent


def _line(case: tuple[str, ...], found: list[Row]) -> tuple[str, ...]:
    order = {"triton": 0, "torch": 1, "reference": 2}
    ours, *others = sorted(found, key=lambda row: order.get(row["implementation"], 3))
    limit = {"memory": "copy", "compute": "cublas", None: "copy" if ours["op"] in ("copy", "read") else "cublas"}
    name = limit.get(ours["bound"], "copy")
    fraction = ours[f"fraction_of_{name}"]
    words = []
    for row in others:
        ratio = over(row["time_s"], ours["time_s"])
        figure = f"{ratio:.2f}" if ratio else (seconds(row["time_s"]) if row["time_s"] else row["status"])
        words.append(f"{row['implementation'].removeprefix('peer:')} {figure}")
    time = seconds(ours["time_s"]) if ours["time_s"] else ours["status"]
    return (*case, ours["implementation"], time, f"{fraction:.2f} {name}" if fraction else "", "  ".join(words))


def seconds(value: float) -> str:
    """A time for people, three digits: 12.3 us, 1.05 ms."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= scale or unit == "us":
            return f"{value / scale:.3g} {unit}"
    raise AssertionError(value)
