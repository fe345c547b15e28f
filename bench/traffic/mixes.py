"""The requests of a mix of traffic classes (bench/mix.py), its classes' plans shuffled together.

Results of a mix are always told per class too: the mean of a mix describes no request in it.
"""

from __future__ import annotations

import dataclasses
from zlib import crc32

import numpy as np

from bench.config import load
from bench.mix import Mix
from bench.traffic.planning import Plan, plan
from bench.traffic.records import Planned
from bench.traffic.traffic import Traffic


def classes(mix: Mix) -> dict[str, Traffic]:
    """The classes of a mix by key."""
    return {traffic: load(Traffic, traffic) for traffic in mix.shares}


def mixed(
    mix: Mix,
    count: int,
    seed: int,
    *,
    max_context: int | None = None,
    scale: float = 1.0,
    most_think_s: float | None = None,
) -> Plan:
    """`count` requests in random order, each class's own kept; the options are `plan`'s.

    A class whose share comes to less than half a request may have none.
    """
    rng = np.random.default_rng([seed, crc32(mix.key.encode())])
    known = classes(mix)
    wanted = counts(list(mix.shares.values()), count)
    plans = {
        key: plan(one, number, seed, max_context=max_context, scale=scale, most_think_s=most_think_s)
        for (key, one), number in zip(known.items(), wanted, strict=True)
        if number
    }
    keys = rng.permutation(np.repeat(np.arange(len(wanted)), wanted)).tolist()
    names = list(known)
    places: dict[str, list[int]] = {key: [] for key in plans}
    for place, which in enumerate(keys):
        places[names[which]].append(place)
    found: list[Planned | None] = [None] * count
    first_session = 0
    for key, one in plans.items():
        for request, place in zip(one.requests, places[key], strict=True):
            found[place] = _moved(request, places[key], first_session)
        first_session += 1 + max(request.session for request in one.requests)
    return Plan(
        [request for request in found if request is not None],
        clipped=sum(one.clipped for one in plans.values()),
        lost_tokens=sum(one.lost_tokens for one in plans.values()),
        ended_sessions=sum(one.ended_sessions for one in plans.values()),
        classes=plans,
    )


def counts(shares: list[float], count: int) -> list[int]:
    """Whole requests of each class, `count` in all, by largest remainder."""
    exact = np.array(shares) * count
    whole = np.floor(exact + 1e-9).astype(int)
    for which in np.argsort(whole - exact, kind="stable")[: count - int(whole.sum())]:
        whole[which] += 1
    return whole.tolist()


def _moved(request: Planned, places: list[int], first_session: int) -> Planned:
    """The request with its class's numbers replaced by the mix's."""
    return dataclasses.replace(
        request,
        number=places[request.number],
        session=first_session + request.session,
        prefix_of=None if request.prefix_of is None else places[request.prefix_of],
        after=None if request.after is None else places[request.after],
    )
