"""A server of which everything is known, for tests of serving statistics: c places, first come first served.

A request waits for a place, holds it for its service time and makes its tokens evenly in it. With exponential
service and Poisson arrivals this is M/M/c, whose wait is known: P(wait > t) = C(c, rho) exp(-(c/s - lambda) t), with C
Erlang's formula and s the mean service time.
"""

import heapq
import math

import numpy as np

from bench.traffic.records import Record


def exponential(mean_s: float):
    return lambda rng, count: rng.exponential(mean_s, count)


def constant(mean_s: float):
    return lambda rng, count: np.full(count, mean_s)


def heavy(mean_s: float, sigma: float = 1.5):
    """Lognormal: at sigma 1.5 the longest 1% hold a fifth of all the time."""
    return lambda rng, count: rng.lognormal(math.log(mean_s) - sigma**2 / 2, sigma, count)


def _record(number, due_s, start_s, service_s, tokens, told):
    step_s = service_s / tokens
    record = Record(number, due_s, due_s, 100, tokens, output_tokens=tokens, cached_tokens=40)
    record.first_token_s, record.end_s = start_s + step_s, start_s + service_s
    if told:
        record.token_s = (start_s + step_s * np.arange(1, tokens + 1)).tolist()
    return record


def _tokens(service_s, token_s):
    return [max(2, round(s / token_s)) for s in service_s]


def open_loop(rate, requests, service, places, seed, token_s=0.05, told=False):
    """Poisson arrivals at `rate` per second."""
    rng = np.random.default_rng(seed)
    due = np.cumsum(rng.exponential(1 / rate, requests)).tolist()
    spans = service(rng, requests).tolist()
    free = [0.0] * places
    records = []
    for number, (at, span, tokens) in enumerate(zip(due, spans, _tokens(spans, token_s), strict=True)):
        start = max(at, free[0])
        heapq.heapreplace(free, start + span)
        records.append(_record(number, at, start, span, tokens, told))
    return records


def closed_loop(concurrency, requests, service, seed, token_s=0.05, told=False):
    """`concurrency` users, each sending the next request the moment the last one ends; a place for each."""
    rng = np.random.default_rng(seed)
    spans = service(rng, requests).tolist()
    users = [0.0] * concurrency
    records = []
    for number, (span, tokens) in enumerate(zip(spans, _tokens(spans, token_s), strict=True)):
        at = users[0]
        heapq.heapreplace(users, at + span)
        records.append(_record(number, at, at, span, tokens, told))
    return records


def in_flight(records, period_s=None):
    """(time, requests sent and not ended): at every change, or polled every `period_s`."""
    sent = np.sort([r.sent_s for r in records])
    ended = np.sort([r.end_s for r in records])
    times = np.sort(np.concatenate((sent, ended))) if period_s is None else np.arange(0, ended[-1] + period_s, period_s)
    counts = np.searchsorted(sent, times, side="right") - np.searchsorted(ended, times, side="right")
    return list(zip(times.tolist(), counts.tolist(), strict=True))


def erlang_c(places: int, load: float) -> float:
    """Chance to wait; `load` = arrival rate times service time, below `places`."""
    blocked = 1.0
    for k in range(1, places + 1):
        blocked = load * blocked / (k + load * blocked)
    return places * blocked / (places - load * (1 - blocked))


def late(rate: float, limit_s: float, places: int, service_s: float) -> float:
    """P(wait > limit) in M/M/c; 1 at or beyond capacity."""
    load = rate * service_s
    if load >= places:
        return 1.0
    return erlang_c(places, load) * math.exp(-(places / service_s - rate) * limit_s)
