"""The columns of one load point: what a server did under one load, and whether that may be believed.

One row of a CSV. Units stand in the names, rates are per second of the steady window (window.py), None is a blank: not
measured, or not provable. `_low` and `_high` are the ends of a 95% interval (intervals.py, percentiles.py).
Every group is a class with its own docstring; `Point` is all of them. summarise.py fills it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class SLO:
    """What a request is promised: seconds to its first token, and seconds for each output token after it."""

    ttft_s: float
    tpot_s: float


@dataclass(frozen=True, kw_only=True)
class Load:
    """What was asked for, and of how many requests anything is known.

    `concurrency` of a closed loop or `rate_per_s` of an open one. Requests are counted over the whole measurement:
    completed, failed (`failed_by_status`: "timeout=3+closed=1") and cut, which were running at its end. Those due
    in the window, `window_requests`, are the ones latencies and attainment speak of; so many a second are
    `offered_per_s`, which in a short window of bursty traffic is not the rate asked for. `output_tokens_ratio`: tokens
    achieved over planned, of those of them that completed.
    """

    n_gpus: int
    concurrency: int | None = None
    rate_per_s: float | None = None
    requests: int = 0
    requests_completed: int = 0
    requests_failed: int = 0
    failed_by_status: str = ""
    requests_cut: int = 0
    window_start_s: float | None = None
    window_s: float | None = None
    window_requests: int | None = None
    offered_per_s: float | None = None
    output_tokens_ratio: float | None = None


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Tokens whose times fall in the window, whole deployment.

    Output tokens count as they arrive, input tokens when their request's first token comes; `input` holds the cached
    ones, which `cached_input` shows apart (None where the server does not say), and total = input + output. The
    intervals are of a bootstrap over `sub_windows` equal stretches of the window (window.rate says why).
    `requests_per_s`: completed in the window. `interactivity_tokens_per_s` = 1 / median TPOT: what one user sees.
    """

    sub_windows: int | None = None
    output_tokens_per_s: float | None = None
    output_tokens_per_s_low: float | None = None
    output_tokens_per_s_high: float | None = None
    output_tokens_per_s_per_gpu: float | None = None
    input_tokens_per_s: float | None = None
    input_tokens_per_s_low: float | None = None
    input_tokens_per_s_high: float | None = None
    cached_input_tokens_per_s: float | None = None
    cached_input_tokens_per_s_low: float | None = None
    cached_input_tokens_per_s_high: float | None = None
    total_tokens_per_s: float | None = None
    total_tokens_per_s_low: float | None = None
    total_tokens_per_s_high: float | None = None
    requests_per_s: float | None = None
    interactivity_tokens_per_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Latencies:
    """Seconds, of completed requests due in the window; None where the sample cannot prove it (percentiles.py).

    TTFT from when a request was due to its first token; TPOT (end - first token) / (tokens - 1); E2E from due to
    end; ITL every gap between arrivals of one request that ends in the window.
    """

    ttft_s_p50: float | None = None
    ttft_s_p50_low: float | None = None
    ttft_s_p50_high: float | None = None
    ttft_s_p90: float | None = None
    ttft_s_p95: float | None = None
    ttft_s_p95_low: float | None = None
    ttft_s_p95_high: float | None = None
    ttft_s_p99: float | None = None
    tpot_s_p50: float | None = None
    tpot_s_p50_low: float | None = None
    tpot_s_p50_high: float | None = None
    tpot_s_p90: float | None = None
    tpot_s_p95: float | None = None
    tpot_s_p95_low: float | None = None
    tpot_s_p95_high: float | None = None
    tpot_s_p99: float | None = None
    itl_s_p50: float | None = None
    itl_s_p50_low: float | None = None
    itl_s_p50_high: float | None = None
    itl_s_p90: float | None = None
    itl_s_p95: float | None = None
    itl_s_p95_low: float | None = None
    itl_s_p95_high: float | None = None
    itl_s_p99: float | None = None
    e2e_s_p50: float | None = None
    e2e_s_p50_low: float | None = None
    e2e_s_p50_high: float | None = None
    e2e_s_p90: float | None = None
    e2e_s_p95: float | None = None
    e2e_s_p95_low: float | None = None
    e2e_s_p95_high: float | None = None
    e2e_s_p99: float | None = None


@dataclass(frozen=True, kw_only=True)
class Goodput:
    """Under the SLO, of the requests due in the window; blank without an SLO.

    Attainment is the share of them that kept both promises, or the one named. A request that failed or was cut
    kept none. One of a single token has no TPOT to break. `goodput_requests_per_s`: those that kept both, a second.
    """

    slo_ttft_s: float | None = None
    slo_tpot_s: float | None = None
    goodput_requests_per_s: float | None = None
    slo_attainment: float | None = None
    slo_attainment_low: float | None = None
    slo_attainment_high: float | None = None
    ttft_attainment: float | None = None
    ttft_attainment_low: float | None = None
    ttft_attainment_high: float | None = None
    tpot_attainment: float | None = None
    tpot_attainment_low: float | None = None
    tpot_attainment_high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What only the engine or the board can say (steps.py, measure/energy.py); blank for anybody's server.

    Shares are of the window's time with a step running (`prefill_share`), of the window (`busy_share`) and of
    `max_num_seqs` (`batch_occupancy`). Energy is the boards', over the window.
    """

    busy_share: float | None = None
    prefill_share: float | None = None
    decode_sequences_mean: float | None = None
    batch_occupancy: float | None = None
    energy_joules_per_output_token: float | None = None
    energy_joules_per_total_token: float | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether the row may be believed (validity.py).

    `flags` are reasons to read it with care, `void` reasons not to use it; a void point keeps its numbers.
    too_few_requests: no window, so no numbers. short_window: under 8 median E2E times. dependent_requests: requests
    hang together so much that the interval of a percentile is open. failed_requests, cut_requests, short_outputs
    (under 98% of the tokens planned), saturated, below_requested_rate: as they say.
    saturation_unknown, littles_law_unknown, client_lag_unknown: too little was sampled to tell.
    """

    in_flight_mean: float | None = None
    littles_law_ratio: float | None = None
    client_lag_ratio: float | None = None
    achieved_rate_ratio: float | None = None
    saturated: bool | None = None
    flags: tuple[str, ...] = ()
    void: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Point(Verdict, Engine, Goodput, Latencies, Rates, Load):
    """One load point. Columns in the order of the groups above, load first."""

    def row(self) -> dict[str, object]:
        """Column to value for a CSV: flags joined by +, reasons by semicolon, as text."""
        values: dict[str, object] = {f.name: getattr(self, f.name) for f in fields(self)}
        return values | {"flags": "+".join(self.flags), "void": "; ".join(self.void)}
