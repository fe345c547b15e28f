"""Samples of MLPerf's files: its schemas, numbers made up for these tests."""

import json

SUMMARY = {
    "ID": "9.9-0001",
    "Submitter": "Nobody",
    "Category": "closed",
    "Suite": "datacenter",
    "Platform": "box_x8",
    "UsedModel": "llama3.1-405b",
    "Model": "llama3.1-405b",
    "Scenario": "Offline",
    "Accuracy": "ROUGEL: 20.0 exact_match: 90.0 TOKENS_PER_SAMPLE: 650.0",
    "Nodes": 2,
    "Accelerator": "NVIDIA B200-SXM-180GB",
    "a#": 8,
    "Software": "Engine 1.0",
    "version": "v9.9",
    "inferred": 0,
    "weight_data_types": "fp4",
    "Details": "https://example.org/results/box_x8",
    "Power_Result": 20000.0,
    "Power_Units": "Watts",
    "Performance_Result": 4000.0,
    "Performance_Units": "Tokens/s",
}
LOG = """\
================================================
MLPerf Results Summary
================================================
SUT name : PySUT
Scenario : {scenario}
Mode     : PerformanceOnly
{served}amples per second{pad}: 10.00
{tokens}okens per second: 2500.00
Result is : VALID
  Min queries satisfied : Yes
50.00 percentile latency (ns)           : 20000000000
50.00 percentile first token latency (ns)   : 250000000
99.00 percentile first token latency (ns)   : 400000000
50.00 percentile time to output token (ns)   : 120000000

No warnings encountered during test.

No errors encountered during test.
"""


def mllog(status="success", step_s=0.5, unit=1.0, tracked=True, growing=False, length=8192, batch=16):
    """An MLLOG of two blocks of 100 steps, an evaluation of 60 s between them; `unit`: of the logged step times."""
    lines, now = [], 1_760_000_000_000

    def log(key, value=None, after_s=0.0, **metadata):
        nonlocal now
        now += int(after_s * 1000)
        event = {"time_ms": now, "event_type": "POINT_IN_TIME", "key": key, "value": value, "metadata": metadata}
        lines.append(f":::MLLOG {json.dumps(event)}")

    log("submission_benchmark", "llama31_8b")
    log("global_batch_size", batch)
    log("gradient_accumulation_steps", 4)
    if length:
        log("max_sequence_length", length)
    log("run_start")
    for block in (0, 1):
        first = block * 100

        def counts(step):
            return {"samples_count": step * batch} if growing else {"samples_count": 100 * batch, "step": step}

        log("block_start", **counts(first))
        if tracked:
            log("tracked_stats", {"train_step_time": step_s * unit})
        log("block_stop", after_s=100 * step_s, **counts(first + 100))
        log("eval_accuracy", 3.5, after_s=60.0)
    log("run_stop", status=status)
    return "\n".join(lines) + "\n"


def loadgen(scenario="Offline"):
    """A summary of LoadGen: 10 samples and 2,500 tokens a second."""
    served = {"served": "Completed s", "tokens": "Completed t", "pad": "    "}
    plain = {"served": "S", "tokens": "T", "pad": ""}
    return LOG.format(scenario=scenario, **(plain if scenario == "Offline" else served))
