"""`vllm bench serve --save-result`, and the `benchmark_serving.py` it grew from (InferenceX still runs that one).

One JSON object a run, or several one after another. Rates are of the whole server, over the whole run: filling and
draining are in them. Traps: `total_token_throughput` counts prompts too, the rate here is `output_throughput`; times
are ms where a key ends in _ms and s where it does not; the older tool writes `request_goodput:` with a colon;
`max_concurrent_requests` is a peak within one second, above the limit, and not the number of users; `request_rate`
"inf" means closed loop. The file names neither the machine nor the server's software: the user does.
"""

from __future__ import annotations

from bench.importers.document import Document, Record
from bench.importers.landing import Given, Row, Sheet

NAME = "vllm"
ABOUT = "vllm bench serve --save-result JSON"
GIVES = "a load point: output tokens/s, TTFT, TPOT, goodput"
SIGNS = {"model_id", "num_prompts", "completed", "total_output_tokens", "output_throughput"}
SLACK = 0.02
WHOLE_RUN = "rate over the whole run, filling and draining in it"
_TIMES = {
    "ttft_s_p50": "median_ttft",
    "ttft_s_p99": "p99_ttft",
    "tpot_s_p50": "median_tpot",
    "tpot_s_p99": "p99_tpot",
    "e2e_s_p50": "median_e2el",
    "e2e_s_p99": "p99_e2el",
}


def sniff(document: Document) -> bool:
    """Objects with the keys every version writes."""
    return bool(document.objects) and all(set(row) >= SIGNS for row in document.objects)


def read(document: Document, given: Given) -> Sheet:
    """A row for each run."""
    sheet = Sheet()
    for number, record in enumerate(document.records):
        reason = refusal(record)
        if reason:
            sheet.left_out[reason] += 1
        else:
            sheet.rows.append(_row(record) | {"record": f"[{number}]"})
    return sheet


def refusal(record: Record) -> str | None:
    """Why a run of this or of SGLang's tool is no row."""
    if not record.count("completed"):
        return "without a completed request"
    rate, tokens, duration = (record.number(k) for k in ("output_throughput", "total_output_tokens", "duration"))
    if not rate:
        return "without a rate of output"
    if tokens and duration and abs(tokens / duration / rate - 1) > SLACK:
        return "whose output_throughput contradicts its tokens and duration"
    return None


def offered(record: Record) -> float | None:
    """Requests a second of an open loop; None where the tool sent as fast as it could."""
    rate = record.fields.get("request_rate")
    if isinstance(rate, str):
        try:
            rate = float(rate)
        except ValueError:
            raise record.refused("request_rate", "a number or inf") from None
    return Record(record.where, {"request_rate": rate}).number("request_rate")


def _row(record: Record) -> Row:
    completed = record.positive("completed")
    times = {name: record.number(f"{key}_ms", 1e-3) for name, key in _TIMES.items()}
    times = {name: record.number(_TIMES[name]) if value is None else value for name, value in times.items()}
    rate, failed = offered(record), record.count("failed")
    tokens = {name: record.number(f"total_{name}_tokens") for name in ("input", "output")}
    goodput = record.number("request_goodput")
    flags = ["open_loop"] * (rate is not None) + ["failed_requests"] * bool(failed)
    return {
        "phase": "serve",
        "token_kind": "output",
        "system_tokens_per_s": record.positive("output_throughput"),
        "model_name": record.text("model_id"),
        "input_tokens": tokens["input"] and tokens["input"] / completed,
        "output_tokens": tokens["output"] and tokens["output"] / completed,
        "workload": "vllm bench serve",
        "as_of": _date(record),
        "concurrency": record.number("max_concurrency"),
        "rate_per_s": rate,
        "requests_per_s": record.number("request_throughput"),
        "goodput_per_s": record.number("request_goodput:") if goodput is None else goodput,
        "flags": "+".join(flags) or None,
        "note": "; ".join([WHOLE_RUN, *([f"{failed} requests failed"] if failed else [])]),
        **times,
    }


def _date(record: Record) -> str | None:
    """20261122-015323 as 2026-11-22."""
    date = record.text("date") or ""
    return f"{date[:4]}-{date[4:6]}-{date[6:8]}" if date[:8].isdigit() else None
