"""The schema of what a cell of phase serve has beside its row: points.csv, requests.csv, steps.csv in its run folder.

A cell serves one class of traffic with one model and backend under a ladder of loads; each load is a point. Facts, as
everything in a run folder: appended with the cell, never edited. bench/points/point.py says what the columns of a
point mean and how they are found; a test holds its fields and this list together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.results import read_rows

Columns = dict[str, tuple[str, str]]
KEPT = 0.95  # share of requests whose promises a point must keep to count as keeping them

_OF = {
    "ttft_s": "time to first token, from when the request was due",
    "tpot_s": "time per output token after the first",
    "itl_s": "gap between arrivals of one request's tokens",
    "e2e_s": "from due to the last token",
}
_ENDS = {"low": "its 95% interval, low end", "high": "and its high end"}


def _interval(name: str, meaning: str) -> Columns:
    return {name: ("f", meaning)} | {f"{name}_{end}": ("f", said) for end, said in _ENDS.items()}


def _percentiles(name: str) -> Columns:
    said = {p: f"{_OF[name]}, {p[1:]}th percentile; blank where too few requests prove it" for p in ("p90", "p99")}
    p50, p95 = (_interval(f"{name}_{p}", f"{_OF[name]}, {p[1:]}th percentile") for p in ("p50", "p95"))
    return p50 | {f"{name}_p90": ("f", said["p90"])} | p95 | {f"{name}_p99": ("f", said["p99"])}


POINTS: Columns = {
    "cell": ("s", "key of the cell"),
    "point": ("s", "load point: concurrency=8 (closed loop) or rate=0.5 (open loop, requests per second)"),
    "n_gpus": ("i", "GPUs of the deployment"),
    "concurrency": ("i", "closed loop: requests kept in flight"),
    "rate_per_s": ("f", "open loop: requests offered per second"),
    "requests": ("i", "sent in the whole measurement"),
    "requests_completed": ("i", "of them completed"),
    "requests_failed": ("i", "failed"),
    "failed_by_status": ("s", "how: timeout=3+closed=1"),
    "requests_cut": ("i", "still running at its end"),
    "window_start_s": ("f", "when the steady window begins, since the start of the point"),
    "window_s": ("f", "length of the steady window; rates and latencies are of it; blank: too few requests make none"),
    "window_requests": ("i", "requests due in the window"),
    "offered_per_s": ("f", "the same a second: what bursty traffic came to in this window"),
    "output_tokens_ratio": ("f", "output tokens achieved over planned"),
    "input_tokens_ratio": ("f", "endpoint: input tokens as the server counted them over planned"),
    "token_source": ("s", "who counted: engine, or usage (the server's own); none: nobody"),
    "sub_windows": ("i", "equal stretches of the window that the intervals of the rates are bootstrapped over"),
    **_interval("output_tokens_per_s", "output tokens, whole deployment"),
    "output_tokens_per_s_per_gpu": ("f", "the same over n_gpus"),
    **_interval("input_tokens_per_s", "input tokens, cached ones among them"),
    **_interval("cached_input_tokens_per_s", "input tokens found in the prefix cache; blank: not told"),
    **_interval("total_tokens_per_s", "input and output"),
    "requests_per_s": ("f", "completed in the window"),
    "interactivity_tokens_per_s": ("f", "1 / median TPOT: what one user sees"),
    **_percentiles("ttft_s"),
    **_percentiles("tpot_s"),
    **_percentiles("itl_s"),
    **_percentiles("e2e_s"),
    "slo_ttft_s": ("f", "promised time to first token"),
    "slo_tpot_s": ("f", "promised time per output token"),
    "goodput_requests_per_s": ("f", "requests a second that kept both promises"),
    **_interval("slo_attainment", "share that kept both"),
    **_interval("ttft_attainment", "share that kept the first"),
    **_interval("tpot_attainment", "share that kept the second"),
    "busy_share": ("f", "engine: share of the window with a step running"),
    "prefill_share": ("f", "engine: share of the steps' time that prompts added"),
    "decode_sequences_mean": ("f", "engine: requests decoding, mean over the steps' time"),
    "batch_occupancy": ("f", "engine: the same over max_num_seqs"),
    "energy_joules_per_output_token": ("f", "GPU boards, over the window"),
    "energy_joules_per_total_token": ("f", "the same over input and output tokens"),
    "in_flight_mean": ("f", "requests sent and not ended, mean over the window"),
    "littles_law_ratio": ("f", "in flight over (completed per second x time in the system); void beyond 5% off 1"),
    "client_lag_ratio": ("f", "99th percentile of sent - due over median TTFT; void above 2%"),
    "client_tick_lag_s_p99": ("f", "endpoint: 99th percentile of how late the client's own timer fired"),
    "achieved_rate_ratio": ("f", "open loop: requests completed in the window over those due in it"),
    "saturated": ("s", "True where the queue rose through the window: no sustainable load"),
    "arrivals": ("s", "open loop: how requests arrived: trace, poisson or gamma"),
    "search": ("s", "goodput search: passed, failed or undecided; found: the highest rate that passed"),
    "kv_cache_blocks": ("i", "engine: blocks of the paged cache"),
    "kv_cache_bytes": ("i", "engine: their memory"),
    "clipped_share": ("f", "planned requests that were too long for the model's context and were clipped"),
    "lost_token_share": ("f", "of their tokens, what clipping lost"),
    "ended_session_share": ("f", "sessions that the context ended before their time"),
    "flags": ("s", "reasons to read the row with care, joined by +"),
    "void": ("s", "reasons not to use the row"),
}
_OF_ALL = {
    *("concurrency", "rate_per_s", "busy_share", "prefill_share", "decode_sequences_mean", "batch_occupancy"),
    *("energy_joules_per_output_token", "energy_joules_per_total_token", "in_flight_mean", "littles_law_ratio"),
    *("client_lag_ratio", "client_tick_lag_s_p99", "achieved_rate_ratio", "saturated", "search", "flags", "void"),
    *("arrivals", "kv_cache_blocks", "kv_cache_bytes", "input_tokens_ratio", "token_source"),
    *("clipped_share", "lost_token_share", "ended_session_share"),
}
CLASSES: Columns = {
    "cell": POINTS["cell"],
    "point": POINTS["point"],
    "traffic": ("s", "class of the mix; the other columns are points.csv's, of this class's requests alone"),
    **{name: column for name, column in POINTS.items() if name not in {"cell", "point", *_OF_ALL}},
}
REQUESTS: Columns = {
    "cell": ("s", "key of the cell"),
    "point": ("s", "load point of the cell"),
    "request": ("i", "number of the request in the plan"),
    "traffic": ("s", "class of traffic"),
    "scheduled_s": ("f", "when it was due, since the start of the point"),
    "sent_s": ("f", "when it was sent"),
    "first_token_s": ("f", "when its first token came"),
    "end_s": ("f", "when its last token came"),
    "ttft_s": ("f", "from due to the first token"),
    "tpot_s": ("f", "time per output token after the first; blank below two tokens"),
    "itl_s_p50": ("f", "median gap between arrivals of its tokens; several may come at once; blank below two arrivals"),
    "itl_s_max": ("f", "the longest gap"),
    "e2e_s": ("f", "from due to the last token"),
    "input_tokens": ("i", "of the prompt, as the server counted them"),
    "cached_tokens": ("i", "of these, found in the prefix cache; blank: not told"),
    "planned_output_tokens": ("i", "asked for"),
    "output_tokens": ("i", "given, as the server counted them"),
    "status": ("s", "ok, or what went wrong in one word; cut: still running at the end"),
    "reason": ("s", "one line behind any status but ok"),
}
STEPS: Columns = {
    "cell": ("s", "key of the cell"),
    "point": ("s", "load point of the cell"),
    "start_s": ("f", "when the device began, since the start of the point"),
    "duration_s": ("f", "device time of the step"),
    "prefill_tokens": ("i", "tokens of prompts computed; those found in the prefix cache left out"),
    "decode_sequences": ("i", "requests that decoded one token"),
    "kv_tokens": ("i", "keys read: the context of every request in the step, its new tokens included"),
    "decode_kv_tokens": ("i", "of these, by requests that decoded"),
    "waiting": ("i", "requests not admitted yet"),
    "cached_blocks": ("i", "blocks nobody used that held a prefix which might be found again"),
    "lookup_s": ("f", "host time of looking prefixes up"),
}
SCHEDULE: Columns = {
    "cell": ("s", "key of the cell"),
    "point": ("s", "open-loop load point of the cell"),
    "request": ("i", "number of the request in the plan"),
    "traffic": ("s", "class of traffic"),
    "session": ("i", "session it belongs to"),
    "arrival_s": ("f", "when it is due, since the start of the point; blank: after another one"),
    "after": ("i", "the request whose end it waits for"),
    "think_s": ("f", "and how long from then"),
    "input_tokens": ("i", "planned, of the prompt"),
    "output_tokens": ("i", "planned"),
    "prefix_of": ("i", "the request whose prompt it begins with"),
    "shared_tokens": ("i", "and so many tokens of it"),
}
# results/client_load.csv: how late the client of endpoints is under many streams (python -m tests.perf.client_load)
CLIENT_LOAD: Columns = {
    "measured_at": ("s", "UTC, ISO 8601"),
    "cpu_name": ("s", "CPU that client and server ran on"),
    "cpu_count": ("i", "its cores"),
    "transport": ("s", "ours, or httpx's own"),
    "shards": ("i", "processes of the client"),
    "streams": ("f", "open at once, mean"),
    "events_per_s": ("f", "read by the client"),
    "measured_s": ("f", "length of the measured stretch"),
    "client_cores": ("f", "CPU seconds of the client a second"),
    "waited_s": ("f", "that it was ready to run and another process had its core"),
    "ttft_s_p50": ("f", "median TTFT of the paced server"),
    "client_lag_ratio": ("f", "99th percentile of sent - due over that"),
    "client_tick_lag_s_p99": ("f", "99th percentile of how late the client's own timer fired"),
    "failed_by_status": ("s", "requests that failed, by status; none"),
}
TABLES: dict[str, Columns] = {
    **{"points": POINTS, "classes": CLASSES, "requests": REQUESTS, "steps": STEPS, "schedule": SCHEDULE}
}


def read(run: Path, table: str) -> list[dict[str, Any]]:
    """The rows of one of TABLES of a run folder; none where it has no such file. Raises ResultsError."""
    path = run / f"{table}.csv"
    return read_rows(path, TABLES[table]) if path.exists() else []
