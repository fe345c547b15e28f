"""A portfolio: whose GPU-hours in which shares, year by year, at which prices, and what it must survive.

One TOML in configs/portfolios. Shares are of the capacity needed; every seller's share is spread evenly over `sites`.
`survive` says how much spare is bought on top (blend.py): none, enough for any one site to be away, or for any one
seller. A price is a range at the portfolio's one level (contract with contract). A commitment is paid whether used or
not; to know how much of it is used, a year with commitments says how much capacity is needed.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import ClassVar

from bench import config
from bench.config import require
from bench.price.book import LEVELS, Range
from bench.price.reliability import Reliability

SURVIVE = ("none", "site", "seller")


@dataclass(frozen=True, kw_only=True)
class Holding:
    """One seller in a portfolio."""

    provider: str  # key of configs/providers and configs/reliability
    sites: int
    usd_per_gpu_hour: Range
    term: str
    proxy: bool = False  # stands in for a price nobody published
    commitment_usd_per_year: Range | None = None

    def __post_init__(self) -> None:
        require(self.sites >= 1, "sites", f"at least 1, got {self.sites}")
        require(self.term in LEVELS, "term", f"one of {', '.join(LEVELS)}, got {self.term!r}")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Shares of the needed capacity in one year: provider -> fraction."""

    year: int
    shares: dict[str, float]
    capacity_gw: Range | None = None

    def __post_init__(self) -> None:
        whole = abs(sum(self.shares.values()) - 1) < 1e-6 and min(self.shares.values(), default=0) >= 0
        require(whole, "shares", f"fractions that add up to 1, got {self.shares}")

    @property
    def held(self) -> dict[str, float]:
        """The shares that are not nothing."""
        return {name: share for name, share in self.shares.items() if share > 0}


@dataclass(frozen=True, kw_only=True)
class Portfolio:
    """Sellers, shares by year, what to survive."""

    FOLDER: ClassVar[str] = "portfolios"
    key: str = ""
    name: str
    text: str
    gpu: str
    as_of: datetime.date  # of its newest price: before it, the portfolio is not known
    survive: str
    holding: tuple[Holding, ...]
    year: tuple[Plan, ...]
    gpus_per_gw: Range | None = None
    source: str
    evidence: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(self.survive in SURVIVE, "survive", f"one of {', '.join(SURVIVE)}, got {self.survive!r}")
        require(self.gpu in config.keys(config.Gpu), "gpu", f"a key of configs/gpus, got {self.gpu!r}")
        known = [holding.provider for holding in self.holding]
        require(bool(known) and len(set(known)) == len(known), "holding", "at least one seller, each once")
        for name in known:
            path = config.CONFIGS / Reliability.FOLDER / f"{name}.toml"
            require(path.is_file(), "holding.provider", f"a key of configs/reliability, got {name!r}")
        levels = {LEVELS[holding.term] for holding in self.holding}
        require(len(levels) == 1, "holding.term", f"prices of one level, never {' beside '.join(sorted(levels))}")
        committed = any(holding.commitment_usd_per_year for holding in self.holding)
        require(not committed or self.gpus_per_gw is not None, "gpus_per_gw", "a range where a commitment is")
        require(bool(self.year), "year", "at least one [[year]] table")
        for plan in self.year:
            self._check(plan, set(known), committed)

    def _check(self, plan: Plan, known: set[str], committed: bool) -> None:
        where = f"year.{plan.year}"
        lost = sorted(set(plan.shares) - known)
        require(not lost, f"{where}.shares", f"sellers with a [[holding]] table, got {', '.join(lost)}")
        require(not committed or plan.capacity_gw is not None, f"{where}.capacity_gw", "a range where a commitment is")
        alone = self.survive == "seller" and len(plan.held) < 2
        require(not alone, f"{where}.shares", "two sellers at least, where the loss of one is to be survived")

    @property
    def level(self) -> str:
        """The one level of its prices."""
        return LEVELS[self.holding[0].term]

    def plan(self, year: int) -> Plan:
        """The plan of a year. Raises ConfigError where there is none."""
        for plan in self.year:
            if plan.year == year:
                return plan
        years = ", ".join(str(plan.year) for plan in self.year)
        raise config.ConfigError(f"configs/portfolios/{self.key}.toml: year: expected {year}, has {years}")

    def of(self, provider: str) -> Holding:
        """The holding of a seller."""
        return next(holding for holding in self.holding if holding.provider == provider)
