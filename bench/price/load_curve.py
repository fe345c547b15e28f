"""A day of load by the hour (configs/load_curves), and how a fleet follows one (configs/autoscaling.toml).

Only the shape counts: `relative(mean)` scales it to any mean load. Hours are the grain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bench import config
from bench.config import require

HOURS = 24
HOUR_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class LoadCurve:
    """24 hourly loads in any unit; the day repeats itself."""

    FOLDER: ClassVar[str] = "load_curves"
    key: str = ""
    name: str
    hourly: tuple[float, ...]
    unit: str
    source: str
    licence: str
    note: str = ""

    def __post_init__(self) -> None:
        require(len(self.hourly) == HOURS, "hourly", f"{HOURS} loads, an hour each, got {len(self.hourly)}")
        require(min(self.hourly) >= 0 and max(self.hourly) > 0, "hourly", "loads of 0 or more, one above it")
        require(self.source.startswith("https://"), "source", f"the full address of the figures, got {self.source!r}")

    @property
    def peak_over_mean(self) -> float:
        """Of the hours; inside an hour the peak is higher."""
        return max(self.hourly) * HOURS / sum(self.hourly)

    def relative(self, mean: float) -> list[float]:
        """The day scaled to a mean load."""
        return [mean * load * HOURS / sum(self.hourly) for load in self.hourly]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A number with where it is from."""

    value: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Several, likewise."""

    value: tuple[float, ...]
    source: str


@dataclass(frozen=True, kw_only=True)
class Autoscaler:
    """Whole units, enough that none is loaded above the target; started ahead of need, kept for a while after it."""

    target_utilisation: Setting
    minimum_units: Setting
    scale_down_delay_s: Setting  # a unit no longer needed is paid for so long
    start_s: Setting  # a unit is paid for so long before it serves
    fleet_sizes: Sizes  # mean loads that are told, in units

    def __post_init__(self) -> None:
        target, least = self.target_utilisation.value, self.minimum_units.value
        require(0 < target <= 1, "target_utilisation", f"a share in (0, 1], got {target}")
        require(least >= 0 and least == int(least), "minimum_units", f"a whole number, got {least}")
        for name in ("scale_down_delay_s", "start_s"):
            require(getattr(self, name).value >= 0, name, "a time of 0 or more")
        both = self.scale_down_delay_s.value + self.start_s.value
        require(both <= HOUR_S, "start_s", f"with scale_down_delay_s at most an hour, the grain of a day, got {both}")
        require(min(self.fleet_sizes.value, default=0) > 0, "fleet_sizes", "positive mean loads, one at least")

    @classmethod
    def load(cls) -> Autoscaler:
        """configs/autoscaling.toml."""
        return config.read(cls, config.CONFIGS / "autoscaling.toml")
