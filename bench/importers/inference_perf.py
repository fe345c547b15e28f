"""kubernetes-sigs/inference-perf: `stage_<n>_lifecycle_metrics.json`, and `summary_lifecycle_metrics.json`.

A stage is one load; the summary runs all stages together, a mixture of loads. Times are s, lengths tokens. Traps:
`time_per_output_token` averages gaps between chunks of the stream, which may be more than tokens (0.0035 s in the
project's own demo, where (latency - TTFT) / (n - 1) is 0.0072): it is kept only where it agrees with that within
10%. `normalized_time_per_output_token` has the first token in it. `schedule_delay` says how late the client itself
was: 2% of the median TTFT is late. The file names neither model, machine nor date.
"""

from __future__ import annotations

from bench.importers.document import Document, Record
from bench.importers.landing import Given, Sheet

NAME = "inference_perf"
ABOUT = "inference-perf stage_<n> or summary lifecycle metrics JSON"
GIVES = "a load point a stage: output tokens/s, TTFT, TPOT"
APART = 0.1
LATE = 0.02


def sniff(document: Document) -> bool:
    """Its three tables."""
    return {"load_summary", "successes", "failures"} <= set(document.object)


def read(document: Document, given: Given) -> Sheet:
    """One row."""
    record, sheet = document.record, Sheet()
    good, load = record.part("successes"), record.part("load_summary")
    rate = good.part("throughput").number("output_tokens_per_sec")
    if not rate:
        sheet.left_out["without a rate of output"] += 1
        return sheet
    latency, failed = good.part("latency"), record.part("failures").count("count") or 0
    asked = load.number("requested_rate")
    delay = load.part("schedule_delay").fields.get("mean")  # may be below 0: the client was early
    early = isinstance(delay, int | float) and delay <= 0
    lateness = 0.0 if early else load.part("schedule_delay").number("mean") or 0.0
    ttft = latency.part("time_to_first_token").number("median")
    late = ttft is not None and lateness > LATE * ttft
    tpot, doubt = _tpot(good, latency)
    notes = [] if asked is not None else ["all stages of the run together"]
    notes += [f"client late by {lateness:.3g} s on average"] * late + [doubt] * bool(doubt)
    notes += [f"{failed} requests failed"] * bool(failed)
    sheet.rows.append(
        {
            "phase": "serve",
            "token_kind": "output",
            "system_tokens_per_s": rate,
            "input_tokens": good.part("prompt_len").number("mean"),
            "output_tokens": good.part("output_len").number("mean"),
            "workload": "inference-perf",
            "rate_per_s": asked,
            "requests_per_s": good.part("throughput").number("requests_per_sec"),
            "ttft_s_p50": ttft,
            "ttft_s_p99": latency.part("time_to_first_token").number("p99"),
            "tpot_s_p50": tpot.number("median"),
            "tpot_s_p99": tpot.number("p99"),
            "e2e_s_p50": latency.part("request_latency").number("median"),
            "e2e_s_p99": latency.part("request_latency").number("p99"),
            "flags": "+".join(["open_loop", *["client_late"] * late, *["failed_requests"] * bool(failed)]),
            "note": "; ".join(notes) or None,
            "record": "stage" if asked is not None else "summary",
        }
    )
    return sheet


def _tpot(good: Record, latency: Record) -> tuple[Record, str]:
    """time_per_output_token where it is one; an empty record and the doubt where it is not."""
    found = latency.part("time_per_output_token")
    mean, tokens = found.number("mean"), good.part("output_len").number("mean")
    whole, first = (latency.part(name).number("mean") for name in ("request_latency", "time_to_first_token"))
    if mean is None or whole is None or first is None or not tokens or tokens <= 1:
        return found, ""
    implied = (whole - first) / (tokens - 1)
    if abs(mean - implied) <= APART * abs(implied):
        return found, ""
    return Record(
        found.where, {}
    ), f"time per token left blank: {mean:.3g} s, (latency - TTFT) / (n - 1) is {implied:.3g} s"
