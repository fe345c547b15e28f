"""When requests are sent in an open loop: a schedule made beforehand, so that a slow server cannot slow its own load.

All processes are renewal processes in operational time, in which one request comes per unit: gaps are gamma of mean 1
and coefficient of variation cv (1: Poisson; above: bursts). `trace` then bends operational time into seconds by the
class's slot rates, r(t): request i comes where ∫₀ᵗ r = S_i, S_i the sum of gaps. It stretches the trace's clock by
its own rate over the wanted one, slots and all, which keeps both the gaps' coefficient of variation and the index of
dispersion over a slot; and begins at a random moment of the series.

The rate is exact in expectation, from the first second on: the first gap is the rest of one under way, a uniform
part of a gap drawn in proportion to its length (gamma of shape k + 1 where gaps have shape k = 1 / cv²).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from bench.traffic.records import Planned
from bench.traffic.traffic import Arrivals, Traffic

Array = NDArray[np.float64]
PROCESSES = ("poisson", "gamma", "trace")


def scheduled(
    planned: Sequence[Planned],
    rate_per_s: float,
    process: str,
    seed: int,
    traffic: Traffic | Mapping[str, Traffic] | None = None,
    cv: float | None = None,
) -> list[Planned]:
    """The requests, in the same order, with `arrival_s` where they follow no answer.

    rate_per_s: of those requests; later turns of a closed loop come on top.
    process: poisson; gamma, with `cv`; or trace, with the class, or the classes of a mix by key: each of them then
        keeps its own bursts at its share of the rate (Poisson where its trace has no times), so that arrivals no
        longer rise with the number.
    """
    if process not in PROCESSES or rate_per_s <= 0:
        raise ValueError(f"{process} at {rate_per_s}/s: expected one of {', '.join(PROCESSES)}, at a positive rate")
    if (process == "gamma") != (cv is not None) or (cv is not None and cv <= 0):
        raise ValueError(f"{process} with cv {cv}: expected a positive cv with gamma, and with no other process")
    if (process == "trace") != (traffic is not None):
        raise ValueError(f"{process}: expected the traffic it follows with trace, and with no other process")
    due: dict[str, list[int]] = {}
    for place, request in enumerate(planned):
        if request.after is None:
            due.setdefault(request.traffic if isinstance(traffic, Mapping) else "", []).append(place)
    whole = sum(len(places) for places in due.values())
    found = list(planned)
    for key, places in sorted(due.items()):
        one = _of_mix(traffic, key) if isinstance(traffic, Mapping) else traffic
        rng = np.random.default_rng([seed, crc32(key.encode())])
        times = _times(len(places), rate_per_s * len(places) / whole, one, cv or 1.0, rng)
        for place, at in zip(places, times.tolist(), strict=True):
            found[place] = dataclasses.replace(planned[place], arrival_s=at)
    return found


def _of_mix(classes: Mapping[str, Traffic], key: str) -> Traffic | None:
    return None if classes[key].arrivals is None else classes[key]


def _times(count: int, rate_per_s: float, traffic: Traffic | None, cv: float, rng: np.random.Generator) -> Array:
    if traffic is None:
        return renewals(count, cv, rng) / rate_per_s
    if traffic.arrivals is None:
        raise ValueError(f"{traffic.key}: its trace says nothing of arrivals; expected process poisson or gamma")
    times = bent(renewals(count, traffic.arrivals.cv, rng), traffic.arrivals, rng.random())
    return times * (traffic.arrivals.rate_per_s / rate_per_s)


def renewals(count: int, cv: float, rng: np.random.Generator) -> Array:
    """Times of a stationary renewal process with one event per unit on average."""
    shape = cv**-2
    gaps = rng.gamma(shape, 1 / shape, count)
    gaps[0] = rng.random() * rng.gamma(shape + 1, 1 / shape)
    return np.cumsum(gaps)


def bent(operational: Array, arrivals: Arrivals, phase: float) -> Array:
    """Seconds on the trace's clock at which operational times are reached, begun at `phase` (0 to 1) of the series."""
    mass = np.array(arrivals.relative_rates)
    levels = np.append(0.0, np.cumsum(mass / mass.sum()))  # of one turn of the series
    edges = np.linspace(0.0, 1.0, len(levels))
    per_turn = arrivals.rate_per_s * arrivals.slot_s * len(mass)
    turns = operational / per_turn + np.interp(phase, edges, levels)
    within = turns % 1.0
    slot = np.minimum(np.searchsorted(levels, within, side="right") - 1, len(mass) - 1)
    part = (within - levels[slot]) * mass.sum() / mass[slot]
    at = np.floor(turns) + (slot + part) / len(mass)
    return (at - phase) * arrivals.slot_s * len(mass)
