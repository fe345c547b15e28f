"""Which rows of costs.csv a report shows: one model and GPU, one rate a side, one offer a provider and term.

costs.csv holds every rate at every price, thousands of rows. A figure needs one rate under many prices; which one is
decided here, by rules a reader can check, and named beside the figure.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from bench.config import load_all
from bench.price.cost import regional
from bench.price.throughput import ADAPTERS
from bench.report.material import Rows
from bench.report.numbers import known
from bench.report.sources import price_id
from bench.report.words import LEVELS
from bench.results import BASES
from bench.workload import Workload

SIDES = {"serving": ("serve", "decode", "prefill"), "training": ("train_step",)}
TOKEN_KINDS = ("trained", "output", "total", "input", "cached_input")  # what a reader asks for first
Shown = tuple[str, str]  # model, GPU


@functools.cache
def of_adapters() -> frozenset[str]:
    """Workloads that train adapters on a frozen base."""
    return frozenset(key for key, workload in load_all(Workload).items() if workload.lora_rank)


def side_of(row: Mapping[str, Any]) -> str:
    """serving or training, by phase; "" for anything else: RL steps, and adapters, whose base is not trained."""
    if row["x_workload"] in of_adapters() or ADAPTERS in (row["x_workload"] or ""):
        return ""
    return next((side for side, phases in SIDES.items() if row["x_phase"] in phases), "")


def priced(costs: Rows) -> Rows:
    """Cost rows that carry a price of a GPU: illustrative CPU rows have their own table."""
    return [row for row in costs if not row["x_illustrative"] and known(row["x_usd_per_million_tokens"])]


def headline(costs: Rows, level: str | None = None) -> Shown | None:
    """The model and GPU shown: both sides known, then best basis, most providers, most rates; of those with a
    price of `level`, where one is asked for. A modelled rate is never the headline.
    """
    groups: dict[Shown, Rows] = {}
    for row in priced(costs):
        if side_of(row) and row["x_basis"] != "modelled":
            groups.setdefault((row["x_model"], row["x_gpu"]), []).append(row)

    if level:
        groups = {key: rows for key, rows in groups.items() if any(row["x_level"] == level for row in rows)}

    def rank(item: tuple[Shown, Rows]) -> tuple[Any, ...]:
        rows = item[1]
        best = min(BASES.index(row["x_basis"]) for row in rows)
        providers, rates = {r["x_provider"] for r in rows}, {r["x_row"] for r in rows}
        return (-len({side_of(r) for r in rows}), best, -len(providers), -len(rates), item[0])

    return min(groups.items(), key=rank)[0] if groups else None


def chosen(costs: Rows, side: str, shown: Shown | None) -> Rows:
    """The cost rows of one throughput row of a model and GPU: whole bill first, best basis, highest rate a GPU."""
    rows = [r for r in priced(costs) if (r["x_model"], r["x_gpu"]) == shown and side_of(r) == side]
    if not rows:
        return []

    def rank(row: Mapping[str, Any]) -> tuple[Any, ...]:
        rate = (row["x_system_tokens_per_s"] or 0.0) / (row["x_n_gpus"] or 1)
        phase = SIDES[side].index(row["x_phase"])
        kind = TOKEN_KINDS.index(row["x_token_kind"])
        return (row["x_carries"] != "whole_bill", BASES.index(row["x_basis"]), phase, kind, -rate, row["x_row"])

    best = min(rows, key=rank)
    return [row for row in rows if all(row[key] == best[key] for key in ("x_row", "x_token_kind"))]


def all_tokens(costs: Rows, rows: Rows) -> Rows:
    """The same rate priced per token in or out, where `rows` price its output tokens."""
    first = rows[0] if rows else {}
    return [r for r in priced(costs) if r["x_row"] == first.get("x_row") and r["x_token_kind"] == "total"]


def offers(rows: Rows) -> Rows:
    """One entry a provider, level and term, cheapest median first: median and range over regions.

    Where a provider states one price as a range (a contract, an owner's cost), the range is that of the price.
    """
    found = []
    for made in regional(rows):
        group = [r for r in rows if all(r[key] == made[key] for key in ("x_provider", "x_term", "x_level"))]
        one_size = len({r["x_gpu_count"] for r in group}) == 1
        one = group[0] if len(group) == 1 and made["x_level"] != "retail" else {}
        found.append(
            {
                "level": made["x_level"],
                "provider": made["ProviderName"],
                "term": made["x_term"],
                "low": one.get("x_usd_per_million_tokens_low") or made["lowest"],
                "median": made["median"],
                "high": one.get("x_usd_per_million_tokens_high") or made["highest"],
                "whole": over_regions(group, "x_usd_per_million_tokens_whole_instance") if one_size else None,
                "hour": over_regions(group, "x_usd_per_gpu_hour"),
                "regions": made["regions"],
                "anchor": price_id(group[0]),
                "key": made["x_provider"],
            }
        )
    order = list(LEVELS)
    return sorted(found, key=lambda o: (order.index(o["level"]), o["median"], o["provider"], o["term"]))


def over_regions(group: Rows, field: str) -> float:
    """Another field of one offer's rows by the path of its token cost: the median over the medians of its regions."""
    return float(regional([{**row, "x_usd_per_million_tokens": row[field]} for row in group])[0]["median"])
