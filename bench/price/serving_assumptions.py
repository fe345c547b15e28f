"""What is assumed about serving beside what is measured: who asks how often, in which mix, and what is not built here.

Three files of configs, read strictly. `serving_use.toml`: requests a user makes in a month, by class of traffic.
`serving_scenarios.toml`: published factors of throughput for techniques the engine lacks, each with its address.
`mixes/`: shares of the requests by class; the measuring half reads the same files to send such a mix.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from bench import config
from bench.config import require
from bench.mix import Mix

SPEEDS = ("output", "whole")


@dataclass(frozen=True, kw_only=True)
class Use:
    """Requests of one class that one active user makes in a month."""

    traffic: str
    requests_per_month: float
    source: str

    def __post_init__(self) -> None:
        require(self.requests_per_month > 0, "requests_per_month", f"a positive number, got {self.requests_per_month}")


@dataclass(frozen=True, kw_only=True)
class _Uses:
    use: tuple[Use, ...]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One published factor: what was measured, where it stands, when we read it."""

    factor: float
    said: str
    source: str
    seen: datetime.date

    def __post_init__(self) -> None:
        require(self.source.startswith("https://"), "source", f"the full address of the figure, got {self.source!r}")
        require(self.factor > 0, "factor", f"a positive number, got {self.factor}")


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A technique that is left out. `speeds`: the output tokens' part of the bill, or the whole of it."""

    key: str
    speeds: str
    low: Figure
    value: Figure
    high: Figure
    note: str

    def __post_init__(self) -> None:
        require(self.speeds in SPEEDS, "speeds", f"one of {', '.join(SPEEDS)}, got {self.speeds!r}")
        rising = self.low.factor <= self.value.factor <= self.high.factor
        require(rising, "value", "low <= value <= high")

    @property
    def figures(self) -> dict[str, Figure]:
        """The three by name."""
        return {"low": self.low, "value": self.value, "high": self.high}

    def cost_after(self, cost: float, output_share: float | None, factor: float) -> float | None:
        """A cost with the part that is sped up divided by the factor; None where that part is not known."""
        part = output_share if self.speeds == "output" else 1.0
        return None if part is None else cost * (1 - part + part / factor)


@dataclass(frozen=True, kw_only=True)
class _Scenarios:
    scenario: tuple[Scenario, ...]


def uses() -> dict[str, Use]:
    """configs/serving_use.toml by class of traffic."""
    found = config.read(_Uses, config.CONFIGS / "serving_use.toml").use
    return {use.traffic: use for use in found}


def scenarios() -> tuple[Scenario, ...]:
    """configs/serving_scenarios.toml, in its order."""
    return config.read(_Scenarios, config.CONFIGS / "serving_scenarios.toml").scenario


def mixes() -> dict[str, Mix]:
    """configs/mixes by key."""
    return config.load_all(Mix)
