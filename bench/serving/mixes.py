"""A mix of traffic classes: shares of the requests, each share with where it comes from.

Nobody publishes who sends what to whom, so a mix is a judgement held against a few public totals; its file says which.
Results of a mix are always told per class too: the mean of a mix describes no request in it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar
from zlib import crc32

import numpy as np

from bench.config import load, require
from bench.serving.planning import Plan, plan
from bench.serving.records import Planned
from bench.serving.traffic import Traffic


@dataclass(frozen=True, kw_only=True)
class Part:
    """One class in a mix."""

    traffic: str  # its key
    share: float  # of the requests
    source: str


@dataclass(frozen=True, kw_only=True)
class Mix:
    """What one kind of service is sent."""

    FOLDER: ClassVar[str] = "mixes"
    key: str = ""
    about: str
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        names = [part.traffic for part in self.parts]
        require(len(set(names)) == len(names) > 0, "parts", "at least one [[parts]], each class once")
        require(all(part.share > 0 for part in self.parts), "parts", "positive shares")
        total = sum(part.share for part in self.parts)
        require(abs(total - 1) < 1e-6, "parts", f"shares that sum to 1, got {total:g}")

    def classes(self) -> dict[str, Traffic]:
        """The classes by key."""
        return {part.traffic: load(Traffic, part.traffic) for part in self.parts}


def mixed(
    mix: Mix,
    count: int,
    seed: int,
    *,
    max_context: int | None = None,
    scale: float = 1.0,
    sessions: int | None = None,
    most_think_s: float | None = None,
) -> Plan:
    """`count` requests in random order, each class's own kept; the options are `plan`'s, `sessions` for each class.

    A class whose share comes to less than half a request may have none.
    """
    rng = np.random.default_rng([seed, crc32(mix.key.encode())])
    classes = mix.classes()
    wanted = counts([part.share for part in mix.parts], count)
    plans = {
        key: plan(one, number, seed, max_context=max_context, scale=scale, sessions=sessions, most_think_s=most_think_s)
        for (key, one), number in zip(classes.items(), wanted, strict=True)
        if number
    }
    keys = rng.permutation(np.repeat(np.arange(len(wanted)), wanted)).tolist()
    names = list(classes)
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
