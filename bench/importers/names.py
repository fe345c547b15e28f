"""What other people call our GPUs, models and precisions. Exact names only: nothing is matched by part.

A GPU's own driver names (configs/gpus, `device_names`) and a model's own name (configs/models, `name`) count too.
Where a name is of another model with the same shapes, or leaves a form factor open, the row's note says so. A name
that stands nowhere here keeps its row and its words, and leaves the key blank.
"""

from __future__ import annotations

import functools

from bench import config
from bench.architecture import Model

NO_FORM = "form factor not stated, taken for SXM"
# name -> GPU key, and a caveat.
GPUS: dict[str, tuple[str, str]] = {
    # MLPerf inference, `Accelerator` of summary_results.json, v5.1
    "NVIDIA H100-SXM-80GB": ("h100_sxm_80gb", ""),
    "NVIDIA H200-SXM-141GB": ("h200_sxm_141gb", ""),
    "NVIDIA H200-NVL-141GB": ("h200_nvl_141gb", ""),
    "NVIDIA B200-SXM-180GB": ("b200_sxm_180gb", ""),
    # InferenceX, packages/constants/src/gpu-keys.ts; its h100, h200, b200 and b300 are HGX boards
    "h100": ("h100_sxm_80gb", ""),
    "h200": ("h200_sxm_141gb", ""),
    "b200": ("b200_sxm_180gb", ""),
    "b300": ("b300_sxm_288gb", ""),
    "gb200": ("gb200_nvl72_186gb", ""),
    "gb300": ("gb300_nvl72_288gb", ""),
    # ML.ENERGY leaderboard, `gpu_model`
    "H100": ("h100_sxm_80gb", NO_FORM),
    "B200": ("b200_sxm_180gb", NO_FORM),
}
# model key -> names of the model itself: Hugging Face ids, MLPerf's and InferenceX's.
MODELS: dict[str, tuple[str, ...]] = {
    "llama_3_1_8b": (
        *("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct"),
        *("meta-llama/Meta-Llama-3.1-8B", "meta-llama/Meta-Llama-3.1-8B-Instruct"),
        *("RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8", "nvidia/Llama-3.1-8B-Instruct-FP8"),
        *("llama3.1-8b", "llama3.1-8b-edge", "llama31_8b"),
    ),
    "llama_3_1_70b": (
        *("meta-llama/Llama-3.1-70B", "meta-llama/Llama-3.1-70B-Instruct"),
        *("meta-llama/Meta-Llama-3.1-70B", "meta-llama/Meta-Llama-3.1-70B-Instruct"),
        *("RedHatAI/Meta-Llama-3.1-70B-Instruct-FP8", "nvidia/Llama-3.1-70B-Instruct-FP8"),
    ),
    "llama_3_1_405b": (
        *("meta-llama/Llama-3.1-405B", "meta-llama/Llama-3.1-405B-Instruct", "meta-llama/Llama-3.1-405B-Instruct-FP8"),
        *("meta-llama/Meta-Llama-3.1-405B", "meta-llama/Meta-Llama-3.1-405B-Instruct"),
        *("nvidia/Llama-3.1-405B-Instruct-FP8", "nvidia/Llama-3.1-405B-Instruct-FP4"),
        *("llama3.1-405b", "llama31_405b"),
    ),
    "llama_3_2_1b": ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B-Instruct"),
    "llama_4_maverick": (
        *("meta-llama/Llama-4-Maverick-17B-128E", "meta-llama/Llama-4-Maverick-17B-128E-Instruct"),
        "meta-llama/Llama-4-Maverick-17B-128E-Instruct-FP8",
    ),
    "mixtral_8x7b": ("mistralai/Mixtral-8x7B-v0.1", "mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral-8x7b"),
    "deepseek_v3": ("deepseek-ai/DeepSeek-V3", "deepseek-ai/DeepSeek-V3-Base", "deepseek-ai/DeepSeek-V3-0324"),
    "gpt_oss_20b": ("openai/gpt-oss-20b",),
    "gpt_oss_120b": ("openai/gpt-oss-120b", "gpt-oss-120b", "gptoss120b"),
    "kimi_k2": ("moonshotai/Kimi-K2-Instruct", "moonshotai/Kimi-K2-Instruct-0905", "moonshotai/Kimi-K2-Base"),
    "qwen3_0_6b": ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B-Base"),
    "qwen3_8b": ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B-Base", "Qwen/Qwen3-8B-FP8"),
    "qwen3_32b": ("Qwen/Qwen3-32B", "Qwen/Qwen3-32B-FP8"),
    "qwen3_30b_a3b": (
        *("Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-30B-A3B-FP8", "Qwen/Qwen3-30B-A3B-Base"),
        *("Qwen/Qwen3-30B-A3B-Instruct-2507", "Qwen/Qwen3-30B-A3B-Instruct-2507-FP8"),
        *("Qwen/Qwen3-30B-A3B-Thinking-2507", "Qwen/Qwen3-30B-A3B-Thinking-2507-FP8"),
    ),
    "qwen3_235b_a22b": (
        *("Qwen/Qwen3-235B-A22B", "Qwen/Qwen3-235B-A22B-FP8"),
        *("Qwen/Qwen3-235B-A22B-Instruct-2507", "Qwen/Qwen3-235B-A22B-Instruct-2507-FP8"),
        *("Qwen/Qwen3-235B-A22B-Thinking-2507", "Qwen/Qwen3-235B-A22B-Thinking-2507-FP8"),
    ),
    "gpt2_124m": ("gpt2", "openai-community/gpt2"),
}
# model key -> names of other models with its shapes, which therefore cost the same.
SAME_SHAPES: dict[str, tuple[str, ...]] = {
    "llama_3_1_8b": ("meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-8B-Instruct"),
    "llama_3_1_70b": (
        *("meta-llama/Llama-3.3-70B-Instruct", "nvidia/Llama-3.3-70B-Instruct-FP8", "llama70b"),
        *("nvidia/Llama-3.3-70B-Instruct-FP4", "meta-llama/Meta-Llama-3-70B", "meta-llama/Meta-Llama-3-70B-Instruct"),
    ),
    "deepseek_v3": (
        *("deepseek-ai/DeepSeek-R1", "deepseek-ai/DeepSeek-R1-0528", "deepseek-ai/DeepSeek-V3.1"),
        *("nvidia/DeepSeek-R1-0528-FP4", "nvidia/DeepSeek-R1-0528-FP4-v2", "nvidia/DeepSeek-R1-0528-FP4-V2"),
        *("amd/DeepSeek-R1-0528-MXFP4", "deepseek-r1", "dsr1"),
    ),
}
# int4 and int8 are no precision of matmuls here: weights alone are, or integers are multiplied.
PRECISIONS = {
    **{name: name for name in config.PRECISIONS},
    **{"nvfp4": "fp4", "mxfp4": "fp4", "mxfp8": "fp8", "bfloat16": "bf16", "float16": "fp16", "float32": "fp32"},
}


def gpu(name: str | None) -> tuple[str | None, str]:
    """The GPU key of a name and a caveat; None where no table has it."""
    return _gpus().get(name or "", (None, ""))


def model(name: str | None) -> tuple[str | None, str]:
    """The model key of a name and a caveat, likewise."""
    return _models().get(name or "", (None, ""))


def precision(name: str | None) -> str | None:
    """The precision a word stands for, whatever its case."""
    return PRECISIONS.get((name or "").lower())


@functools.cache
def _gpus() -> dict[str, tuple[str | None, str]]:
    known = {key: (key, "") for key in config.keys(config.Gpu)}
    drivers = {name: (g.key, "") for g in config.load_all(config.Gpu).values() for name in g.device_names}
    return {**known, **drivers, **GPUS}


@functools.cache
def _models() -> dict[str, tuple[str | None, str]]:
    found: dict[str, tuple[str | None, str]] = {}
    for key, m in config.load_all(Model).items():
        found |= {name: (key, "") for name in (key, m.name, *MODELS.get(key, ()))}
        found |= {name: (key, f"{name} has the shapes of {m.name}") for name in SAME_SHAPES.get(key, ())}
    return found
