"""The traps of other tools' units: each test fails if its format is read the easy, wrong way. Numbers are made up."""

import json

import pytest

from bench.importers import landing
from bench.importers.document import Document, Refused
from tests.import_samples import (
    AIPERF,
    AIPERF_AGGREGATE,
    API_ROW,
    BATCH,
    ENERGY,
    GUIDELLM,
    GUIDELLM_02,
    KERNELS,
    PERF,
    SAMPLES,
    SGLANG,
    SPLIT,
    VLLM,
    written,
)


@pytest.fixture
def read(tmp_path):
    """Writes a sample and reads it by its format: the sheet, before keys and options are settled."""

    def sheet(content, **given):
        path = tmp_path / "sample"
        path.write_text(written(content))
        document = Document.of(path)
        return landing.recognise(document, None).read(document, landing.Given(**given))

    return sheet


@pytest.fixture
def row(read):
    """The one row of a sample."""

    def only(content, **given):
        (found,) = read(content, **given).rows
        return found

    return only


# ---------------------------------------------------------------- InferenceX


def test_inferencex_rates_are_per_gpu_and_its_headline_counts_prompts(row):
    made = row([API_ROW])
    assert made["token_kind"] == "output" and made["n_gpus"] == 8  # tp, not num_decode_gpu = 64
    assert made["system_tokens_per_s"] == pytest.approx(990.0 * 8)  # not tput_per_gpu, which is 2,000
    assert made["ttft_s_p50"] == 0.2 and made["tpot_s_p50"] == 0.01  # seconds already
    assert made["energy_joules_per_token"] == 0.5 and made["energy_boundary"] == "gpu"
    assert (made["as_of"], made["source"], made["concurrency"]) == ("2026-06-11", "https://example.org/runs/1", 64)


def test_inferencex_disaggregated_output_is_divided_by_decode_gpus_alone(row):
    made = row([SPLIT])
    assert made["n_gpus"] == 16 and made["system_tokens_per_s"] == pytest.approx(750.0 * 12)  # not 750 * 16
    assert "prefill 1 x tp8 ep8, decode 3 x tp8 ep8" in made["workload"]


def test_inferencex_gpu_counts_that_contradict_the_rates_are_left_out(read):
    wrong = SPLIT | {"num_prefill_gpu": 64, "num_decode_gpu": 64}
    sheet = read([SPLIT, wrong])
    assert len(sheet.rows) == 1 and sheet.left_out == {"whose GPU counts contradict its rates": 1}


def test_inferencex_pipeline_stages_count_and_invalid_power_does_not(row):
    made = row(SAMPLES["inferencex_agg"][2])
    assert made["n_gpus"] == 8 and made["system_tokens_per_s"] == pytest.approx(990.0 * 8)  # tp 4, pp 2
    assert made["energy_joules_per_token"] is None and made["as_of"] is None


def test_inferencex_agentic_rows_give_output_alone(read):
    agentic = API_ROW | {"isl": None, "osl": None}
    total_only = agentic | {"metrics": {"tput_per_gpu": 50_000.0}}
    sheet = read([agentic, total_only])
    assert [r["token_kind"] for r in sheet.rows] == ["output"] and sheet.rows[0]["input_tokens"] is None
    assert sheet.left_out == {"agentic, without a rate of output": 1}
    plain = API_ROW | {"metrics": {"tput_per_gpu": 500.0}}
    assert [(r["token_kind"], r["system_tokens_per_s"]) for r in read([plain]).rows] == [("total", 4000.0)]


# ---------------------------------------------------------------- vLLM and SGLang


def test_vllm_output_is_not_total_and_users_are_not_the_peak(row):
    made = row(VLLM)
    assert made["system_tokens_per_s"] == 2000.0  # not 7,000, prompts in it
    assert made["concurrency"] == 16  # not 40
    assert (made["input_tokens"], made["output_tokens"]) == (500.0, 200.0)
    assert (made["ttft_s_p50"], made["tpot_s_p50"], made["e2e_s_p50"]) == pytest.approx((0.05, 0.008, 1.6))
    assert made["as_of"] == "2026-11-22" and made["rate_per_s"] is None and made["flags"] is None


def test_vllm_goodput_is_found_with_and_without_its_colon(row):
    new = {key: value for key, value in VLLM.items() if key != "request_goodput:"} | {"request_goodput": 6.0}
    assert (row(VLLM)["goodput_per_s"], row(new)["goodput_per_s"]) == (7.5, 6.0)
    assert row(VLLM | {"request_goodput:": None})["goodput_per_s"] is None


def test_vllm_seconds_are_not_taken_for_milliseconds(row):
    names = ("median_ttft", "p99_ttft", "median_tpot", "median_e2el")
    seconds = {key: value for key, value in VLLM.items() if key.removesuffix("_ms") not in names}
    made = row(seconds | {"median_ttft": 4.1, "median_tpot": 0.017})
    assert (made["ttft_s_p50"], made["tpot_s_p50"]) == (4.1, 0.017)


def test_vllm_rates_offered_make_an_open_loop_and_failures_show(row):
    made = row(VLLM | {"request_rate": 5.0, "failed": 3})
    assert made["rate_per_s"] == 5.0 and made["flags"] == "open_loop+failed_requests"
    assert row(VLLM | {"request_rate": "2.5"})["rate_per_s"] == 2.5


def test_a_rate_that_its_own_tokens_contradict_is_left_out(read):
    sheet = read(f"{json.dumps(VLLM)}\n{json.dumps(VLLM | {'output_throughput': 2100.0})}\n")
    assert len(sheet.rows) == 1 and sheet.rows[0]["record"] == "[0]"
    assert sheet.left_out == {"whose output_throughput contradicts its tokens and duration": 1}


def test_sglang_serving_counts_the_servers_tokens_in_ms(row):
    made = row(json.dumps(SGLANG))
    assert made["system_tokens_per_s"] == 1000.0 and made["token_kind"] == "output"
    assert (made["input_tokens"], made["output_tokens"]) == (1000.0, 200.0)  # not the 180 retokenized
    assert made["tpot_s_p50"] == pytest.approx(0.009) and made["rate_per_s"] is None  # Infinity: closed loop


def test_sglang_one_batch_is_billed_for_prefill_and_decode_together(row):
    made = row(json.dumps(BATCH))
    assert (made["token_kind"], made["system_tokens_per_s"]) == ("total", 10_240.0)  # not 2,560, decode alone
    assert (made["concurrency"], made["ttft_s_p50"], made["e2e_s_p50"]) == (16, 0.4, 2.0)


# ---------------------------------------------------------------- AIPerf


def test_aiperf_units_stand_beside_the_numbers(row, read):
    made = row(AIPERF)
    assert (made["ttft_s_p50"], made["tpot_s_p50"], made["e2e_s_p99"]) == pytest.approx((0.045, 0.0085, 1.2))
    in_s = AIPERF | {"time_to_first_token": {"unit": "s", "p50": 0.045, "p99": 0.1}}
    assert row(in_s)["ttft_s_p50"] == 0.045
    with pytest.raises(Refused, match=r"time_to_first_token.unit: expected one of ms, .* got 'fortnight'"):
        read(AIPERF | {"time_to_first_token": {"unit": "fortnight", "p50": 0.045}})
    assert made["concurrency"] == 8 and made["flags"] is None  # the profiling phase, not the warm-up


def test_aiperf_tokens_are_the_servers(row):
    assert row(AIPERF)["system_tokens_per_s"] == 1000.0
    server = AIPERF | {
        "total_usage_completion_tokens": {"unit": "tokens", "avg": 8000.0},
        "usage_completion_tokens": {"unit": "tokens", "avg": 40.0},
    }
    made = row(server)
    assert made["system_tokens_per_s"] == 400.0 and made["output_tokens"] == 40.0  # 8,000 in 20 s
    assert made["tpot_s_p50"] is None and "the client's gave 1000/s" in made["note"]
    alike = AIPERF | {"total_usage_completion_tokens": {"unit": "tokens", "avg": 20_100.0}}
    assert row(alike)["tpot_s_p50"] == pytest.approx(0.0085)


def test_aiperf_repeated_runs_give_an_interval(row):
    made = row(AIPERF_AGGREGATE)
    rates = [made[f"system_tokens_per_s{end}"] for end in ("_low", "", "_high")]
    assert rates == [950.0, 1000.0, 1050.0] and made["ttft_s_p50"] == pytest.approx(0.045)
    other = json.loads(json.dumps(AIPERF_AGGREGATE))
    other["metadata"]["confidence_level"] = 0.9
    assert row(other)["system_tokens_per_s_low"] is None


def test_aiperf_poisson_is_open_loop_and_a_cancelled_run_is_none(row, read):
    phases = {"phases": [{"kind": "profiling", "type": "poisson", "rate": 4.0}]}
    made = row(AIPERF | {"input_config": AIPERF["input_config"] | phases})
    assert (made["flags"], made["rate_per_s"], made["concurrency"]) == ("open_loop", 4.0, None)
    assert read(AIPERF | {"was_cancelled": True}).left_out == {"cancelled run": 1}


# ---------------------------------------------------------------- GuideLLM


def test_guidellm_time_per_output_token_has_the_first_token_in_it(row):
    made = row(GUIDELLM)
    assert made["tpot_s_p50"] == pytest.approx(0.0046)  # inter_token_latency, not 0.005
    assert made["ttft_s_p50"] == pytest.approx(0.04) and made["e2e_s_p50"] == 0.5  # ms and s in one file
    assert made["system_tokens_per_s"] == 800.0 and made["concurrency"] == 4  # not 3,200 with prompts
    assert made["as_of"] == "2026-11-22"


def test_guidellm_before_0_4_rates_are_counted_and_cut_requests_told(row):
    made = row(GUIDELLM_02)
    assert made["system_tokens_per_s"] == 800.0  # 8,000 tokens in 10 s; the file's own mean says 1,500
    assert made["flags"] == "open_loop+cut_by_time" and "20 of 100 requests cut off: biased low" in made["note"]
    assert made["rate_per_s"] == 8.0 and made["concurrency"] is None


# ---------------------------------------------------------------- inference-perf, ML.ENERGY


def test_inference_perf_chunks_are_not_taken_for_tokens(row):
    made = row(PERF)
    assert made["system_tokens_per_s"] == 500.0 and made["tpot_s_p50"] == pytest.approx(0.0101)
    chunks = json.loads(json.dumps(PERF))
    chunks["successes"]["latency"]["time_per_output_token"] |= {"mean": 0.005, "median": 0.005}
    made = row(chunks)
    assert made["tpot_s_p50"] is None and "0.005 s, (latency - TTFT) / (n - 1) is 0.01" in made["note"]


def test_inference_perf_a_late_client_and_a_mixture_of_stages_are_told(row):
    late = json.loads(json.dumps(PERF))
    late["load_summary"] = {"count": 60, "schedule_delay": {"mean": 9.25}}
    made = row(late)
    assert made["flags"] == "open_loop+client_late" and "all stages of the run together" in made["note"]
    assert row(PERF)["flags"] == "open_loop"


def test_mlenergy_figures_are_of_all_gpus_already(row, read):
    made = row(ENERGY)
    assert (made["n_gpus"], made["system_tokens_per_s"]) == (4, 6000.0)  # not 24,000
    assert (made["energy_joules_per_token"], made["energy_boundary"]) == (0.4, "gpu")  # not 1.6
    assert made["tpot_s_p50"] == 0.0025 and made["output_tokens"] == 400.0
    assert read(ENERGY).left_out == {"without a rate of tokens": 1}  # the one that makes images
    per_gpu = json.loads(json.dumps(ENERGY))
    per_gpu["configurations"][0]["energy_per_token_joules"] = 0.1
    assert row(per_gpu)["energy_joules_per_token"] is None


# ---------------------------------------------------------------- pytest-benchmark


def test_pytest_benchmark_times_are_of_one_call_and_its_host_is_not_copied(row):
    made = row(KERNELS)
    assert made["time_s_median"] == 1.5e-5 and (made["rounds"], made["calls"]) == (200, 10)
    assert made["parameters"] == "size=4096" and made["device_name"] == "Board X" and made["commit"] == "0123abc"
    assert "a-host-name" not in json.dumps(made)
    assert row(KERNELS | {"commit_info": {"id": "unversioned"}})["commit"] is None
