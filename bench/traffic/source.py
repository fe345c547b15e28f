"""Where the requests of a load come from: a class of traffic, a mix of classes, or a trace file itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from bench import config
from bench.config import load
from bench.mix import Mix
from bench.traffic.arrivals import scheduled
from bench.traffic.mixes import classes, mixed
from bench.traffic.planning import Plan, clipped, plan
from bench.traffic.records import Planned
from bench.traffic.traces import read
from bench.traffic.traffic import Traffic


class Source(Protocol):
    """Makes plans, and says when their requests are due."""

    def plan(
        self,
        count: int,
        seed: int,
        *,
        max_context: int | None = None,
        scale: float = 1.0,
        most_think_s: float | None = None,
    ) -> Plan:
        """See planning.plan."""

    def scheduled(
        self, planned: Sequence[Planned], rate_per_s: float, process: str, seed: int, cv: float | None = None
    ) -> list[Planned]:
        """See arrivals.scheduled. `process` trace: with this source's own bursts, Poisson where it tells no times."""

    def process(self, asked: str) -> str:
        """What `asked` comes to here."""


def source(key: str, trace: Sequence[Path] = ()) -> Source:
    """The class or the mix of that key, or with `trace` the requests of these files. Raises ConfigError."""
    if trace:
        return Replay(trace, key)
    return Mixed(load(Mix, key)) if key in config.keys(Mix) else Class(load(Traffic, key))


class Class:
    """Requests drawn from the model of one class."""

    def __init__(self, traffic: Traffic):
        self.traffic = traffic
        self.plan = lambda count, seed, **how: plan(traffic, count, seed, **how)

    def scheduled(
        self, planned: Sequence[Planned], rate_per_s: float, process: str, seed: int, cv: float | None = None
    ) -> list[Planned]:
        process = self.process(process)
        bursts = self.traffic if process == "trace" else None
        return scheduled(planned, rate_per_s, process, seed, cv=cv, traffic=bursts)

    def process(self, asked: str) -> str:
        return "poisson" if asked == "trace" and self.traffic.arrivals is None else asked


class Mixed:
    """Requests of the classes of a mix, in random order."""

    def __init__(self, mix: Mix):
        self.classes = classes(mix)
        self.plan = lambda count, seed, **how: mixed(mix, count, seed, **how)

    def scheduled(
        self, planned: Sequence[Planned], rate_per_s: float, process: str, seed: int, cv: float | None = None
    ) -> list[Planned]:
        bursts = self.classes if process == "trace" else None
        return scheduled(planned, rate_per_s, process, seed, cv=cv, traffic=bursts)

    def process(self, asked: str) -> str:
        return asked


class Replay:
    """The requests of a trace as they stand in it, from its beginning; every load replays the same ones."""

    def __init__(self, files: Sequence[Path], traffic: str):
        self.requests = [dataclasses.replace(one, traffic=traffic) for one in read(files)]
        last_s = max((one.arrival_s for one in self.requests if one.arrival_s is not None), default=0.0)
        self.rate_per_s = len(self.requests) / last_s if last_s else None

    def plan(
        self,
        count: int,
        seed: int,
        *,
        max_context: int | None = None,
        scale: float = 1.0,
        most_think_s: float | None = None,
    ) -> Plan:
        """The first `count` requests, or all there are."""
        chosen = self.requests[:count]
        limit = np.iinfo(np.int64).max if max_context is None else max_context
        wanted = [
            np.maximum(1, np.rint(np.array(tokens) * scale)).astype(np.int64)
            for tokens in zip(*((one.input_tokens, one.output_tokens) for one in chosen), strict=True)
        ]
        inputs, outputs = clipped(wanted[0], wanted[1], limit)
        lost = wanted[0] + wanted[1] - inputs - outputs
        place = {one.number: number for number, one in enumerate(chosen)}
        found: list[Planned] = []
        for number, one in enumerate(chosen):
            parent = place.get(-1 if one.prefix_of is None else one.prefix_of)
            shared = 0 if parent is None else min(int(one.shared_tokens * scale), inputs[number], inputs[parent])
            asked = Planned(
                number=number,
                input_tokens=int(inputs[number]),
                output_tokens=int(outputs[number]),
                arrival_s=one.arrival_s,
                session=one.session,
                prefix_of=parent if shared else None,
                shared_tokens=int(shared),
                after=place.get(-1 if one.after is None else one.after),
                think_s=one.think_s if most_think_s is None else min(one.think_s, most_think_s),
                traffic=one.traffic,
            )
            found.append(asked)
        return Plan(found, clipped=int((lost > 0).sum()), lost_tokens=int(lost.sum()))

    def scheduled(
        self, planned: Sequence[Planned], rate_per_s: float, process: str, seed: int, cv: float | None = None
    ) -> list[Planned]:
        """With `trace` at the file's own times, stretched or squeezed to the rate."""
        process = self.process(process)
        if process != "trace":
            return scheduled(planned, rate_per_s, process, seed, cv=cv)
        assert self.rate_per_s is not None
        pace = self.rate_per_s / rate_per_s
        return [
            one if one.arrival_s is None else dataclasses.replace(one, arrival_s=one.arrival_s * pace)
            for one in planned
        ]

    def process(self, asked: str) -> str:
        return "poisson" if asked == "trace" and self.rate_per_s is None else asked
