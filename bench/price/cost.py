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
import functools
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench import config
from bench.price import owned
from bench.price.book import CpuPrice, Price, Provider, Range, providers, standing
from bench.price.cost_columns import SECONDS_PER_HOUR as SECONDS_PER_HOUR
from bench.price.cost_columns import TOKENS, Bills, Columns, floats, lines, meetings, money, objects, within
from bench.price.cost_columns import usd_per_million_tokens as usd_per_million_tokens
from bench.price.cost_columns import whole_instances as whole_instances
from bench.price.throughput import IDLE_INCLUDED, Row
from bench.results import COSTS

Offer = tuple[Provider, Price | CpuPrice]
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
    return _idle_in(row["flags"] or "")


@functools.cache
def _idle_in(flags: str) -> bool:
    return not set(flags.split("+")).isdisjoint(IDLE_INCLUDED)


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
    return list(lines(columns(list(rows), as_of, book, utilisation)))


def columns(
    rows: Sequence[Row],
    as_of: datetime.date,
    book: Sequence[Provider] | None = None,
    utilisation: Utilisation | None = None,
) -> Columns:
    """The same, a numpy array a column of results.COSTS: for more lines than a list of dicts would hold."""
    utilisation = utilisation or Utilisation.load()
    offers = list(_offers(standing(providers().values() if book is None else book, as_of)))
    devices = [(row["device"] == "cpu" and bool(row["vcpus"]), row["gpu"]) for row in rows]
    examples = dict(zip(devices, rows, strict=True))
    sold = {
        key: [place for place, (_, price) in enumerate(offers) if sells(price, row)] for key, row in examples.items()
    }
    views = [_token_views(row) for row in rows]
    many = np.array([len(each) for each in views], dtype=np.intp)
    view, offer = meetings(devices, sold, many)
    owner, _ = within(many)
    row = owner[view]
    by_row = {name: objects(made)[row] for name, made in _row_columns(rows).items()}
    kinds = objects([kind for each in views for kind, _ in each])
    factor = np.array([factor for each in views for _, factor in each], dtype=float)[view]
    by_offer = {name: objects(made)[offer] for name, made in _offer_columns(offers).items()}
    rate, low, high = (floats([r[name] for r in rows])[row] * factor for name in ("system_tokens_per_s", "low", "high"))
    unit = {name: np.array(made, dtype=float)[offer] for name, made in _units(offers).items()}
    per_gpu = by_offer["PricingUnit"] == "GPU-Hours"
    gpus, vcpus = (floats([r[name] for r in rows])[row] for name in ("n_gpus", "vcpus"))
    bills = Bills(
        **{"rate": rate, "low": low, "high": high, "count": np.where(per_gpu, gpus, vcpus)},
        utilisation=np.array([utilisation.of(r) for r in rows], dtype=float)[row],
        idle_known=np.array([not contains_idle(r) for r in rows], dtype=bool)[row],
        **unit,
    )
    made = {**by_row, **by_offer, "x_token_kind": kinds[view], **money(bills)}
    listed = by_offer["x_term"] == "on_demand"
    made["ListUnitPrice"] = np.where(listed, bills.usd, np.nan)
    made["ListCost"] = np.where(listed, made["EffectiveCost"], np.nan)
    made["ConsumedQuantity"] = np.full(len(view), TOKENS)
    return {name: made[name] for name in COSTS if name in made}  # the rest knows rates and regions: market.py


def _offers(book: Iterable[Provider]) -> Iterator[Offer]:
    for provider in book:
        prices: list[Price | CpuPrice] = [*provider.price, *provider.cpu_price]
        yield from ((provider, price) for price in [*prices, *(owned.price(own) for own in provider.owned)])


def sells(price: Price | CpuPrice, row: Mapping[str, Any]) -> bool:
    """Whether a price is one of the row's device: by GPU, and instances; any CPU's where vCPUs are known."""
    if isinstance(price, CpuPrice):
        return row["device"] == "cpu" and bool(row["vcpus"])
    return bool(row["gpu"]) and price.gpu == row["gpu"] and price.includes == "instance"


def _token_views(row: Row) -> list[tuple[str, float]]:
    """Kinds of tokens a row is priced in, and how many of a kind each counted token stands for.

    A serving row: output tokens and all tokens, where its lengths are known; any other row as it is.
    """
    lengths = row["input_tokens"] is not None and row["output_tokens"]
    if row["phase"] != "serve" or row["token_kind"] not in ("output", "total") or not lengths:
        return [(row["token_kind"], 1.0)]
    ratio = (row["input_tokens"] + row["output_tokens"]) / row["output_tokens"]  # total : output
    output = 1.0 if row["token_kind"] == "output" else 1 / ratio
    return [("output", output), ("total", output * ratio)]


def _row_columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """What costs.csv repeats of a throughput row."""
    same = ("row", "basis", "phase", "model", "workload", "backend", "precision", "gpu", "n_gpus", "layers_measured")
    made = {f"x_{name}": [row[name] for row in rows] for name in (*same, "source")}
    made["x_carries"] = ["part" if row["phase"] in ("prefill", "decode") else "whole_bill" for row in rows]
    constant = {"ServiceCategory": "Compute", "ConsumedUnit": "Tokens", "BillingCurrency": "USD"}
    return made | {name: [word] * len(rows) for name, word in {**constant, "ChargeCategory": "Usage"}.items()}


def _offer_columns(offers: Sequence[Offer]) -> dict[str, list[Any]]:
    """What costs.csv repeats of a price."""
    cpu = [isinstance(price, CpuPrice) for _, price in offers]
    prices = [price for _, price in offers]
    return {
        "ProviderName": [provider.name for provider, _ in offers],
        "x_provider": [provider.key for provider, _ in offers],
        "RegionId": [price.region for price in prices],
        "ServiceName": ["CPU instances" if each else "GPU instances" for each in cpu],
        "SkuId": [price.sku for price in prices],
        "PricingCategory": [CATEGORIES.get(price.term, "Committed") for price in prices],
        "x_term": [price.term for price in prices],
        "x_level": [price.level for price in prices],
        "PricingUnit": ["vCPU-Hours" if each else "GPU-Hours" for each in cpu],
        "x_gpu_count": [price.vcpus if isinstance(price, CpuPrice) else price.gpu_count for price in prices],
        "x_illustrative": ["yes" if each else None for each in cpu],
        "x_price_as_of": [price.as_of.isoformat() for price in prices],
        "x_price_source": [price.source for price in prices],
        "CommitmentDiscountType": [COMMITMENTS.get(price.term) for price in prices],
    }


def _units(offers: Sequence[Offer]) -> dict[str, list[float]]:
    """Prices per GPU hour, or per vCPU hour, and how many are sold together: fields of Bills."""
    made: dict[str, list[float]] = {"usd": [], "usd_low": [], "usd_high": [], "sold": []}
    for _, price in offers:
        if isinstance(price, CpuPrice):
            usd, low, high, sold = *[price.usd_per_vcpu_hour] * 3, price.vcpus
        else:
            usd, sold = price.usd_per_gpu_hour, price.gpu_count
            low, high = price.low or usd, price.high or usd
        for name, value in zip(made, (usd, low, high, sold), strict=True):
            made[name].append(value)
    return made


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
