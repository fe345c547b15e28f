"""AIPerf (genai-perf before it): `profile_export_aiperf.json` of one run, or the aggregate of several.

Every metric carries its unit beside it, and only that unit says what the number is: {"unit": "ms", "avg": ...}.
Trap: output tokens are counted by the client, which splits the text anew with a tokenizer of its own; the server's
own count, `total_usage_completion_tokens`, stands beside it where the server gives one. Tokens here are the
server's. Where both differ by more than 2%, the rate is corrected and the time per token, which the tool divided by
its own count, is left blank. `inter_token_latency` is (end to end - TTFT) / (n - 1): the TPOT of others. The
aggregate has a 95% interval of the mean over its runs. The file names neither GPU nor software.
"""

from __future__ import annotations

from typing import Any

from bench.importers.document import Document, Record, Refused
from bench.importers.landing import Given, Row, Sheet

NAME = "aiperf"
ABOUT = "AIPerf profile_export_aiperf.json, of one run or aggregated"
GIVES = "a load point: output tokens/s, TTFT, TPOT; of several runs its interval"
SECONDS = {"ms": 1e-3, "s": 1.0, "sec": 1.0, "us": 1e-6, "ns": 1e-9, "seconds": 1.0, "milliseconds": 1e-3}
RATES = ("tokens/sec", "tokens/s", "requests/sec", "requests/s")
OPEN_LOOP = ("poisson", "gamma", "constant", "user_centric", "fixed_schedule")  # types of a phase
SLACK = 0.02
_TIMES = {"ttft_s": "time_to_first_token", "tpot_s": "inter_token_latency", "e2e_s": "request_latency"}


def sniff(document: Document) -> bool:
    """AIPerf's own version, or a metric with its unit beside the loads it was asked for."""
    value = document.object
    metric = value.get("output_token_throughput")
    return "aiperf_version" in value or (isinstance(metric, dict) and "unit" in metric and "input_config" in value)


def read(document: Document, given: Given) -> Sheet:
    """One row."""
    record = document.record
    sheet = Sheet()
    if record.truth("was_cancelled"):
        sheet.left_out["cancelled run"] += 1
        return sheet
    aggregate = record.part("metadata").text("aggregation_type")
    sheet.rows.append(_aggregate(record) if aggregate else _single(record))
    return sheet


def _scaled(metric: Record, name: str, units: dict[str, float]) -> float | None:
    """A statistic in base units. Raises Refused for a unit nobody named."""
    value = metric.number(name)
    unit = metric.text("unit")
    if value is None:
        return None
    if unit not in units:
        raise Refused(f"{metric.where}.unit: expected one of {', '.join(units)}, got {unit!r}")
    return value * units[unit]


def _rate(metric: Record, name: str) -> float | None:
    return _scaled(metric, name, dict.fromkeys(RATES, 1.0))


def _tokens(record: Record, name: str, statistic: str = "avg") -> float | None:
    return _scaled(record.part(name), statistic, {"tokens": 1.0})


def _single(record: Record) -> Row:
    rate = _rate(record.part("output_token_throughput"), "avg")
    if not rate:
        raise record.refused("output_token_throughput", "a positive rate with its unit")
    counted = _tokens(record, "total_usage_completion_tokens")
    duration = _scaled(record.part("benchmark_duration"), "avg", SECONDS)
    served = counted / duration if counted and duration else None
    differs = served is not None and abs(served / rate - 1) > SLACK
    lengths = {
        "input_tokens": _tokens(record, "usage_prompt_tokens") or _tokens(record, "input_sequence_length"),
        "output_tokens": _tokens(record, "usage_completion_tokens") or _tokens(record, "output_sequence_length"),
    }
    times = {
        f"{ours}_{p}": _scaled(record.part(theirs), p, SECONDS)
        for ours, theirs in _TIMES.items()
        for p in ("p50", "p99")
    }
    if differs:
        times |= {"tpot_s_p50": None, "tpot_s_p99": None}
    source = "server's count of tokens" if served else "client's count of tokens"
    more = f": the client's gave {rate:.6g}/s, its time per token is left blank" if differs else ""
    return {
        **_common(record),
        **lengths,
        **times,
        "system_tokens_per_s": served or rate,
        "requests_per_s": _rate(record.part("request_throughput"), "avg"),
        "goodput_per_s": _rate(record.part("goodput"), "avg"),
        "note": source + more,
        "record": record.text("benchmark_id") or "run",
    }


def _aggregate(record: Record) -> Row:
    """Means over repeated runs; percentiles are means of the runs' percentiles."""
    metrics, metadata = record.part("metrics"), record.part("metadata")
    rate = metrics.part("output_token_throughput_avg")
    mean = _rate(rate, "mean")
    if not mean:
        raise metrics.refused("output_token_throughput_avg", "a positive rate with its unit")
    interval = metadata.number("confidence_level") == 0.95
    times = {
        f"{ours}_{p}": _scaled(metrics.part(f"{theirs}_{p}"), "mean", SECONDS)
        for ours, theirs in _TIMES.items()
        for p in ("p50", "p99")
    }
    runs = metadata.count("num_successful_runs")
    total = _rate(metrics.part("total_token_throughput_avg"), "mean")
    return {
        **_common(record),
        **times,
        "system_tokens_per_s": mean,
        "system_tokens_per_s_low": _rate(rate, "ci_low") if interval else None,
        "system_tokens_per_s_high": _rate(rate, "ci_high") if interval else None,
        "requests_per_s": _rate(metrics.part("request_throughput_avg"), "mean"),
        "note": f"mean of {runs} runs, client's count of tokens"
        + (f"; input and output together {total:.6g}/s" if total else ""),
        "record": "aggregate",
    }


def _common(record: Record) -> Row:
    config = record.part("input_config")
    models = config.part("models").fields.get("items") or [{}]
    first = models[0] if isinstance(models, list) and isinstance(models[0], dict) else {}
    load = _load(config)
    rate = load.number("request_rate")
    if isinstance(load.fields.get("rate"), int | float):  # a series of rates has no one number
        rate = load.number("rate")
    open_loop = bool(rate) or load.text("type") in OPEN_LOOP
    return {
        "phase": "serve",
        "token_kind": "output",
        "model_name": Record(f"{config.where}.models.items[0]", first).text("name"),
        "workload": "AIPerf",
        "as_of": (record.text("start_time") or "")[:10] or None,
        "concurrency": load.number("concurrency"),
        "rate_per_s": rate,
        "flags": "open_loop" if open_loop else None,
    }


def _load(config: Record) -> Record:
    """The profiling phase of this version, or the load generator's options of older ones."""
    phases: Any = config.fields.get("phases")
    if isinstance(phases, list):
        found = [phase for phase in config.parts("phases") if phase.text("kind") in (None, "profiling")]
        return found[-1] if found else config
    return config.part("loadgen")
