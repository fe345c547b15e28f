"""InferenceX: rows of its API (`/api/v1/benchmarks`) and the aggregate JSON its runs write (`agg_*.json`).

Rates are per GPU: `tput_per_gpu` = (input + output) tokens/s over all GPUs. Of a disaggregated deployment
`output_tput_per_gpu` divides by the decode GPUs alone and `input_tput_per_gpu` by the prefill GPUs alone, so

    output tokens/s = output_tput_per_gpu * decode GPUs,   and   tput * all = input * prefill + output * decode

A row that breaks the second line by more than 1% has wrong GPU counts (artifacts before 2025-12-19 wrote tp * ep, up
to 64 for a box of 8) and is left out. Elsewhere GPUs are tp * pp * pcp, never num_decode_gpu. Times are s already.
`*_intvty` is no rate of its own and `std_intvty` means nothing: neither is read. Agentic rows count cached prompt
tokens as input, so only their output is taken.
"""

from __future__ import annotations

from bench.importers.document import Document, Record
from bench.importers.landing import Given, Row, Sheet

NAME = "inferencex"
ABOUT = "InferenceX API rows or agg_*.json"
GIVES = "a load point a row: output tokens/s, TTFT, TPOT, energy of the GPUs"
SLACK = 0.01


def sniff(document: Document) -> bool:
    """Rows with `hardware` and `metrics` (API), or with `hw` and `tput_per_gpu` (aggregate)."""
    rows = document.objects
    api = [row for row in rows if "hardware" in row and isinstance(row.get("metrics"), dict)]
    aggregate = [row for row in rows if {"hw", "tput_per_gpu"} <= set(row)]
    return bool(rows) and len(rows) in (len(api), len(aggregate))


def read(document: Document, given: Given) -> Sheet:
    """A row for each load point."""
    sheet = Sheet()
    for number, record in enumerate(document.records):
        made = _row(record)
        if isinstance(made, str):
            sheet.left_out[made] += 1
        else:
            sheet.rows.append(made | {"record": f"[{number}]"})
    return sheet


def _row(record: Record) -> Row | str:
    """A row, or why there is none."""
    api = "metrics" in record.fields
    m = record.part("metrics") if api else record
    if not m.number("tput_per_gpu"):
        return "without a rate"
    split = bool(record.truth("disagg"))
    prefill, decode = _gpus(record, m, split)
    if not prefill + decode:
        return "without a number of GPUs"
    out, into, total = m.number("output_tput_per_gpu"), m.number("input_tput_per_gpu"), m.positive("tput_per_gpu")
    gpus = prefill + decode
    if split and not decode:  # nothing decodes apart: the tool divided by all GPUs
        prefill, decode = gpus, gpus
    elif not split:
        prefill = decode = gpus
    if out and into and abs((into * prefill + out * decode) / gpus / total - 1) > SLACK:
        return "whose GPU counts contradict its rates"
    agentic = record.count("isl") is None or record.count("osl") is None
    if agentic and not out:
        return "agentic, without a rate of output"
    kind, rate = ("output", out * decode) if out else ("total", total * gpus)
    power = m.number("power_valid") != 0
    joules = m.number("joules_per_output_token" if out else "joules_per_total_token") if power else None
    return {
        "phase": "serve",
        "token_kind": kind,
        "system_tokens_per_s": rate,
        "n_gpus": gpus,
        "gpu_name": _hardware(record, api),
        "model_name": record.text("model"),
        "precision_name": record.text("precision"),
        "input_tokens": record.number("isl"),
        "output_tokens": record.number("osl"),
        "workload": _workload(record, split, agentic),
        "software": " ".join(filter(None, (record.text("framework"), record.text("image")))) or None,
        "as_of": record.text("date"),
        "source": record.text("run_url"),
        "concurrency": record.number("conc") or record.number("users"),
        "ttft_s_p50": m.number("median_ttft"),
        "ttft_s_p99": m.number("p99_ttft"),
        "tpot_s_p50": m.number("median_tpot"),
        "tpot_s_p99": m.number("p99_tpot"),
        "e2e_s_p50": m.number("median_e2el"),
        "e2e_s_p99": m.number("p99_e2el"),
        "energy_joules_per_token": joules,
        "energy_boundary": "gpu" if joules is not None else None,
        "note": _note(kind, gpus, decode, split, agentic),
    }


def _gpus(record: Record, m: Record, split: bool) -> tuple[int, int]:
    """Prefill and decode GPUs; one engine: none and all."""
    if split:
        return record.count("num_prefill_gpu") or 0, record.count("num_decode_gpu") or 0
    tensor = record.count("decode_tp") or record.count("tp") or record.count("prefill_tp") or 0
    pipeline = m.count("pp") or m.count("decode_pp") or m.count("prefill_pp") or 1
    return 0, tensor * pipeline * (m.count("pcp_size") or m.count("decode_pcp_size") or 1)


def _hardware(record: Record, api: bool) -> str | None:
    """The GPU; both, where prefill and decode run on different ones."""
    two = (record.text("prefill_hw"), record.text("decode_hw"))
    if two[0] and two[1] and two[0] != two[1]:
        return f"{two[0]} prefill, {two[1]} decode"
    return record.text("hardware" if api else "hw")


def _workload(record: Record, split: bool, agentic: bool) -> str:
    what = "agentic traces" if agentic else f"{record.count('isl')} in, {record.count('osl')} out"
    parts = [f"InferenceX {what}"]
    spec = record.text("spec_method") or record.text("spec_decoding")
    parts += [f"speculative decoding {spec}"] * (spec not in (None, "none"))
    if split:
        sides = [
            f"{side} {record.count(f'{side}_num_workers') or 0} x tp{record.count(f'{side}_tp') or 0}"
            f" ep{record.count(f'{side}_ep') or 0}"
            for side in ("prefill", "decode")
        ]
        parts.append(f"disaggregated: {', '.join(sides)}")
    else:
        tensor = record.count("decode_tp") or record.count("tp") or 0
        parts.append(f"tp{tensor} ep{record.count('decode_ep') or record.count('ep') or 1}")
    return ", ".join(parts)


def _note(kind: str, gpus: int, decode: int, split: bool, agentic: bool) -> str:
    apart = split and kind == "output" and decode != gpus
    notes = [
        f"converted: {kind} per decode GPU times {decode} of {gpus}"
        if apart
        else f"converted: {kind} per GPU times {gpus}"
    ]
    notes += ["prompts partly from cache, not counted"] * agentic
    notes += ["lengths: nominal"] * (not agentic)
    return "; ".join(notes)
