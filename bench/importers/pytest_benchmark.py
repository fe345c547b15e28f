"""pytest-benchmark's JSON (`--benchmark-json`): timings of kernels, into a table of their own.

Every statistic is s a call whatever unit the terminal showed: a round of `iterations` calls is already divided by
them. `ops` is calls a second, no FLOP/s. Whether the device was waited for inside the timed function is not told; a
GPU kernel timed without it shows the launch alone. `extra_info` may name the device. The machine's own name is not
copied.
"""

from __future__ import annotations

from typing import Any

from bench.importers.document import Document, Record
from bench.importers.landing import Given, Row, Sheet

NAME = "pytest_benchmark"
ABOUT = "pytest-benchmark --benchmark-json"
GIVES = "time of a call a benchmark, in a table of kernels"
DEVICES = ("device_name", "gpu", "device")


def sniff(document: Document) -> bool:
    """Benchmarks beside the machine they ran on."""
    value = document.object
    return isinstance(value.get("benchmarks"), list) and "machine_info" in value


def read(document: Document, given: Given) -> Sheet:
    """A row for each benchmark."""
    whole, sheet = document.record, Sheet(kernels=True)
    for benchmark in whole.parts("benchmarks"):
        if benchmark.part("stats").number("median"):
            sheet.rows.append(_row(whole, benchmark))
        else:
            sheet.left_out["without a median time"] += 1
    return sheet


def _row(whole: Record, benchmark: Record) -> Row:
    stats, extra = benchmark.part("stats"), benchmark.part("extra_info")
    python = whole.part("machine_info").text("python_version")
    commit = whole.part("commit_info").text("id")
    devices = [extra.fields[name] for name in DEVICES if isinstance(extra.fields.get(name), str)]
    return {
        "name": benchmark.text("fullname") or benchmark.text("name"),
        "group": benchmark.text("group"),
        "parameters": _parameters(benchmark.fields.get("params")),
        "device_name": devices[0][:200] if devices else None,
        "time_s_median": stats.positive("median"),
        "time_s_mean": stats.number("mean"),
        "time_s_min": stats.number("min"),
        "time_s_max": stats.number("max"),
        "time_s_sd": stats.number("stddev"),
        "rounds": stats.count("rounds"),
        "calls": stats.count("iterations"),
        "software": f"pytest-benchmark {whole.text('version') or ''}".strip()
        + (f", Python {python}" if python else ""),
        "as_of": (whole.text("datetime") or "")[:10] or None,
        "commit": commit if commit != "unversioned" else None,
        "note": "whether the device was synchronised is not told",
    }


def _parameters(params: Any) -> str | None:
    if not isinstance(params, dict) or not params:
        return None
    return " ".join(f"{name}={value}" for name, value in params.items())[:500].encode("utf-8", "replace").decode()
