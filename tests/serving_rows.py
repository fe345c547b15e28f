"""Load points of every kind, made up for the tests of serving's money and report: round numbers, an H100 of 3 USD."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import report_rows as made

from bench import results, runs, serving_results
from bench.price.book import Price, Provider
from bench.price.serving_cost import serving_costs
from bench.price.serving_points import load_classes, load_points
from bench.report.material import Material, gather

RUN = "20261122T050000_serving_h100_sxm_80gb_deadbeef"
CPU_RUN = "20261122T060000_serving_tiny_cpu_deadbeef"
AS_OF = datetime.date(2026, 11, 22)
CHAT = "llama_3_1_8b/serve_chat/triton"
MEMORY = 80e9


def served(name: str = CHAT, run: str = RUN, **values: Any) -> dict[str, Any]:
    """A cell of phase serve on one H100."""
    base = {"phase": "serve", "step_s_median": None, "step_s_last_third": None, "token_kind": "output"}
    unknown = dict.fromkeys(("flops_per_step", "flops_per_step_unhalved", "bytes_per_step", "energy_joules_per_step"))
    return made.trained(name, **{**base, **unknown, "run": run, "system_tokens_per_s": 1000.0, **values})


def on_cpu(name: str = "tiny_15m/serve_chat_tiny/reference", **values: Any) -> dict[str, Any]:
    """A cell of phase serve on a CPU."""
    cpu = {"device": "cpu", "gpu": "cpu", "device_name": "AMD EPYC", "precision": "fp32"}
    return served(name, CPU_RUN, **{**cpu, **values})


def closed(users: int, cell: str = CHAT, **values: Any) -> dict[str, Any]:
    """A steady closed-loop point: 100 output tokens/s a user and 1,000 input ones, 2 of 5 from the cache."""
    return point(f"concurrency={users}", users, cell, **{"concurrency": users, "saturated": "False", **values})


def opened(rate: float, cell: str = CHAT, **values: Any) -> dict[str, Any]:
    """A steady open-loop point of so many requests a second: 10 output tokens each."""
    base = {"rate_per_s": rate, "requests_per_s": rate, "saturated": "False"}
    return point(f"rate={rate:g}", rate / 10, cell, **{**base, **values})


def point(name: str, users: float, cell: str, **values: Any) -> dict[str, Any]:
    """A row of points.csv. Every user has 10 requests a second; interactivity falls as users grow."""
    base = {
        **{"cell": cell, "point": name, "n_gpus": 1, "requests": 1000, "requests_completed": 1000},
        **{
            "window_start_s": 0.0,
            "window_s": 20.0,
            "window_requests": 800,
            "sub_windows": 8,
            "output_tokens_per_s": 100.0 * users,
        },
        **{"output_tokens_per_s_low": 95.0 * users, "output_tokens_per_s_high": 105.0 * users},
        **{"input_tokens_per_s": 1000.0 * users, "cached_input_tokens_per_s": 400.0 * users},
        **{"requests_per_s": 10.0 * users, "interactivity_tokens_per_s": 100 / (1 + users / 16)},
        **{"ttft_s_p50": 0.05, "ttft_s_p95": 0.2, "tpot_s_p50": 0.01, "tpot_s_p95": 0.02},
        **{"slo_ttft_s": 0.5, "slo_tpot_s": 0.03, "slo_attainment": 0.99, "goodput_requests_per_s": 9.9 * users},
        **{"busy_share": 0.97, "prefill_share": 0.4, "batch_occupancy": 0.25, "littles_law_ratio": 1.01},
        **{"kv_cache_blocks": 1000, "kv_cache_bytes": int(MEMORY / 2)},
    }
    return made.row(serving_results.POINTS, **{**base, **values})


def steps(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Steps in which half of the time goes to prompts: 1 us a prefill token, 100 us a decoding sequence."""
    shapes = ((1000, 0), (0, 10), (2000, 0), (0, 20))
    return [
        made.row(
            serving_results.STEPS,
            **{"cell": one["cell"], "point": one["point"], "prefill_tokens": prefill, "decode_sequences": decode},
            **{"start_s": 1.0, "duration_s": 1e-6 * prefill + 1e-4 * decode, "kv_tokens": 0, "decode_kv_tokens": 0},
            **{"cached_blocks": 200, "lookup_s": 0.0},
        )
        for one in points
        for prefill, decode in shapes
    ]


def of_class(traffic: str, load: dict[str, Any], **values: Any) -> dict[str, Any]:
    """A row of classes.csv: what that class of a mix saw under a load."""
    same = {name: load[name] for name in serving_results.CLASSES if name in load}
    return made.row(serving_results.CLASSES, **{**same, "traffic": traffic, **values})


def folder(
    root: Path,
    cells: list[dict[str, Any]],
    points: list[dict[str, Any]],
    told: bool = True,
    classes: list[dict[str, Any]] | None = None,
) -> list[Path]:
    """Run folders of these cells with their points; `told`: and steps; `classes`: of the first run."""
    found = []
    for run in sorted({cell["run"] for cell in cells}):
        mine = [cell for cell in cells if cell["run"] == run]
        names = {cell["cell"] for cell in mine}
        own = [one for one in points if one["cell"] in names]
        (root / run).mkdir()
        facts = {"cpu_count": 4, "device_memory_bytes": MEMORY}
        (root / run / "environment.json").write_text(json.dumps(facts))
        results.write(root / run / "cells.csv", results.CELLS, mine)
        results.write(root / run / "points.csv", serving_results.POINTS, own)
        if classes and run == RUN:
            results.write(root / run / "classes.csv", serving_results.CLASSES, classes)
        if told:
            usable = [one for one in own if one["window_s"]]
            results.write(root / run / "steps.csv", serving_results.STEPS, steps(usable))
        found.append(root / run)
    return found


def price(usd: float, term: str = "on_demand", region: str = "any", **values: Any) -> Price:
    """A price of an H100."""
    same = {"sku": "h", "gpu": "h100_sxm_80gb", "gpu_count": 8, "includes": "instance", "as_of": AS_OF}
    return Price(**{**same, "region": region, "term": term, "usd_per_gpu_hour": usd, "source": "https://a.b", **values})


def book() -> list[Provider]:
    """Three sellers on demand (1, 5 and, the median of its regions, 3 USD) and one contract."""
    east = [price(2.5, region="b", sku="small"), price(3.5, region="b")]
    first = [price(2.0, region="a"), *east, price(9.0, region="c"), price(2.0, "reserved_1y")]
    each = {"one": first, "two": [price(5.0)], "three": [price(1.0), price(0.1, "spot")]}
    return [Provider(key=key, name=key, kind="neocloud", price=tuple(prices)) for key, prices in each.items()]


def material(
    root: Path,
    cells: list[dict[str, Any]],
    points: list[dict[str, Any]],
    told: bool = True,
    classes: list[dict[str, Any]] | None = None,
    client_load: list[dict[str, Any]] | None = None,
) -> Material:
    """What the report is made from."""
    places = folder(root, cells, points, told, classes)
    read = [cell for place in places for cell in runs.read_cells(place)]
    given = {"points": [one for place in places for one in load_points(place)], "published": []}
    given["classes"] = [one for place in places for one in load_classes(place)]
    given |= {"serving": serving_costs(places, AS_OF), "client_load": client_load or []}
    return gather(read, [], [], [], made.provenance() | given, AS_OF)
