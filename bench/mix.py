"""A mix of traffic classes as its TOML states it: shares of the requests, each share with where it comes from.

Nobody publishes who sends what to whom, so a mix is a judgement held against a few public totals; its file says which.
Both halves read it: serving sends such a mix (bench/traffic/mixes.py), money weighs the costs of its classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bench.config import require


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

    @property
    def shares(self) -> dict[str, float]:
        """Share of the requests by class."""
        return {part.traffic: part.share for part in self.parts}

    def mean(self, costs: dict[str, float]) -> float | None:
        """The cost of the mean request, from a cost per request by class; None where a class has none."""
        if not set(self.shares) <= set(costs):
            return None
        return sum(share * costs[traffic] for traffic, share in self.shares.items())
