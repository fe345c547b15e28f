"""MLPerf inference, `mlperf_log_summary.txt` of one performance run, as LoadGen writes it.

Offline writes "Samples per second" and "Tokens per second", Server "Completed samples per second" and "Completed
tokens per second": tokens out, of the whole system; samples are not. Times are ns. The log names neither model nor
machine: the user does. A run that is INVALID or measured accuracy is left out.
"""

from __future__ import annotations

from bench.import_results import VERIFIED
from bench.importers.document import Document, Record, Refused
from bench.importers.landing import Given, Row, Sheet
from bench.importers.mlperf_summary import OPEN_LOOP

NAME = "mlperf_log"
ABOUT = "MLPerf inference mlperf_log_summary.txt"
GIVES = "output tokens/s of one run, TTFT and TPOT"
TITLE = "MLPerf Results Summary"
ENDS = ("errors encountered", "ERROR encountered", "ERRORS encountered")  # LoadGen's last line
NS = 1e-9
LATENCIES = {
    "ttft_s_p50": "50.00 percentile first token latency (ns)",
    "ttft_s_p99": "99.00 percentile first token latency (ns)",
    "tpot_s_p50": "50.00 percentile time to output token (ns)",
    "tpot_s_p99": "99.00 percentile time to output token (ns)",
    "e2e_s_p50": "50.00 percentile latency (ns)",
    "e2e_s_p99": "99.00 percentile latency (ns)",
}


def sniff(document: Document) -> bool:
    """LoadGen's title."""
    return not document.values and TITLE in document.text


def read(document: Document, given: Given) -> Sheet:
    """One row, or none where the run does not count."""
    fields = _fields(document)
    if not any(end in document.text for end in ENDS):
        raise Refused(f"{document.path}: cut off: expected LoadGen's last line, '... errors encountered during test.'")
    record = Record(f"{document.path}: ", fields)
    sheet = Sheet()
    for name, wanted in (("Result is", "VALID"), ("Mode", "PerformanceOnly")):
        if fields.get(name) != wanted:
            sheet.left_out[f"run whose {name.lower()} {fields.get(name)}, not {wanted}"] += 1
            return sheet
    sheet.rows.append(_row(record, given))
    return sheet


def _fields(document: Document) -> dict[str, object]:
    """ "name : value" lines; numbers as numbers. LoadGen repeats a figure, never with another value."""
    found: dict[str, object] = {}
    for line in document.text.splitlines():
        name, colon, value = line.partition(":")
        if colon and value.strip():
            try:
                found[name.strip()] = float(value)
            except ValueError:
                found[name.strip()] = value.strip()
    return found


def _row(record: Record, given: Given) -> Row:
    scenario = record.text("Scenario") or ""
    served = "Completed " if scenario in OPEN_LOOP else ""
    tokens = "Completed tokens per second" if served else "Tokens per second"
    samples = record.number("Completed samples per second" if served else "Samples per second")
    rate = record.positive(tokens)
    return {
        "phase": "serve",
        "token_kind": "output",
        "system_tokens_per_s": rate,
        "output_tokens": rate / samples if samples and given.output_tokens is None else None,
        "requests_per_s": samples,
        "rate_per_s": record.number("Scheduled samples per second"),
        "workload": f"MLPerf inference, {scenario}",
        "flags": "open_loop" if scenario in OPEN_LOOP else None,
        "record": scenario,
        "note": f"{VERIFIED}; per system; output: tokens/s over samples/s; ns to s",
        **{name: record.number(key, NS) for name, key in LATENCIES.items()},
    }
