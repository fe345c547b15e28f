"""SGLang's benchmarks, JSON lines: `bench_serving` / `benchmark.serving`, and `bench_one_batch` (`_server`).

A serving line is like vLLM's: ms, whole server, whole run; `total_output_tokens` is what the server counted, not the
`_retokenized` twin. A one-batch line times a single batch, in s. Trap: its `output_throughput` divides by the time
of decoding alone and `input_throughput` by that of prefill alone, as if each had the machine to itself; the bill is
`overall_throughput`, (input + output) tokens over the whole time, which is what is taken. The table that tool prints
multiplies a price per GPU by the number of GPUs; no price is read here. Neither line names model or machine.
"""

from __future__ import annotations

from bench.importers.document import Document, Record
from bench.importers.landing import Given, Row, Sheet
from bench.importers.vllm import WHOLE_RUN, offered, refusal

NAME = "sglang"
ABOUT = "SGLang bench_serving or bench_one_batch JSON lines"
GIVES = "a load point, or a batch, a line: tokens/s, TTFT, TPOT"
SERVING = {"backend", "completed", "total_output_tokens", "output_throughput", "median_e2e_latency_ms"}
BATCH = {"run_name", "batch_size", "input_len", "output_len", "overall_throughput"}
MS = 1e-3


def sniff(document: Document) -> bool:
    """Lines with the keys of either tool."""
    rows = document.objects
    return bool(rows) and all((set(row) >= SERVING and "num_prompts" not in row) or set(row) >= BATCH for row in rows)


def read(document: Document, given: Given) -> Sheet:
    """A row for each line."""
    sheet = Sheet()
    for number, record in enumerate(document.records):
        batch = "overall_throughput" in record.fields and "batch_size" in record.fields
        reason = _batch_refusal(record) if batch else refusal(record)
        if reason:
            sheet.left_out[reason] += 1
        else:
            sheet.rows.append((_batch(record) if batch else _serving(record)) | {"record": f"[{number}]"})
    return sheet


def _serving(record: Record) -> Row:
    completed = record.positive("completed")
    rate = offered(record)
    inputs, outputs = (record.number(f"total_{name}_tokens") for name in ("input", "output"))
    dataset = record.text("dataset_name")
    return {
        "phase": "serve",
        "token_kind": "output",
        "system_tokens_per_s": record.positive("output_throughput"),
        "model_name": record.part("server_info").text("model_path"),
        "input_tokens": inputs and inputs / completed,
        "output_tokens": outputs and outputs / completed,
        "workload": "SGLang bench_serving" + (f", dataset {dataset}" if dataset else ""),
        "concurrency": record.number("max_concurrency") or record.number("concurrency"),
        "rate_per_s": rate,
        "requests_per_s": record.number("request_throughput"),
        "ttft_s_p50": record.number("median_ttft_ms", MS),
        "ttft_s_p99": record.number("p99_ttft_ms", MS),
        "tpot_s_p50": record.number("median_tpot_ms", MS),
        "tpot_s_p99": record.number("p99_tpot_ms", MS),
        "e2e_s_p50": record.number("median_e2e_latency_ms", MS),
        "e2e_s_p99": record.number("p99_e2e_latency_ms", MS),
        "flags": "open_loop" if rate is not None else None,
        "note": WHOLE_RUN,
    }


def _batch_refusal(record: Record) -> str | None:
    sizes = [record.number(name) for name in ("batch_size", "input_len", "output_len")]
    if not all(sizes) or not record.number("overall_throughput"):
        return "without sizes and a rate"
    return None


def _batch(record: Record) -> Row:
    inputs, outputs, size = (record.positive(k) for k in ("input_len", "output_len", "batch_size"))
    return {
        "phase": "serve",
        "token_kind": "total",
        "system_tokens_per_s": record.positive("overall_throughput"),
        "input_tokens": inputs,
        "output_tokens": outputs,
        "workload": f"SGLang one batch, {inputs:.0f} in, {outputs:.0f} out",
        "concurrency": size,
        "ttft_s_p50": record.number("last_ttft") or record.number("prefill_latency"),
        "tpot_s_p50": record.number("median_decode_latency"),
        "e2e_s_p50": record.number("latency") or record.number("total_latency"),
        "note": "input and output tokens over prefill and decode together; TTFT: of the batch's last request",
    }
