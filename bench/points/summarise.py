"""From the records of one load point to its row: window, rates, percentiles, goodput, verdict.

`steady_window` comes first where energy is wanted: the caller reads the joules inside it and hands them over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bench.points import validity
from bench.points.intervals import effective_count, wilson
from bench.points.percentiles import percentile
from bench.points.point import SLO, Point
from bench.points.steps import Step, summarise_steps
from bench.points.window import (
    LEAST_PARTS,
    Array,
    Window,
    closed_window,
    gaps,
    input_events,
    left_s,
    members,
    open_window,
    output_events,
    parts,
    rate,
)
from bench.traffic.records import CUT, OK, Record

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
WITH_INTERVAL = ("p50", "p95")
SHORT_OUTPUTS = 0.98  # achieved over planned tokens; below: flagged


def steady_window(records: Sequence[Record], concurrency: int | None = None, until_s: float = np.inf) -> Window | None:
    """The window of a closed loop of that concurrency, or of an open loop; None where too few requests make one.

    `until_s`: the instant that the load was to be counted to; it may have gone on, so that what was due could end.
    """
    if concurrency is None:
        return open_window(records, until_s)
    return closed_window(records, concurrency, until_s)


def summarise(
    records: Sequence[Record],
    in_flight: validity.Samples,
    *,
    steady: Window | None = None,
    concurrency: int | None = None,
    rate_per_s: float | None = None,
    slo: SLO | None = None,
    n_gpus: int = 1,
    steps: Sequence[Step] | None = None,
    max_num_seqs: int | None = None,
    energy_joules: float | None = None,
) -> Point:
    """The row of one load point, closed loop if `concurrency` is given and open loop if not.

    `in_flight`: (time_s, requests sent and not yet ended) as they changed, or polled. `steady`: the window; None: found
    here. `energy_joules`: of all boards, inside it.
    """
    columns = _load(records) | {"n_gpus": n_gpus, "concurrency": concurrency, "rate_per_s": rate_per_s}
    steady = steady or steady_window(records, concurrency)
    if steady is None:
        return Point(**columns, flags=("too_few_requests",))
    due = members(records, steady)
    seen, dependent = _seen(records, due, steady, slo, n_gpus)
    columns |= seen | _engine(steps, max_num_seqs, steady)
    columns |= _energy(energy_joules, columns, steady)
    verdict, flags = _verdict(records, due, in_flight, steady, opened=concurrency is None)
    residence_s, tokens = columns["e2e_s_p50"], columns["output_tokens_ratio"]
    flags |= {
        "short_window": residence_s is None or steady.seconds < LEAST_PARTS * residence_s,
        "dependent_requests": dependent,
        "failed_requests": columns["requests_failed"] > 0,
        "cut_requests": any(r.status == CUT for r in due),
        "short_outputs": tokens is not None and tokens < SHORT_OUTPUTS,
    }
    return Point(**columns, **verdict, flags=tuple(name for name, raised in flags.items() if raised))


def by_class(
    records: Sequence[Record], traffic: Mapping[int, str], steady: Window | None, slo: SLO | None, n_gpus: int
) -> list[dict[str, Any]]:
    """What each class of a mix saw in the window of all: a dict each with `traffic` and its columns of `Point`.

    `traffic`: class by request number; none without a mix. What a class did for requests due before
    the window counts in its rates, as it does in those of all.
    """
    found = []
    for key in sorted(set(traffic.values())):
        own = [record for record in records if traffic[record.number] == key]
        columns: dict[str, Any] = {"traffic": key, "n_gpus": n_gpus, **_load(own)}
        if steady:
            columns |= _seen(own, members(own, steady), steady, slo, n_gpus)[0]
        found.append(columns)
    return found


def _seen(
    records: Sequence[Record], due: Sequence[Record], steady: Window, slo: SLO | None, n_gpus: int
) -> tuple[dict[str, Any], bool]:
    """What their users saw in the window: rates, latencies, goodput; and whether requests hang together."""
    done = [r for r in due if r.status == OK]
    planned = sum(r.planned_output_tokens for r in done)
    columns: dict[str, Any] = {
        "window_start_s": steady.start_s,
        "window_s": steady.seconds,
        "window_requests": len(due),
        "offered_per_s": len(due) / steady.seconds,
        "output_tokens_ratio": sum(r.output_tokens for r in done) / planned if planned else None,
    }
    latencies, dependent = _latencies(due, *gaps(records, steady), _seen_s(records, due))
    columns |= latencies | _rates(records, steady, latencies["e2e_s_p50"], n_gpus)
    median_tpot = latencies["tpot_s_p50"]
    columns["interactivity_tokens_per_s"] = 1 / median_tpot if median_tpot else None
    return columns | (_goodput(due, slo, steady) if slo and due else {}), dependent


def _seen_s(records: Sequence[Record], due: Sequence[Record]) -> float:
    """The shortest time that a request due in the window, and cut, was seen; inf where none was cut."""
    last_s = max((r.end_s or max(r.token_s, default=r.sent_s) for r in records), default=0.0)
    return min((last_s - r.scheduled_s for r in due if r.status == CUT), default=np.inf)


def _load(records: Sequence[Record]) -> dict[str, Any]:
    statuses = Counter(r.status for r in records)
    failed = {status: count for status, count in sorted(statuses.items()) if status not in (OK, CUT)}
    return {
        "requests": len(records),
        "requests_completed": statuses[OK],
        "requests_failed": sum(failed.values()),
        "failed_by_status": "+".join(f"{status}={count}" for status, count in failed.items()),
        "requests_cut": statuses[CUT],
    }


def _latencies(due: Sequence[Record], between: Array, answers: int, seen_s: float) -> tuple[dict[str, Any], bool]:
    """Of each latency its percentiles; and whether an interval has an open end, for requests hang together.

    `due`: in the order they were due. `between`: the gaps between tokens, of so many `answers`. A request that was cut
    took longer than it was seen: it stands as endless, and a percentile beyond `seen_s`, the shortest time that such a
    one was seen, is not known.
    """
    known = [r for r in due if r.status in (OK, CUT)]
    samples: dict[str, Any] = {
        "ttft_s": [np.inf if r.ttft_s is None else r.ttft_s for r in known],
        "tpot_s": [tpot for r in known if (tpot := _tpot_s(r)) is not None],
        "itl_s": between,
        "e2e_s": [np.inf if r.status == CUT or r.e2e_s is None else r.e2e_s for r in known],
    }
    columns: dict[str, Any] = {}
    dependent = False
    for name, values in samples.items():
        most = seen_s if name in ("ttft_s", "e2e_s") else np.finfo(float).max
        for label, quantile in QUANTILES.items():
            found = percentile(values, quantile, answers if name == "itl_s" else None)
            open_ended = found is not None and not found.closed
            if label not in WITH_INTERVAL:  # no interval beside it says how far it may be off: it must be proven
                columns[f"{name}_{label}"] = _told(found.value, most) if found and not open_ended else None
                continue
            dependent |= open_ended
            columns[f"{name}_{label}"] = _told(found.value, most) if found else None
            columns[f"{name}_{label}_low"] = _told(found.low, most) if found else None
            columns[f"{name}_{label}_high"] = _told(found.high, most) if found else None
    return columns, dependent


def _told(value: float | None, most: float) -> float | None:
    """A time, if it is no longer than what was seen of every request."""
    return value if value is not None and value <= most else None


def _tpot_s(record: Record) -> float | None:
    """Time per output token after the first; of an answer that was cut, as far as it went."""
    if record.status != CUT:
        return record.tpot_s
    if record.output_tokens < 2 or len(record.token_s) < 2:
        return None
    return (record.token_s[-1] - record.token_s[0]) / (record.output_tokens - 1)


def _rates(records: Sequence[Record], steady: Window, residence_s: float | None, n_gpus: int) -> dict[str, Any]:
    count = parts(steady, residence_s)
    out_times, out_tokens = output_events(records)
    in_times, in_tokens, cached = input_events(records)
    streams: dict[str, tuple[Array, Array]] = {
        "output": (out_times, out_tokens),
        "input": (in_times, in_tokens),
        "total": (np.concatenate((out_times, in_times)), np.concatenate((out_tokens, in_tokens))),
    }
    if cached is not None:
        streams["cached_input"] = (in_times, cached)
    columns: dict[str, Any] = {"sub_windows": count}
    for name, (times, tokens) in streams.items():
        if not len(times):
            continue
        found = rate(times, tokens, steady, count)
        columns[f"{name}_tokens_per_s"] = found.per_s
        columns[f"{name}_tokens_per_s_low"], columns[f"{name}_tokens_per_s_high"] = found.low, found.high
    ended = sum(r.status == OK and steady.start_s <= left_s(r) <= steady.end_s for r in records)
    columns["requests_per_s"] = ended / steady.seconds
    if "output_tokens_per_s" in columns:
        columns["output_tokens_per_s_per_gpu"] = columns["output_tokens_per_s"] / n_gpus
    return columns


def _goodput(due: Sequence[Record], slo: SLO, steady: Window) -> dict[str, Any]:
    def kept(promise: Callable[[Record], bool]) -> Array:
        return np.array([r.status in (OK, CUT) and promise(r) for r in due], dtype=float)

    ttft = kept(lambda r: r.ttft_s is not None and r.ttft_s <= slo.ttft_s)
    tpot = kept(lambda r: (_tpot_s(r) or 0.0) <= slo.tpot_s and (r.status == OK or _tpot_s(r) is not None))
    columns: dict[str, Any] = {
        "slo_ttft_s": slo.ttft_s,
        "slo_tpot_s": slo.tpot_s,
        "goodput_requests_per_s": float((ttft * tpot).sum()) / steady.seconds,
    }
    for name, outcomes in (("slo", ttft * tpot), ("ttft", ttft), ("tpot", tpot)):
        share = float(outcomes.mean())
        low, high = wilson(share, effective_count(outcomes))
        columns |= {f"{name}_attainment": share, f"{name}_attainment_low": low, f"{name}_attainment_high": high}
    return columns


def _engine(steps: Sequence[Step] | None, max_num_seqs: int | None, steady: Window) -> dict[str, Any]:
    found = summarise_steps(steps, steady) if steps else None
    if found is None:
        return {}
    return {
        "busy_share": found.busy_share,
        "prefill_share": found.prefill_share,
        "decode_sequences_mean": found.decode_sequences,
        "batch_occupancy": found.decode_sequences / max_num_seqs if max_num_seqs else None,
    }


def _energy(joules: float | None, columns: dict[str, Any], steady: Window) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("output", "total"):
        tokens = columns.get(f"{name}_tokens_per_s", 0.0) * steady.seconds
        found[f"energy_joules_per_{name}_token"] = joules / tokens if joules is not None and tokens else None
    return found


def _verdict(
    records: Sequence[Record], due: Sequence[Record], in_flight: validity.Samples, steady: Window, *, opened: bool
) -> tuple[dict[str, Any], dict[str, bool]]:
    """The columns of the verdict, and its flags."""
    means = validity.in_flight_means(in_flight, steady)
    mean = None if means is None else float(means[0])
    law = validity.littles_law_ratio(records, in_flight, steady)
    lag = validity.client_lag_ratio(due)
    achieved = validity.achieved_rate_ratio(records, steady) if opened else None
    rising = validity.saturated(records, in_flight, steady) if opened else None
    behind = achieved is not None and mean is not None and validity.below_requested_rate(achieved, len(due), mean)
    void: list[str] = []
    if law is not None and abs(law - 1) > validity.LITTLES_LAW:
        void.append(f"littles_law: requests in flight are {law:.3g} times what the records account for")
    if lag is not None and lag > validity.CLIENT_LAG:
        void.append(f"client_lag: p99 of lateness is {lag:.1%} of the median TTFT")
    columns = {
        "in_flight_mean": mean,
        "littles_law_ratio": law,
        "client_lag_ratio": lag,
        "achieved_rate_ratio": achieved,
        "saturated": rising,
        "void": tuple(void),
    }
    flags = {
        "saturated": bool(rising),
        "saturation_unknown": opened and rising is None,
        "below_requested_rate": behind,
        "littles_law_unknown": law is None,
        "client_lag_unknown": lag is None,
    }
    return columns, flags
