"""The ML.ENERGY leaderboard: a model's file (`public/data/models/*.json`) or a task's (`public/data/tasks/*.json`).

A configuration is one batch limit on one kind of GPU. `output_throughput_tokens_per_sec` and `avg_power_watts` are of
all GPUs together, so `energy_per_token_joules` (their ratio) is too: neither is multiplied by `num_gpus`. The median
inter-token latency stands for TPOT. Configurations that make images or video have no tokens. The file has no date,
no prompt lengths and no software.
"""

from __future__ import annotations

from bench.importers.document import Document, Record
from bench.importers.landing import Given, Row, Sheet

NAME = "mlenergy"
ABOUT = "ML.ENERGY leaderboard JSON of a model or a task"
GIVES = "a batch limit a row: output tokens/s, time per token, energy of the GPUs"
SLACK = 0.02
MS = 1e-3


def sniff(document: Document) -> bool:
    """A list of configurations, each on a GPU with a batch."""
    found = document.object.get("configurations")
    return isinstance(found, list) and bool(found) and all(isinstance(c, dict) and "gpu_model" in c for c in found)


def read(document: Document, given: Given) -> Sheet:
    """A row for each configuration that makes tokens."""
    sheet = Sheet()
    whole = document.record
    for number, record in enumerate(whole.parts("configurations")):
        rate = record.number("output_throughput_tokens_per_sec")
        if rate:
            sheet.rows.append(_row(whole, record, rate) | {"record": f"configurations[{number}]"})
        else:
            sheet.left_out["without a rate of tokens"] += 1
    return sheet


def _row(whole: Record, record: Record, rate: float) -> Row:
    watts, joules = record.number("avg_power_watts"), record.number("energy_per_token_joules")
    agrees = watts is None or joules is None or abs(watts / rate - joules) <= SLACK * joules
    task = whole.text("task") or "task not told"
    limit = record.count("max_num_seqs")
    spread = record.part("parallelization") if "parallelization" in record.fields else record
    parallel = [f"{short}{spread.count(f'{name}_parallel') or 1}" for name, short in _PARALLEL.items()]
    notes = [f"at most {limit} sequences", "time per token: between tokens, median"]
    notes += [] if agrees else ["energy left blank: it contradicts power over rate"]
    return {
        "phase": "serve",
        "token_kind": "output",
        "system_tokens_per_s": rate,
        "n_gpus": record.count("num_gpus"),
        "gpu_name": record.text("gpu_model"),
        "model_name": record.text("model_id") or whole.text("model_id"),
        "precision_name": record.text("weight_precision") or whole.text("weight_precision"),
        "output_tokens": record.number("avg_output_len"),
        "workload": f"ML.ENERGY {task}, {' '.join(parallel)}",
        "concurrency": record.number("avg_batch_size"),
        "tpot_s_p50": record.number("median_itl_ms", MS),
        "tpot_s_p99": record.number("p99_itl_ms", MS),
        "energy_joules_per_token": joules if agrees else None,
        "energy_boundary": "gpu" if agrees and joules is not None else None,
        "note": "; ".join(notes),
    }


_PARALLEL = {"tensor": "tp", "expert": "ep", "data": "dp"}
