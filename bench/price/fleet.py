"""A fleet of whole units through one day: how many are paid for when, and what for.

    needed units in an hour = max(minimum, ceil(load / target)), load in units kept wholly busy

`autoscaled` starts what the next hour needs `start_s` ahead and keeps what an hour no longer needs for
`scale_down_delay_s`; within one hour the two never meet (load_curve.py). `static` holds the peak's units all day.
`perfect` is a bound nobody reaches: any fraction of a unit, wholly busy, for as long as there is load. Paid unit-hours
are told as three lines:

    usage       what the load keeps busy: the same however it is provisioned, and all that `perfect` pays
    start-up    units that are paid and not yet serving
    idle        the rest: headroom below the target, the last unit's free part, delays, nights at the minimum

`reserved_base` pays some units all day at a commitment's price and what goes beyond them on demand.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.price.load_curve import HOUR_S, Autoscaler

Segment = tuple[int, float]  # units paid, seconds


@dataclass(frozen=True)
class Day:
    """One day's paid unit-hours by line, and when how many are paid."""

    usage: float
    startup: float
    paid: float
    segments: tuple[Segment, ...]

    @property
    def idle(self) -> float:
        """What is paid beside usage and start-up."""
        return self.paid - self.usage - self.startup

    @property
    def peak(self) -> int:
        """Most units paid at once."""
        return max(units for units, _ in self.segments)


def needed(loads: Iterable[float], scaler: Autoscaler) -> list[int]:
    """Units of each hour for its load in busy units."""
    least, target = int(scaler.minimum_units.value), scaler.target_utilisation.value
    return [max(least, math.ceil(load / target - 1e-9)) for load in loads]


def autoscaled(loads: Sequence[float], scaler: Autoscaler) -> Day:
    """The fleet follows its load, in whole units; the day after is like this one."""
    units = needed(loads, scaler)
    delay, start = scaler.scale_down_delay_s.value, scaler.start_s.value
    segments, startup = [], 0.0
    for hour, now in enumerate(units):
        before, after = units[hour - 1], units[(hour + 1) % len(units)]
        segments += [(max(now, before), delay), (now, HOUR_S - delay - start), (max(now, after), start)]
        startup += max(after - now, 0) * start
    return _day(loads, segments, startup)


def static(loads: Sequence[float], scaler: Autoscaler) -> Day:
    """The peak hour's units all day."""
    return _day(loads, [(max(needed(loads, scaler)), HOUR_S * len(loads))], 0.0)


def perfect(loads: Sequence[float]) -> float:
    """Unit-hours nobody can go below: the load itself."""
    return sum(loads)


def _day(loads: Sequence[float], segments: Sequence[Segment], startup: float) -> Day:
    paid = sum(units * seconds for units, seconds in segments) / HOUR_S
    return Day(sum(loads), startup / HOUR_S, paid, tuple(segments))


@dataclass(frozen=True)
class Base:
    """Units reserved all day, and the unit-hours taken on demand beyond them."""

    units: int
    reserved: float  # unit-hours
    on_demand: float

    def usd(self, reserved: float, on_demand: float) -> float:
        """A day at two prices of a unit-hour."""
        return self.reserved * reserved + self.on_demand * on_demand


def base_of(day: Day, units: int) -> Base:
    """The day with so many of its units reserved."""
    hours = sum(seconds for _, seconds in day.segments) / HOUR_S
    beyond = sum(max(paid - units, 0) * seconds for paid, seconds in day.segments) / HOUR_S
    return Base(units, units * hours, beyond)


def reserved_base(day: Day, reserved_usd: float, on_demand_usd: float) -> Base:
    """The base that makes the day cheapest, the smallest of equals.

    The bill is convex in the base: one more unit costs a day of the commitment and saves the hours it replaces. So the
    best base stands at one of the day's own levels, or at none.
    """
    bases = [base_of(day, units) for units in sorted({0, *(units for units, _ in day.segments)})]
    return min(bases, key=lambda base: (base.usd(reserved_usd, on_demand_usd), base.units))
