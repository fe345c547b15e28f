"""One small sample of every format `bench import` reads: the tools' schemas, numbers made up for these tests."""

import json

from tests.import_samples_mlperf import SUMMARY, loadgen, mllog

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
API_ROW = {
    "hardware": "b200",
    "framework": "engine",
    "model": "gptoss120b",
    "precision": "fp4",
    "spec_method": "none",
    "disagg": False,
    "is_multinode": False,
    "prefill_tp": 8,
    "prefill_ep": 8,
    "prefill_num_workers": 0,
    "decode_tp": 8,
    "decode_ep": 8,
    "decode_num_workers": 0,
    "num_prefill_gpu": 64,  # tp * ep, as artifacts of 2025 had it: the box has 8
    "num_decode_gpu": 64,
    "isl": 1024,
    "osl": 1024,
    "conc": 64,
    "image": "engine:1.0",
    "metrics": {
        "tput_per_gpu": 2000.0,
        "input_tput_per_gpu": 1010.0,
        "output_tput_per_gpu": 990.0,
        "median_ttft": 0.2,
        "p99_ttft": 0.9,
        "median_tpot": 0.01,
        "std_intvty": 8400.0,
        "joules_per_output_token": 0.5,
    },
    "workers": None,
    "date": "2026-06-11",
    "run_url": "https://example.org/runs/1",
}
SPLIT = API_ROW | {
    "disagg": True,
    "is_multinode": True,
    "num_prefill_gpu": 4,
    "num_decode_gpu": 12,
    "prefill_num_workers": 1,
    "decode_num_workers": 3,
    # whole system: 8,000 in and 9,000 out a second, on 4 and 12 GPUs
    "metrics": {"tput_per_gpu": 1062.5, "input_tput_per_gpu": 2000.0, "output_tput_per_gpu": 750.0},
}
VLLM = {
    "date": "20261122-015323",
    "backend": "openai-chat",
    "model_id": MODEL,
    "num_prompts": 100,
    "request_rate": "inf",
    "max_concurrency": 16,
    "max_concurrent_requests": 40,
    "duration": 10.0,
    "completed": 100,
    "failed": 0,
    "total_input_tokens": 50_000,
    "total_output_tokens": 20_000,
    "request_throughput": 10.0,
    "request_goodput:": 7.5,
    "output_throughput": 2000.0,
    "total_token_throughput": 7000.0,
    "median_ttft_ms": 50.0,
    "p99_ttft_ms": 90.0,
    "median_tpot_ms": 8.0,
    "median_e2el_ms": 1600.0,
}
SGLANG = {
    "tag": None,
    "backend": "sglang",
    "dataset_name": "random",
    "request_rate": float("inf"),
    "max_concurrency": 32,
    "server_info": {"model_path": MODEL},
    "duration": 10.0,
    "completed": 50,
    "total_input_tokens": 50_000,
    "total_output_tokens": 10_000,
    "total_output_tokens_retokenized": 9_000,
    "request_throughput": 5.0,
    "input_throughput": 5000.0,
    "output_throughput": 1000.0,
    "total_throughput": 6000.0,
    "median_ttft_ms": 60.0,
    "median_tpot_ms": 9.0,
    "median_e2e_latency_ms": 1800.0,
}
BATCH = {
    "run_name": "default",
    "batch_size": 16,
    "input_len": 1024,
    "output_len": 256,
    "latency": 2.0,
    "input_throughput": 40_960.0,  # 16 * 1024 tokens over 0.4 s of prefill
    "output_throughput": 2560.0,  # 16 * 256 tokens over the other 1.6 s
    "overall_throughput": 10_240.0,  # 16 * 1280 tokens over 2 s
    "last_ttft": 0.4,
}
AIPERF = {
    "schema_version": "1.4",
    "aiperf_version": "0.13.0",
    "benchmark_id": "abc",
    "request_throughput": {"unit": "requests/sec", "avg": 10.0},
    "request_latency": {"unit": "ms", "avg": 900.0, "p50": 880.0, "p99": 1200.0},
    "time_to_first_token": {"unit": "ms", "avg": 50.0, "p50": 45.0, "p99": 100.0},
    "inter_token_latency": {"unit": "ms", "avg": 9.0, "p50": 8.5, "p99": 12.0},
    "output_token_throughput": {"unit": "tokens/sec", "avg": 1000.0},
    "output_sequence_length": {"unit": "tokens", "avg": 100.0},
    "input_sequence_length": {"unit": "tokens", "avg": 500.0},
    "benchmark_duration": {"unit": "sec", "avg": 20.0},
    "input_config": {
        "models": {"items": [{"name": MODEL}]},
        "phases": [
            {"name": "warmup", "kind": "warmup", "type": "concurrency", "concurrency": 1},
            {"name": "profiling", "kind": "profiling", "type": "concurrency", "concurrency": 8},
        ],
    },
    "was_cancelled": False,
    "start_time": "2026-11-22T01:49:59",
}
AIPERF_AGGREGATE = {
    "schema_version": "1.0",
    "aiperf_version": "0.13.0",
    "metadata": {"aggregation_type": "confidence", "num_successful_runs": 3, "confidence_level": 0.95},
    "metrics": {
        "output_token_throughput_avg": {"mean": 1000.0, "ci_low": 950.0, "ci_high": 1050.0, "unit": "tokens/sec"},
        "time_to_first_token_p50": {"mean": 45.0, "unit": "ms"},
    },
}


def _told(**values):
    return {"successful": values, "errored": None, "incomplete": None, "total": None}


GUIDELLM = {
    "metadata": {"version": 2, "guidellm_version": "0.8.1"},
    "benchmarks": [
        {
            "type_": "generative_benchmark",
            "config": {
                "strategy": {"type_": "concurrent", "streams": 4, "max_concurrency": 4},
                "backend": {"model": MODEL},
            },
            "metrics": {
                "request_totals": {"successful": 80, "errored": 0, "incomplete": 0, "total": 80},
                "prompt_token_count": _told(mean=300.0, total_sum=24_000.0),
                "output_token_count": _told(mean=100.0, total_sum=8000.0),
                "request_latency": _told(median=0.5, percentiles={"p99": 0.9}),
                "time_to_first_token_ms": _told(median=40.0, percentiles={"p99": 80.0}),
                "time_per_output_token_ms": _told(median=5.0),  # end to end / n
                "inter_token_latency_ms": _told(median=4.6, percentiles={"p99": 6.0}),
                "output_tokens_per_second": _told(mean=800.0),
                "tokens_per_second": _told(mean=3200.0),
            },
            "start_time": 1_795_312_211.7,
            "duration": 10.0,
        }
    ],
}
_OLD = GUIDELLM["benchmarks"][0]
GUIDELLM_02 = {
    "benchmarks": [
        {
            "type_": "generative_benchmark",
            "args": {"strategy": {"type_": "constant", "rate": 8.0}},
            "worker": {"backend_model": MODEL},
            "metrics": {
                name: told
                for name, told in _OLD["metrics"].items()
                if name not in ("request_totals", "tokens_per_second")
            }
            # a mean over intervals: not what went by
            | {"output_tokens_per_second": _told(mean=1500.0), "tokens_per_second": _told(mean=9000.0)},
            "request_totals": {"successful": 80, "errored": 0, "incomplete": 20, "total": 100},
            "start_time": 1_749_157_168.2,
            "duration": 10.0,
        }
    ]
}
PERF = {
    "load_summary": {"count": 60, "schedule_delay": {"mean": 0.0001}, "requested_rate": 5.0, "achieved_rate": 5.0},
    "successes": {
        "count": 60,
        "latency": {
            "request_latency": {"mean": 1.05, "median": 1.0, "p99": 1.5},
            "normalized_time_per_output_token": {"mean": 0.0105, "median": 0.0105},
            "time_per_output_token": {"mean": 0.01, "median": 0.0101, "p99": 0.015},
            "time_to_first_token": {"mean": 0.06, "median": 0.05, "p99": 0.1},
        },
        "throughput": {
            "input_tokens_per_sec": 1000.0,
            "output_tokens_per_sec": 500.0,
            "total_tokens_per_sec": 1500.0,
            "requests_per_sec": 5.0,
        },
        "prompt_len": {"mean": 200.0},
        "output_len": {"mean": 100.0},
    },
    "failures": {"count": 0},
}
ENERGY = {
    "model_id": MODEL,
    "task": "lm-arena-chat",
    "weight_precision": "bfloat16",
    "configurations": [
        {
            "avg_batch_size": 15.9,
            "avg_output_len": 400.0,
            "avg_power_watts": 2400.0,
            "energy_per_token_joules": 0.4,
            "gpu_model": "H100",
            "max_num_seqs": 16,
            "median_itl_ms": 2.5,
            "num_gpus": 4,
            "output_throughput_tokens_per_sec": 6000.0,
            "parallelization": {"data_parallel": 1, "expert_parallel": 1, "tensor_parallel": 4},
        },
        {"gpu_model": "H100", "num_gpus": 1, "throughput_images_per_sec": 1.5},
    ],
}
KERNELS = {
    "machine_info": {"node": "a-host-name", "python_version": "3.12.0"},
    "commit_info": {"id": "0123abc"},
    "datetime": "2026-11-22T10:00:00+00:00",
    "version": "5.2.0",
    "benchmarks": [
        {
            "group": "norm",
            "name": "test_norm[4096]",
            "fullname": "perf/test_norm.py::test_norm[4096]",
            "params": {"size": 4096},
            "extra_info": {"gpu": "Board X"},
            "stats": {
                **{"min": 1e-5, "max": 3e-5, "mean": 1.6e-5, "stddev": 2e-6, "median": 1.5e-5},
                **{"rounds": 200, "iterations": 10, "ops": 62500.0},
            },
        }
    ],
}


def written(value):
    """A value as its tool writes it."""
    return value if isinstance(value, str) else json.dumps(value, indent=1)


# name of the sample -> (format, file name, content)
SAMPLES = {
    "mlperf_summary": ("mlperf_summary", "summary_results.json", [SUMMARY]),
    "mlperf_offline": ("mlperf_log", "mlperf_log_summary.txt", loadgen()),
    "mlperf_server": ("mlperf_log", "mlperf_log_summary.txt", loadgen("Server")),
    "mlperf_training": ("mlperf_training", "result_0.txt", mllog()),
    "inferencex_api": ("inferencex", "benchmarks.json", [API_ROW, SPLIT]),
    "inferencex_agg": (
        "inferencex",
        "agg_run.json",
        {name: API_ROW[name] for name in ("framework", "precision", "disagg", "isl", "osl", "conc", "image")}
        | {"hw": "b200", "model": "openai/gpt-oss-120b", "tp": 4, "pp": 2, "ep": 1, "is_multinode": False}
        | API_ROW["metrics"]
        | {"power_valid": 0},
    ),
    "vllm": ("vllm", "openai-infqps.json", VLLM),
    "sglang": ("sglang", "sglang.jsonl", json.dumps(SGLANG)),
    "sglang_batch": ("sglang", "result.jsonl", json.dumps(BATCH)),
    "aiperf": ("aiperf", "profile_export_aiperf.json", AIPERF),
    "aiperf_aggregate": ("aiperf", "profile_export_aiperf_aggregate.json", AIPERF_AGGREGATE),
    "guidellm": ("guidellm", "benchmarks.json", GUIDELLM),
    "guidellm_02": ("guidellm", "benchmarks.json", GUIDELLM_02),
    "inference_perf": ("inference_perf", "stage_0_lifecycle_metrics.json", PERF),
    "mlenergy": ("mlenergy", "model__task.json", ENERGY),
    "pytest_benchmark": ("pytest_benchmark", "bench.json", KERNELS),
}
