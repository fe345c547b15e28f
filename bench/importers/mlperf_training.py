"""MLPerf training, `result_<n>.txt`: the MLLOG of one training run.

The score of MLPerf training is minutes to a target, which says nothing of tokens. The rate is:

    tokens/s = global_batch_size * max_sequence_length / step time

global_batch_size counts sequences of the whole system a step, accumulation already in it. Step time is the median of
the logged `train_step_time` (s) where the log has them, else the time of the blocks between evaluations over their
steps, told by `step` or by a `samples_count` that grows from a block's start to its end (NVIDIA's does not grow: it is
the block's size). Both are compared: more than 10% apart, the blocks stand, for their unit is the log's own clock.
A run that did not end in `status: success` counts as infinitely slow in MLPerf and is left out here. The log names no
machine: the user says which GPU and how many, and the precision. Published scores (`summary.json`) are recognised and
refused.
"""

from __future__ import annotations

import datetime
import json
import statistics
from collections.abc import Sequence
from typing import Any

from bench.import_results import VERIFIED
from bench.importers.document import LONGEST, Document, Record, Refused
from bench.importers.landing import Given, Row, Sheet

NAME = "mlperf_training"
ABOUT = "MLPerf training result_<n>.txt (MLLOG)"
GIVES = "tokens trained a second in one run"
MARK = ":::MLLOG "
MS = 1e-3
APART = 0.1
LORA_RANK = 16  # of benchmark llama2_70b_lora, by the reference and the rules


def sniff(document: Document) -> bool:
    """MLLOG lines, or a submitter's published scores."""
    scores = document.objects and all({"submitter", "accelerators_count"} <= set(row) for row in document.objects)
    return MARK in document.text if not document.values else bool(scores)


def read(document: Document, given: Given) -> Sheet:
    """One row, or none where the run does not count."""
    if document.values:
        raise Refused(
            f"{document.path}: scores in minutes to a target, no rate of tokens; expected the runs' result_<n>.txt"
        )
    events = _events(document)
    values = {event.text("key"): event for event in events}
    for key in ("run_start", "run_stop"):
        found = sum(event.text("key") == key for event in events)
        if found != 1:
            raise Refused(f"{document.path}: {key}: expected one, got {found}: a whole log of one run")
    sheet = Sheet()
    status = values["run_stop"].part("metadata").text("status")
    if status != "success":
        sheet.left_out[f"run with status {status}, not success: infinite in MLPerf's score"] += 1
        return sheet
    sheet.rows.append(_row(document, events, values, given))
    return sheet


def _events(document: Document) -> list[Record]:
    found = []
    for number, line in enumerate(document.text.splitlines(), start=1):
        _, mark, body = line.partition(MARK)
        if not mark:
            continue
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise Refused(f"{document.path}: line {number}: no JSON object after {MARK.strip()}: cut off?")
        found.append(Record(f"{document.path}: line {number}", value))
    return found


def _row(document: Document, events: Sequence[Record], values: dict[str | None, Record], given: Given) -> Row:
    def value(key: str) -> Any:
        return values[key].number("value") if key in values else None

    named = values["submission_benchmark"].text("value") if "submission_benchmark" in values else None
    batch, length = value("global_batch_size"), value("max_sequence_length")
    if not batch:
        raise Refused(f"{document.path}: global_batch_size: missing; expected sequences a step, whole system")
    if not (length or given.input_tokens):
        raise Refused(
            f"{document.path}: max_sequence_length: missing; give --input-tokens, the tokens of a sequence"
            f" ({named or 'this benchmark'} may train no tokens at all)"
        )
    step_s, how = _step_s(document, events, batch)
    minutes = (values["run_stop"].positive("time_ms") - values["run_start"].positive("time_ms")) * MS / 60
    return {
        "phase": "train_step",
        "token_kind": "trained",
        "system_tokens_per_s": batch * (length or given.input_tokens) / step_s,
        "input_tokens": length,
        "model_name": named,
        "workload": f"MLPerf training {(named or '')[:LONGEST]}, global batch {batch:.0f}",
        "as_of": _date(values["run_start"]),
        "lora_rank": LORA_RANK if named and named.endswith("_lora") else None,
        "record": "run",
        "note": f"{VERIFIED}; {batch:.0f} sequences of {length or given.input_tokens:.0f} / {how};"
        f" {minutes:.4g} minutes to the target",
    }


def _date(event: Record) -> str | None:
    """The day of an event, UTC; MLLOG's clock is ms since 1970."""
    try:
        return datetime.datetime.fromtimestamp(event.positive("time_ms") * MS, datetime.UTC).date().isoformat()
    except (OverflowError, OSError, ValueError):
        raise event.refused("time_ms", "ms since 1970") from None


def _step_s(document: Document, events: Sequence[Record], batch: float) -> tuple[float, str]:
    """Time of a step in s, and how it came."""
    steps = [
        step
        for event in events
        if event.text("key") == "tracked_stats"
        if (step := event.part("value").number("train_step_time"))
    ]
    blocks = _block_step_s(events, batch)
    tracked = statistics.median(steps) if steps else None
    if tracked is not None and (blocks is None or abs(tracked / blocks - 1) <= APART):
        return tracked, f"median train step {tracked:.6g} s ({len(steps)} logged)"
    if blocks is None:
        raise Refused(
            f"{document.path}: no train_step_time and no block_start/block_stop with steps: no time of a step"
        )
    return blocks, f"{blocks:.6g} s a step in the blocks between evaluations"


def _block_step_s(events: Sequence[Record], batch: float) -> float | None:
    """Time in blocks of training over the steps in them; None where no block tells its steps."""
    spent = steps = 0.0
    start: Record | None = None
    for event in events:
        key = event.text("key")
        if key == "block_start":
            start = event
        elif key == "block_stop" and start is not None:
            done = _grown(start, event, "step") or _grown(start, event, "samples_count") / batch
            if done:
                steps, spent = steps + done, spent + (event.positive("time_ms") - start.positive("time_ms")) * MS
            start = None
    return spent / steps if steps and spent > 0 else None


def _grown(start: Record, stop: Record, name: str) -> float:
    """How far a count went in a block; 0 where it is not told or did not grow."""
    before, after = start.part("metadata").number(name), stop.part("metadata").number(name)
    return max(after - before, 0.0) if before is not None and after is not None else 0.0
