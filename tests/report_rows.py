"""Rows made up for the report's tests, in results.py's schemas: a CPU run with a failure, two imported rates, a claim,
and on demand the cells of a training run on an H100.

Numbers are round, so that a test can compute what the page must show. Claim, definitions and statements are not those
of configs/claims on purpose: the report must read well for a claim no file describes.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from bench.price.throughput import throughput
from bench.report.material import Material, gather
from bench.report.page import Table, as_text
from bench.results import CELLS, CLAIMS, COSTS, append

AS_OF = datetime.date(2026, 11, 22)
RUN = "20261122T030000_smoke_cpu_deadbeef"
H100_RUN = "20261122T040000_training_h100_sxm_80gb_deadbeef"
CLAIM = "serving_passes_training"
DEFINITIONS = {"D1": 0.9, "D2": 0.56, "D3": 0.4, "D4": 0.6}  # share in 2030
RATES = (("rate_train", "train_step", "trained", 80000.0), ("rate_serve", "serve", "output", 40000.0))
PUBLISHED = [
    {
        **{"id": name, "phase": phase, "model": "llama_3_1_8b", "gpu": "h100_sxm_80gb", "n_gpus": "8"},
        **{
            "precision": "fp8",
            "token_kind": kind,
            "system_tokens_per_s": str(rate),
            "software": "a | pipe",
            "note": "",
        },
        **{"as_of": "2026-08", "source": "https://example.org/rates"},
    }
    for name, phase, kind, rate in RATES
]


def row(columns: dict[str, Any], **values: Any) -> dict[str, Any]:
    """A row with every column, blank where nothing is given."""
    assert set(values) <= set(columns), set(values) - set(columns)
    return {**dict.fromkeys(columns), **values}


def cell(name: str, phase: str, **values: Any) -> dict[str, Any]:
    """An ok CPU cell: 2 s a step, 1e12 FLOPs and 1e9 bytes a step, 1,000 tokens a step."""
    base = {
        **{"run": RUN, "cell": name, "suite": "smoke", "phase": phase, "model": "tiny_15m", "backend": "reference"},
        **{"workload": name.split("/")[1], "precision": "fp32", "device": "cpu", "gpu": "cpu", "n_gpus": 1},
        **{"device_name": "AMD EPYC", "status": "ok", "samples": 40, "step_s_median": 2.0, "step_s_last_third": 2.0},
        **{"flops_per_step": 1e12, "flops_per_step_unhalved": 1.2e12, "bytes_per_step": 1e9},
        **{"token_kind": "trained", "tokens_per_step": 1000, "system_tokens_per_s": 500.0},
        **{"system_tokens_per_s_low": 490.0, "system_tokens_per_s_high": 510.0},
    }
    return row(CELLS, **{**base, **values})


def trained(name: str, **values: Any) -> dict[str, Any]:
    """An ok training cell of 32 layers on one H100: 1 s a step, 8,192 tokens, half of 989.4 TFLOP/s, 40 GB, 700 J."""
    model, workload, backend = name.split("/")[:3]
    base = {
        **{"run": H100_RUN, "suite": "training", "model": model, "workload": workload, "backend": backend},
        **{"precision": "bf16", "device": "cuda", "gpu": "h100_sxm_80gb", "device_name": "NVIDIA H100 80GB HBM3"},
        **{"layers": 32, "layers_measured": 32, "batch_size": 1, "input_tokens": 8192, "tokens_per_step": 8192},
        **{"step_s_median": 1.0, "step_s_last_third": 1.0, "system_tokens_per_s": 8192.0},
        **{"system_tokens_per_s_low": 8100.0, "system_tokens_per_s_high": 8300.0, "peak_memory_bytes": 40 * 10**9},
        **{"flops_per_step": 0.5 * 989.4e12, "flops_per_step_unhalved": 0.6 * 989.4e12, "bytes_per_step": 1e12},
        **{"energy_joules_per_step": 700.0, "energy_source": "counter"},
    }
    return cell(name, str(values.pop("phase", "train_step")), **{**base, **values})


def sliced(name: str, layers: int, **values: Any) -> dict[str, Any]:
    """A slice of `trained`: every count and time is what it has of a line through 0.1 and 1 at 32 layers, no rate."""
    share = 0.1 + 0.9 * layers / 32
    whole = trained(name)
    sums = ("flops_per_step", "flops_per_step_unhalved", "bytes_per_step", "energy_joules_per_step")
    times = {"step_s_median": share, "step_s_last_third": share, "step_s_low": share, "step_s_high": share}
    rate = dict.fromkeys(("system_tokens_per_s", "system_tokens_per_s_low", "system_tokens_per_s_high"))
    less = {**times, **rate, **{column: share * whole[column] for column in sums}, "layers_measured": layers}
    return trained(name, **{**less, "cell": f"{name}/layers={layers}", **values})


def cells() -> list[dict[str, Any]]:
    """Two ceilings (2 TFLOP/s, 2 GB/s), a training step, a decode step, and one that failed."""
    none = {"token_kind": None, "tokens_per_step": None, "system_tokens_per_s": None}
    none |= {"system_tokens_per_s_low": None, "system_tokens_per_s_high": None}
    numbers = ("samples", "step_s_median", "step_s_last_third", "flops_per_step", "bytes_per_step")
    failed = dict.fromkeys((*numbers, "flops_per_step_unhalved"), None)
    return [
        cell("none/matmul_fp32/reference", "ceiling", **none, flops_per_step=4e12),
        cell("none/copy_256mib/reference", "ceiling", **none, flops_per_step=0.0, bytes_per_step=4e9),
        cell("tiny_15m/train_tiny/reference", "train_step", flags="unsteady"),
        cell("tiny_15m/decode_tiny/reference", "decode", token_kind="output", flops_per_step=1e9),
        cell("tiny_15m/decode_tiny/triton", "decode", **none, **failed, status="unavailable", reason="no | GPU"),
    ]


def costs() -> list[dict[str, Any]]:
    """Two rates under six GPU prices at three levels, one of them in three regions; one CPU row."""
    found = []
    offers = (
        *(
            ("azure", "retail", "on_demand", region, usd)
            for region, usd in (("east", 4.0), ("west", 5.0), ("north", 6.0))
        ),
        ("lambda", "retail", "on_demand", "any", 3.0),
        ("coreweave", "contract", "contract", "any", 2.0),
        ("stargate", "owner", "owned", "any", 1.5),
    )
    for rate, phase, kind, per_s in RATES:
        for provider, level, term, region, usd in offers:
            cost = usd * 8 * 1e6 / (3600 * per_s * 0.5)
            found.append(
                row(
                    COSTS,
                    **{
                        "x_row": f"published:{rate}",
                        "x_basis": "imported",
                        "x_phase": phase,
                        "x_model": "llama_3_1_8b",
                    },
                    **{"x_precision": "fp8", "x_gpu": "h100_sxm_80gb", "x_n_gpus": 8, "x_token_kind": kind},
                    **{"x_carries": "whole_bill", "x_system_tokens_per_s": per_s, "ProviderName": provider.title()},
                    **{"x_provider": provider, "RegionId": region, "SkuId": "sku", "x_term": term, "x_level": level},
                    **{"PricingUnit": "GPU-Hours", "x_usd_per_gpu_hour": usd, "x_gpu_count": 8, "x_utilisation": 0.5},
                    **{"x_usd_per_million_tokens": cost, "x_usd_per_million_tokens_whole_instance": cost},
                    **{"x_price_as_of": "2026-10-01", "x_price_source": f"https://example.org/{provider}"},
                )
            )
    cpu = row(
        COSTS,
        **{"x_row": f"{RUN}/tiny_15m/train_tiny/reference", "x_basis": "measured", "x_phase": "train_step"},
        **{"x_model": "tiny_15m", "x_gpu": "cpu", "x_n_gpus": 1, "x_token_kind": "trained", "x_carries": "whole_bill"},
        **{"ProviderName": "AWS", "x_provider": "aws", "SkuId": "c7i", "x_term": "on_demand", "x_level": "retail"},
        **{"PricingUnit": "vCPU-Hours", "x_usd_per_gpu_hour": 0.05, "x_usd_per_million_tokens": 0.0123},
        **{"x_illustrative": "yes", "x_price_as_of": "2026-07-20"},
        **{"x_price_source": "aws/karpenter-provider-aws@6fc13b5:pkg/pricing.go"},
    )
    return [*found, cpu]


def claims() -> list[dict[str, Any]]:
    """One claim, four definitions: verdicts, fans, break-evens, sensitivities, a flip; a printed table and a price."""
    found = []
    for key, share in DEFINITIONS.items():
        rests = {"rests_on": "published:rate_train;published:rate_serve"} if key in ("D1", "D2") else {}
        same = {
            "claim": CLAIM,
            "definition": key,
            "evidence": "E039;E041",
            "basis": "imported" if rests else "evidence",
        }
        chance = {"D1": 1.0, "D2": 0.66, "D3": 0.08, "D4": 0.84}[key]
        verdict = "holds" if chance >= 0.9 else "fails" if chance <= 0.1 else "undecided"
        ends = {"p10": share - 0.1, "p50": share, "p90": share + 0.09, "unit": "fraction"}
        about = {"subject": "leads_by_2030", "year": 2030, "threshold": 0.5, "probability": chance, "verdict": verdict}
        found.append(row(CLAIMS, kind="verdict", **same, **rests, **ends, **about))
        for year in range(2025, 2031):
            found.append(row(CLAIMS, kind="share", **same, **rests, **ends, year=year, subject="by purpose"))
        for name, swing in (("rd_growth_2028_2030", 0.2), ("serving_growth", 0.1)):
            moved = {"p10": 0.5 - swing, "p50": 0.5, "p90": 0.5 + swing, "unit": "probability", "year": 2030}
            moved["note"] = f"P with {name} at its p10 (0.9), as drawn, at its p90 (1.8)"
            found.append(row(CLAIMS, kind="sensitivity", **same, **moved, subject=f"leads_by_2030: {name}"))
        if rests:
            tips = {"p10": 5.0, "p50": 7.4, "p90": 12.0, "unit": "served tokens per trained token", "threshold": 3.0}
            about = {"subject": "llama_3_1_8b on h100_sxm_80gb, fp8 trained, fp8 served, chat"}
            found.append(row(CLAIMS, kind="break_even", **same, **rests, **tips, **about))
    flip = {"definition": "D1", "subject": "leads_by_2030: rd_growth", "note": "undecided with rd_growth below 0.975"}
    found.append(row(CLAIMS, claim=CLAIM, kind="flip", threshold=0.975, unit="x a year", year=2030, **flip))
    dollars = {"subject": "2027 dollars", "year": 2027, "p10": 6.5e10, "p50": 8.8e10, "p90": 1.1e11, "unit": "USD"}
    dollars |= {"threshold": 2e10, "probability": 0.0, "verdict": "fails", "basis": "evidence", "evidence": "E002"}
    found.append(row(CLAIMS, claim="printed_table", kind="printed", **dollars))
    words = {"subject": "2027 words", "year": 2027, "p10": 0.32, "p50": 0.45, "p90": 0.6, "unit": "fraction"}
    words |= {"threshold": 2 / 3, "probability": 0.03, "verdict": "fails", "basis": "evidence", "evidence": "E004"}
    for key in DEFINITIONS:
        found.append(row(CLAIMS, claim="printed_table", kind="printed", definition=key, **words))
    same = {"subject": "2027 dollars: same number", "year": 2027, "unit": "USD", "threshold": 2e10}
    found.append(row(CLAIMS, claim="printed_table", kind="finding", evidence="E002;E011", **same))
    price = {"subject": "cheaper", "definition": "contract", "p10": 0.8, "p50": 1.1, "p90": 1.3, "unit": "a / b"}
    price |= {"threshold": 1.0, "probability": 0.4, "verdict": "undecided", "basis": "evidence", "evidence": "E233"}
    price |= {"note": "a against b: only the cost of capital differs, drawn apart; proxy: b stands for c"}
    found.append(row(CLAIMS, claim="one_is_cheaper", kind="verdict", **price))
    return found


def provenance() -> dict[str, Any]:
    """Environment, a warning and the imported rates; evidence is configs/evidence.csv."""
    environment = {
        "started_at": "2026-11-22T03:00:00Z",
        "torch": "2.13.0+cpu",
        "git_commit": None,
        "plan": ["tiny_15m/train_tiny/compile"],
        "packages": {"a": "1"},
    }
    return {
        "environments": {RUN: environment},
        "warnings": ["3 of 4 prices are older than 90 days (spot: 14 days)"],
        "published": PUBLISHED,
    }


def ceiling(flops: float = 0.8 * 989.4e12, **values: Any) -> dict[str, Any]:
    """A matmul that reached four fifths of the data sheet's bf16 peak in the training run."""
    none = {"token_kind": None, "tokens_per_step": None, "system_tokens_per_s": None, "layers_measured": None}
    return {**trained("none/matmul_bf16_8192/reference", phase="ceiling", **none, flops_per_step=flops), **values}


def measured(cells: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """The throughput rows that bench.price.throughput makes of cells, by way of run folders."""
    rows = []
    for run in sorted({cell["run"] for cell in cells}):
        (folder / run).mkdir()
        append(folder / run / "cells.csv", CELLS, [cell for cell in cells if cell["run"] == run])
        (folder / run / "environment.json").write_text("{}")
        rows += [row for row in throughput([folder / run]) if row["basis"] == "measured"]
    return rows


def material(*cells: dict[str, Any], costs: Any = (), published: Any = (), folder: Path | None = None) -> Material:
    """What a report is made from: these cells and, where there is a folder to write runs into, their rates."""
    rates = measured(list(cells), folder) if folder else []
    return gather(list(cells), list(costs), [], rates, provenance() | {"published": list(published)}, AS_OF)


def words(cell: Any) -> str:
    """A cell, or a run of words and links, as plain text."""
    return "".join(part if isinstance(part, str) else part.text for part in as_text(cell))


def shown(table: Table) -> list[dict[str, str]]:
    """A table's rows by column, as plain text."""
    return [dict(zip(table.names, map(words, row.cells), strict=True)) for row in table.rows]
