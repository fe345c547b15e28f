"""GuideLLM's JSON: `benchmarks.json` of 0.2 to 0.3 (`args.strategy`) and of 0.4 and later (`config.strategy`).

Each benchmark is one load; each metric is told for successful, incomplete and errored requests apart. Traps:
`time_per_output_token_ms` is end to end / n, the first token in it: TPOT here is `inter_token_latency_ms`, which is
(end to end - TTFT) / (n - 1). `tokens_per_second` counts prompts too; before 0.4 the means of rates are over
intervals of very unequal length (992 where 591 tokens a second went by), so the rate there is the tokens of successful
requests over the duration; since then it is `output_tokens_per_second`, tokens by their own time within the measured
window. Both are biased low where time cut requests off: the row is flagged and says by how many. The file names neither
GPU nor software.
"""

from __future__ import annotations

import datetime

from bench.importers.document import Document, Record
from bench.importers.landing import Given, Row, Sheet

NAME = "guidellm"
ABOUT = "GuideLLM benchmarks JSON"
GIVES = "a load point a benchmark: output tokens/s, TTFT, TPOT"
MS = 1e-3
OPEN_LOOP = ("constant", "poisson", "async")


def sniff(document: Document) -> bool:
    """A list of benchmarks with metrics and GuideLLM's type or metadata."""
    benchmarks = document.object.get("benchmarks")
    return (
        isinstance(benchmarks, list)
        and bool(benchmarks)
        and all(isinstance(one, dict) and "metrics" in one and "type_" in one for one in benchmarks)
    )


def read(document: Document, given: Given) -> Sheet:
    """A row for each benchmark."""
    sheet = Sheet()
    version = document.record.part("metadata").text("guidellm_version")
    for number, benchmark in enumerate(document.record.parts("benchmarks")):
        made = _row(benchmark)
        if isinstance(made, str):
            sheet.left_out[made] += 1
        else:
            workload = f"GuideLLM{f' {version}' if version else ''}"
            sheet.rows.append(made | {"workload": workload, "record": f"benchmarks[{number}]"})
    return sheet


def _of(metrics: Record, name: str) -> Record:
    return metrics.part(name).part("successful")


def _row(benchmark: Record) -> Row | str:
    """A row, or why there is none."""
    metrics = benchmark.part("metrics")
    since_04 = "config" in benchmark.fields
    tokens, duration = _of(metrics, "output_token_count").number("total_sum"), benchmark.number("duration")
    if not tokens or not duration:
        return "without successful requests or a duration"
    counted = tokens / duration
    timed = _of(metrics, "output_tokens_per_second").number("mean") if since_04 else None
    strategy = benchmark.part("config" if since_04 else "args").part("strategy")
    totals = (
        benchmark.part("request_totals") if "request_totals" in benchmark.fields else metrics.part("request_totals")
    )
    successful, cut, failed = (totals.count(name) or 0 for name in ("successful", "incomplete", "errored"))
    loop, rate = strategy.text("type_"), strategy.number("rate")
    open_loop = loop in OPEN_LOOP
    flags = ["open_loop"] * open_loop + ["cut_by_time"] * bool(cut) + ["failed_requests"] * bool(failed)
    notes = ["successful requests' output tokens" + (" in the measured window" if timed else " over the duration")]
    notes += [f"{cut} of {cut + successful + failed} requests cut off: biased low"] * bool(cut)
    notes += [f"{failed} requests failed"] * bool(failed)
    return {
        "phase": "serve",
        "token_kind": "output",
        "system_tokens_per_s": timed or counted,
        "model_name": _model(benchmark),
        "input_tokens": _of(metrics, "prompt_token_count").number("mean"),
        "output_tokens": _of(metrics, "output_token_count").number("mean"),
        "as_of": _date(benchmark),
        "concurrency": _concurrency(strategy, loop),
        "rate_per_s": rate if open_loop else None,
        "requests_per_s": successful / duration if successful else None,
        "ttft_s_p50": _of(metrics, "time_to_first_token_ms").number("median", MS),
        "ttft_s_p99": _of(metrics, "time_to_first_token_ms").part("percentiles").number("p99", MS),
        "tpot_s_p50": _of(metrics, "inter_token_latency_ms").number("median", MS),
        "tpot_s_p99": _of(metrics, "inter_token_latency_ms").part("percentiles").number("p99", MS),
        "e2e_s_p50": _of(metrics, "request_latency").number("median"),
        "e2e_s_p99": _of(metrics, "request_latency").part("percentiles").number("p99"),
        "flags": "+".join(flags) or None,
        "note": "; ".join(notes),
    }


def _model(benchmark: Record) -> str | None:
    if "config" in benchmark.fields:
        return benchmark.part("config").part("backend").text("model")
    return benchmark.part("worker").text("backend_model")


def _concurrency(strategy: Record, loop: str | None) -> float | None:
    """Streams of a closed loop; an open one has none."""
    if loop == "synchronous":
        return 1.0
    return strategy.number("streams") or (strategy.number("max_concurrency") if loop == "concurrent" else None)


def _date(benchmark: Record) -> str | None:
    """The day the benchmark began, UTC; its times are seconds since 1970."""
    start = benchmark.number("start_time")
    if not start:
        return None
    try:
        return datetime.datetime.fromtimestamp(start, datetime.UTC).date().isoformat()
    except (OverflowError, OSError, ValueError):
        raise benchmark.refused("start_time", "seconds since 1970") from None
