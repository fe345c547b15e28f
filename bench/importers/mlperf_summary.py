"""MLPerf inference, `summary_results.json` of a round (mlcommons/inference_results_v5.1 and later).

`Performance_Result` in Tokens/s is OUTPUT tokens a second of the whole system. Traps: rows in samples, queries or ms
are no token rates (v5.1 even labels llama3.1-8b Interactive "Queries/s" over a number of tokens/s, so a label is
never converted by guess); `a#` is accelerators of one node, `Total Accelerators` their product, and "(x94)" in the
accelerator's name the true number of a cluster; power is watts of the whole system at the wall. Rows with
`inferred` repeat another row's measurement. The closed division runs the benchmark's own model, the open one what
`UsedModel` says. Server and Interactive are open loop (Poisson arrivals): their rate holds idle time.

Mean prompt lengths are not in the file; they are those of the benchmarks' datasets.
"""

from __future__ import annotations

import re

from bench.import_results import VERIFIED
from bench.importers.document import Document, Record
from bench.importers.landing import Given, Row, Sheet

NAME = "mlperf_summary"
ABOUT = "MLPerf inference summary_results.json"
GIVES = "output tokens/s of a system by model and scenario, wall power"
OPEN_LOOP = ("Server", "Interactive")
# Mean tokens in of each benchmark's dataset, computed from the datasets themselves:
# openshift-psap/performance-dashboard@71007029, mlperf-data/summaries/*.csv.
DATASET_INPUT = {
    "deepseek-r1": 803.791,
    "llama2-70b-99": 222.33,
    "llama2-70b-99.9": 222.33,
    "llama3.1-405b": 9428.64,
    "llama3.1-8b": 870.73,
    "mixtral-8x7b": 427.394,
}
FIXED_OUTPUT = {"llama3.1-8b": 128.0}  # the reference generates 128 tokens a sample (logs: 128.0 to 129.0)
_COUNT = re.compile(r"\(x(\d{1,6})\)")
_TOKENS = re.compile(r"TOKENS_PER_SAMPLE:\s*(\d{1,7}(?:\.\d{1,20})?)")


def sniff(document: Document) -> bool:
    """A list of results with MLPerf's column names."""
    rows = document.objects
    return bool(rows) and all({"Performance_Units", "Scenario", "Accelerator"} <= set(row) for row in rows)


def read(document: Document, given: Given) -> Sheet:
    """A row for each result in tokens/s that was measured."""
    sheet = Sheet()
    for record in document.records:
        reason = _refusal(record)
        if reason:
            sheet.left_out[reason] += 1
        else:
            sheet.rows.append(_row(record))
    return sheet


def _refusal(record: Record) -> str | None:
    units = record.text("Performance_Units")
    if units != "Tokens/s":
        return f"in {units}, no rate of tokens"
    if record.number("inferred"):
        return "inferred from another result"
    if not record.text("Accelerator"):
        return "without an accelerator"
    return None


def _row(record: Record) -> Row:
    rate, scenario = record.positive("Performance_Result"), record.text("Scenario") or ""
    benchmark, division = record.text("Model") or "", record.text("Category")
    accelerator = record.text("Accelerator") or ""
    tokens = _TOKENS.search(record.text("Accuracy") or "")
    watts = record.number("Power_Result") if record.text("Power_Units") == "Watts" else None
    notes = [VERIFIED, f"result {record.text('ID')}", "per system"]
    if benchmark in DATASET_INPUT:
        notes.append("input: mean of the benchmark's dataset")
    if tokens:
        notes.append("output: mean of the accuracy run")
    elif benchmark in FIXED_OUTPUT:
        notes.append("output: fixed by the benchmark")
    if watts:
        notes.append(f"energy: {watts:.6g} W at the wall over the rate")
    return {
        "phase": "serve",
        "token_kind": "output",
        "system_tokens_per_s": rate,
        "n_gpus": _accelerators(record, accelerator),
        "gpu_name": accelerator,
        "model_name": (record.text("UsedModel") if division == "open" else None) or benchmark,
        "precision_name": record.text("weight_data_types"),
        "input_tokens": DATASET_INPUT.get(benchmark),
        "output_tokens": float(tokens[1]) if tokens else FIXED_OUTPUT.get(benchmark),
        "workload": f"MLPerf inference {record.text('version')} {benchmark} {scenario}, {division}, "
        f"{record.text('Submitter')}, {record.text('Platform')}",
        "software": record.text("Software"),
        "as_of": record.text("version"),
        "source": record.text("Details"),
        "flags": "open_loop" if scenario in OPEN_LOOP else None,
        "energy_joules_per_token": watts / rate if watts else None,
        "energy_boundary": "node" if watts else None,
        "record": "/".join(filter(None, (record.text("ID"), benchmark, scenario))),
        "note": "; ".join(notes),
    }


def _accelerators(record: Record, name: str) -> int | None:
    """Accelerators of the whole system."""
    counts = [int(found) for found in _COUNT.findall(name)]
    if counts:
        return sum(counts)
    total = record.count("Total Accelerators")
    each, nodes = record.count("a#") if record.fields.get("a#") != "" else None, record.count("Nodes")
    return total or ((each or 0) * (nodes or 0)) or None
