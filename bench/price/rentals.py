"""Whole instances as a deployment rents them: one offer a provider, term and size, and the unit a deployment fills.

An offer is the median over its regions (of each region the median over its SKUs), as in cost.regional. A unit is the
fewest instances that hold whole replicas of a deployment:

    n_gpus <= gpu_count: one instance, gpu_count // n_gpus replicas        else: ceil(n_gpus / gpu_count) instances, one

Instances of a single GPU are no place for a deployment of several: nothing says they share a node.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.price.book import Provider
from bench.price.cost import sells
from bench.price.serving_cost import LEVELS  # by level the terms a median is over: no spot, which may be taken away


@dataclass(frozen=True)
class Rental:
    """Instances of one seller and term: USD per GPU-hour, GPUs an instance."""

    provider: str
    name: str
    term: str
    level: str
    gpu_count: int
    usd_per_gpu_hour: float
    regions: int

    def instances(self, n_gpus: int) -> int:
        """Instances of one unit."""
        return math.ceil(n_gpus / self.gpu_count)

    def replicas(self, n_gpus: int) -> int:
        """Deployments of `n_gpus` in one unit; GPUs left over are paid for."""
        return self.instances(n_gpus) * self.gpu_count // n_gpus

    def usd_per_unit_hour(self, n_gpus: int) -> float:
        """An hour of one unit, paid whole."""
        return self.instances(n_gpus) * self.gpu_count * self.usd_per_gpu_hour


def rentals(book: Iterable[Provider], row: Mapping[str, Any]) -> list[Rental]:
    """Every rental of a throughput row's GPU; `book` holds what stands that day (book.standing)."""
    regions: dict[tuple[str, ...], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    names = {}
    for seller in book:
        names[seller.key] = seller.name
        for price in seller.price:
            apart = price.gpu_count == 1 < row["n_gpus"]
            if sells(price, row) and price.level in LEVELS and not apart:
                key = (seller.key, price.term, price.level, str(price.gpu_count))
                regions[key][price.region].append(price.usd_per_gpu_hour)
    made = []
    for (provider, term, level, count), found in sorted(regions.items()):
        usd = statistics.median(statistics.median(prices) for prices in found.values())
        made.append(Rental(provider, names[provider], term, level, int(count), usd, len(found)))
    return made


def middle(offers: Iterable[Rental], n_gpus: int, level: str) -> Rental | None:
    """The median offer of a level's terms by the price of a replica-hour; of an even number the dearer of the two."""

    def usd(offer: Rental) -> float:
        return offer.usd_per_unit_hour(n_gpus) / offer.replicas(n_gpus)

    ranked = sorted(
        (o for o in offers if o.term in LEVELS[level]), key=lambda o: (usd(o), o.provider, o.term, o.gpu_count)
    )
    return ranked[len(ranked) // 2] if ranked else None
