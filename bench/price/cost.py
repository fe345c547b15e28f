"""What a million tokens cost: every throughput row under every price of the same GPU.

    usd_per_million_tokens = usd_per_gpu_hour * n_gpus * 1e6 / (3600 * system_tokens_per_s * utilisation)

`usd_per_gpu_hour` is per provisioned hour. Utilisation is the share of that time doing this work, and it enters here
and nowhere else: the fleet's load factor in serving, availability in training (configs/pricing.toml, each with its
source). A rate taken over time that already contains idling (flag `idle_included` or `open_loop`) takes 1.

The headline charges `n_gpus` as a share of the instance, because replicas fill a node; beside it stands the instance
paid whole, ceil(n_gpus / gpu_count) * gpu_count. The same bill is told in two ways, with idle as a line of its own:

    usage-based         the used hours of the used GPUs: the headline * utilisation
    idle time           the paid hours in which they did nothing: the headline * (1 - utilisation)
    idle GPUs           what the instance holds beyond them, over all paid hours: paid whole - the headline
    allocation-based    the instance paid whole: the three together

A serving row is priced twice: per output token, which then carries
the whole bill, prefill included; and per token in or out, which shares the same bill evenly. Prefill and decode rows
price their own phase: a part of the bill. CPU rows are priced per vCPU hour and marked illustrative.
"""

from __future__ import annotations

import datetime
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench import config
from bench.price import owned
from bench.price.book import CpuPrice, Price, Provider, Range, providers, standing
from bench.price.throughput import IDLE_INCLUDED, Row

TOKENS = 1e6
SECONDS_PER_HOUR = 3600.0
# FOCUS 1.2; else Committed. A capacity block is priced by the day it is bought on
CATEGORIES = {"on_demand": "Standard", "spot": "Dynamic", "capacity_block": "Dynamic", "owned": "Other"}
COMMITMENTS = {"reserved_1y": "Reservation", "reserved_3y": "Reservation", "contract": "Contract"}


@dataclass(frozen=True, kw_only=True)
class Utilisation:
    """Share of provisioned time that does the work (configs/pricing.toml)."""

    inference: Range
    training: Range

    def __post_init__(self) -> None:
        for name in ("inference", "training"):
            config.require(getattr(self, name).high <= 1, name, "a share of time, at most 1")

    @classmethod
    def load(cls) -> Utilisation:
        """configs/pricing.toml."""
        return config.read(cls, config.CONFIGS / "pricing.toml")

    def of(self, row: Mapping[str, Any]) -> float:
        """The share a row is billed with: 1 where its rate already contains idle time."""
        if contains_idle(row):
            return 1.0
        trains = row["phase"] in ("train_step", "rl_step")  # an RL step generates on the training cluster's time
        return (self.training if trains else self.inference).value


def contains_idle(row: Mapping[str, Any]) -> bool:
    """Whether a rate was taken over time that already contains idling: how much of it was used is not known."""
    return bool(set((row["flags"] or "").split("+")) & set(IDLE_INCLUDED))


def usd_per_million_tokens(
    usd_per_gpu_hour: float, n_gpus: float, system_tokens_per_s: float, utilisation: float
) -> float:
    """USD per million tokens. Raises ValueError where a rate or a share makes no sense."""
    if not system_tokens_per_s > 0:
        raise ValueError(f"system_tokens_per_s: expected a positive rate, got {system_tokens_per_s}")
    if not 0 < utilisation <= 1:
        raise ValueError(f"utilisation: expected a share in (0, 1], got {utilisation}")
    seconds = SECONDS_PER_HOUR * system_tokens_per_s * utilisation
    return usd_per_gpu_hour * n_gpus * TOKENS / seconds


def whole_instances(n: int, sold_together: int) -> int:
    """GPUs (or vCPUs) paid for when instances are only sold whole."""
    return math.ceil(n / sold_together) * sold_together


@dataclass(frozen=True)
class _Unit:
    """One price as cost.py needs it: per GPU hour or per vCPU hour, and how many are sold together."""

    name: str
    category: str
    usd: float
    low: float
    high: float
    sold: int
    count: int  # of the row's deployment


def _unit(row: Row, price: Price | CpuPrice) -> _Unit:
    if isinstance(price, CpuPrice):
        usd = price.usd_per_vcpu_hour
        return _Unit("vCPU-Hours", "CPU instances", usd, usd, usd, price.vcpus, row["vcpus"])
    usd = price.usd_per_gpu_hour
    low, high = price.low or usd, price.high or usd
    return _Unit("GPU-Hours", "GPU instances", usd, low, high, price.gpu_count, row["n_gpus"])


def costs(
    rows: Iterable[Row],
    as_of: datetime.date,
    book: Sequence[Provider] | None = None,
    utilisation: Utilisation | None = None,
) -> list[Row]:
    """Rows of results.COSTS: each throughput row under each price of its GPU that stands at `as_of`.

    gpu_only prices and rows whose GPU no config names price nothing. Low and high span the rate's 95% interval and,
    for a contract or an owner's cost, the price's own range.
    """
    utilisation = utilisation or Utilisation.load()
    offers = list(_offers(standing(providers().values() if book is None else book, as_of)))
    made = []
    for row in rows:
        share = utilisation.of(row)
        for provider, price in offers:
            if sells(price, row):
                made += [_cost(priced, provider, price, share) for priced in _token_views(row)]
    return made


def _offers(book: Iterable[Provider]) -> Iterator[tuple[Provider, Price | CpuPrice]]:
    for provider in book:
        prices: list[Price | CpuPrice] = [*provider.price, *provider.cpu_price]
        yield from ((provider, price) for price in [*prices, *(owned.price(own) for own in provider.owned)])


def sells(price: Price | CpuPrice, row: Mapping[str, Any]) -> bool:
    """Whether a price is one of the row's device: by GPU, and instances; any CPU's where vCPUs are known."""
    if isinstance(price, CpuPrice):
        return row["device"] == "cpu" and bool(row["vcpus"])
    return bool(row["gpu"]) and price.gpu == row["gpu"] and price.includes == "instance"


def _token_views(row: Row) -> list[Row]:
    """A serving row as output tokens and as all tokens, where its lengths are known; any other row as it is."""
    lengths = row["input_tokens"] is not None and row["output_tokens"]
    if row["phase"] != "serve" or row["token_kind"] not in ("output", "total") or not lengths:
        return [row]
    ratio = (row["input_tokens"] + row["output_tokens"]) / row["output_tokens"]  # total : output
    output = 1.0 if row["token_kind"] == "output" else 1 / ratio
    return [_scaled(row, "output", output), _scaled(row, "total", output * ratio)]


def _scaled(row: Row, kind: str, factor: float) -> Row:
    rates = ("system_tokens_per_s", "low", "high")
    return row | {k: row[k] and row[k] * factor for k in rates} | {"token_kind": kind}


def _cost(row: Row, provider: Provider, price: Price | CpuPrice, share: float) -> Row:
    unit = _unit(row, price)
    rate = row["system_tokens_per_s"]

    def usd(per_hour: float, count: int, at: float | None) -> float:
        return usd_per_million_tokens(per_hour, count, at or rate, share)

    headline = usd(unit.usd, unit.count, rate)
    whole = usd(unit.usd, whole_instances(unit.count, unit.sold), rate)
    cpu = isinstance(price, CpuPrice)
    ranged = bool(row["low"] and row["high"]) or unit.low < unit.high
    return {
        "x_row": row["row"],
        "x_basis": row["basis"],
        "x_phase": row["phase"],
        "x_model": row["model"],
        "x_workload": row["workload"],
        "x_backend": row["backend"],
        "x_precision": row["precision"],
        "x_gpu": row["gpu"],
        "x_n_gpus": row["n_gpus"],
        "x_token_kind": row["token_kind"],
        "x_carries": "part" if row["phase"] in ("prefill", "decode") else "whole_bill",
        "x_layers_measured": row["layers_measured"],
        "x_system_tokens_per_s": rate,
        "ProviderName": provider.name,
        "x_provider": provider.key,
        "RegionId": price.region,
        "ServiceCategory": "Compute",
        "ServiceName": unit.category,
        "SkuId": price.sku,
        "PricingCategory": CATEGORIES.get(price.term, "Committed"),
        "x_term": price.term,
        "x_level": price.level,
        "PricingUnit": unit.name,
        "PricingQuantity": headline / unit.usd,
        "ConsumedUnit": "Tokens",
        "ConsumedQuantity": TOKENS,
        "ListUnitPrice": unit.usd if price.term == "on_demand" else None,
        "ContractedUnitPrice": unit.usd,
        "EffectiveCost": headline,
        "BillingCurrency": "USD",
        "ChargeCategory": "Usage",
        "x_usd_per_gpu_hour": unit.usd,
        "x_gpu_count": unit.sold,
        "x_utilisation": share,
        "x_usd_per_million_tokens": headline,
        "x_usd_per_million_tokens_low": usd(unit.low, unit.count, row["high"]) if ranged else None,
        "x_usd_per_million_tokens_high": usd(unit.high, unit.count, row["low"]) if ranged else None,
        "x_usd_per_million_tokens_whole_instance": whole,
        "x_illustrative": "yes" if cpu else None,
        "x_price_as_of": price.as_of.isoformat(),
        "x_price_source": price.source,
        "x_source": row["source"],
        "ListCost": headline if price.term == "on_demand" else None,
        "ContractedCost": headline,
        "CommitmentDiscountType": COMMITMENTS.get(price.term),
        **_idle(None if contains_idle(row) else headline * share, headline, whole),
    }


def _idle(used: float | None, headline: float, whole: float) -> Row:
    """The bill as usage and idle; `used` None: the rate does not say how much of its time was used."""
    return {
        "x_usage_based_usd": used,
        "x_idle_time_usd": None if used is None else headline - used,
        "x_idle_gpus_usd": whole - headline,
        "x_idle_usd": None if used is None else whole - used,
        "x_allocation_based_usd": whole,
    }


def regional(made: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Median, lowest and highest over a provider's regions, for each row, kind of tokens, GPU and term.

    A headline quotes the median: the lowest region is a price few can get. Instances of one region count once, by
    their own median.
    """
    keys = ("x_row", "x_token_kind", "x_provider", "ProviderName", "x_gpu", "x_term", "x_level")
    groups: dict[tuple[Any, ...], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for cost in made:
        groups[tuple(cost[k] for k in keys)][cost["RegionId"]].append(cost["x_usd_per_million_tokens"])
    found = []
    for key, regions in groups.items():
        usd = [statistics.median(prices) for prices in regions.values()]
        summary = {"median": statistics.median(usd), "lowest": min(usd), "highest": max(usd), "regions": len(usd)}
        found.append(dict(zip(keys, key, strict=True)) | summary)
    return found
