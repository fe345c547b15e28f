"""How often a seller's capacity is away: a site at a time, the seller whole, and all sellers at once.

    site     q = site_hours_per_year / 8760                 a site is away, for whatever reason
    seller   g = b_seller * q                               of that, the part in which all its sites are away
    all      w = b_all * min over sellers of g              of that, the part in which every seller is away

This is the beta-factor model of common-cause failures (IEC 61508-6, annex D): a share b of a part's unavailability
comes from a cause it has in common with its redundant neighbours. The rest is independent. A seller's own
unavailability is therefore the same whatever stands beside it; only how much of it coincides differs.

A provider's figures are one TOML in configs/reliability: ranges, and the public incidents they lean on.
"""

from __future__ import annotations

import datetime
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bench.config import require
from bench.price.book import Range
from bench.price.draws import Array, Seed
from bench.price.owned import HOURS_PER_YEAR, draw

SCOPES = ("site", "seller")


@dataclass(frozen=True, kw_only=True)
class Incident:
    """A public outage; `hours` from its beginning to recovery, None where nobody says."""

    date: datetime.date
    scope: str
    hours: float | None = None
    what: str
    evidence: str

    def __post_init__(self) -> None:
        require(self.scope in SCOPES, "scope", f"one of {', '.join(SCOPES)}, got {self.scope!r}")


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """A provider's outages. Ranges: hours a year a site is away, and how long it then is away."""

    FOLDER: ClassVar[str] = "reliability"
    key: str = ""
    site_hours_per_year: Range
    outage_hours: Range
    incident: tuple[Incident, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        require(self.site_hours_per_year.high < HOURS_PER_YEAR, "site_hours_per_year", "less than a year")

    @property
    def evidence(self) -> tuple[str, ...]:
        """Ids of configs/evidence.csv behind ranges and incidents."""
        cited = (*self.site_hours_per_year.evidence, *self.outage_hours.evidence)
        return tuple(sorted({*cited, *(one.evidence for one in self.incident)}))

    def draws(self, count: int, seed: Seed) -> tuple[Array, Array]:
        """`count` draws of q (a fraction of time) and of the mean outage (hours)."""
        hours, length = (draw(name, span, count, seed) for name, span in self.streams.items())
        return hours / HOURS_PER_YEAR, length

    @property
    def streams(self) -> dict[str, Range]:
        """What is drawn, by stream: hours a year a site is away, hours of an outage."""
        return {f"{self.key} site hours": self.site_hours_per_year, f"{self.key} outage hours": self.outage_hours}


def states(
    sites: Mapping[str, int], away: Mapping[str, Array], common_to_seller: Array, common_to_all: Array
) -> Iterator[tuple[dict[str, float], Array]]:
    """Every state of the sellers and how often it is: (part of each seller that is away, probability by draw).

    `sites` says over how many equal sites each seller's capacity is spread, `away` is q by seller. Probabilities of
    all states sum to 1 in every draw.
    """
    whole = {name: common_to_seller * away[name] for name in sites}
    everywhere = common_to_all * np.minimum.reduce(list(whole.values()))
    yield dict.fromkeys(sites, 1.0), everywhere
    each = [_of_seller(count, away[name], whole[name], everywhere) for name, count in sites.items()]
    for combination in itertools.product(*each):
        probability = 1 - everywhere
        for _, p in combination:
            probability = probability * p
        yield {name: part for name, (part, _) in zip(sites, combination, strict=True)}, probability


def _of_seller(sites: int, away: Array, whole: Array, everywhere: Array) -> list[tuple[float, Array]]:
    """(part away, probability) of one seller, given that not everything is away."""
    own = (whole - everywhere) / (1 - everywhere)  # the seller whole, on its own account
    local = (away - whole) / (1 - whole)  # one site, the seller being there
    found = []
    for down in range(sites + 1):
        p = math.comb(sites, down) * local**down * (1 - local) ** (sites - down) * (1 - own)
        found.append((down / sites, p + own if down == sites else p))
    return found
