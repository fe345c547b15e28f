"""A workload as its TOML states it: one phase with its sizes and, for training, how it is done.

Tokens are per sequence; `batch_size` counts sequences (of a micro-batch, on each GPU, in training).
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bench.config import PRECISIONS, require

TRAINING = ("train_step", "rl_step")


@dataclass(frozen=True, kw_only=True)
class Serving:
    """Phase serve: which traffic under which loads, by an engine with which options (vLLM's names)."""

    traffic: str  # a class in configs/traffic, or a mix of them in configs/mixes
    max_model_len: int  # tokens of a prompt and its answer; longer requests are clipped
    length_scale: float = 1.0  # of prompts and answers: below 1 for tiny models
    concurrencies: tuple[int, ...] = ()  # closed-loop points: requests, or sessions, kept going
    rate_shares: tuple[float, ...] = ()  # open-loop points: shares of the best closed-loop point's requests a second
    rates_per_s: tuple[float, ...] = ()  # further open-loop points: requests a second
    most_think_s: float | None = None  # pauses between turns are cut to this; None: as they are
    goodput_search: int = 0  # requests of its shortest trial; 0: none is made
    arrivals: str = "trace"  # of open-loop points: poisson, gamma with arrivals_cv, or bursty as the trace is
    arrivals_cv: float | None = None  # coefficient of variation of gamma's gaps; above 1: bursts
    ttft_slo_s: float | None = None  # promised time to first token, and per output token after it; None: no promise
    tpot_slo_s: float | None = None
    block_size: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    num_gpu_blocks: int | None = None  # blocks of the cache; None: what max_num_seqs need, as far as memory goes
    enable_prefix_caching: bool = True
    kv_cache_dtype: str = "auto"  # auto: that of the model | fp8
    quantization: str = "none"  # of the projections' weights: none | fp8 | int8 | int4
    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        choices = {
            "arrivals": ("poisson", "gamma", "trace"),
            "kv_cache_dtype": ("auto", "fp8"),
            "quantization": ("none", "fp8", "int8", "int4"),
        }
        for name, known in choices.items():
            require(getattr(self, name) in known, name, f"one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name in ("max_model_len", "block_size", "max_num_seqs", "max_num_batched_tokens"):
            require(getattr(self, name) >= 1, name, f"at least 1, got {getattr(self, name)}")
        size = self.block_size
        require(size >= 16 and not size & (size - 1), "block_size", f"a power of two from 16 on, got {size}")
        require(bool(self.concurrencies or self.rates_per_s), "concurrencies", "at least one load, or rates_per_s")
        require(all(n >= 1 for n in self.concurrencies), "concurrencies", "each at least 1")
        bursty = (self.arrivals == "gamma") == (self.arrivals_cv is not None)
        require(bursty, "arrivals_cv", "one with arrivals = gamma, and only there")
        for name in ("length_scale", "ttft_slo_s", "tpot_slo_s", "arrivals_cv"):
            value = getattr(self, name)
            require(value is None or value > 0, name, f"a positive number, got {value}")
        together = (self.ttft_slo_s is None) == (self.tpot_slo_s is None)
        require(together, "tpot_slo_s", "ttft_slo_s and tpot_slo_s, or neither")
        for name in ("rate_shares", "rates_per_s"):
            require(all(rate > 0 for rate in getattr(self, name)), name, "each a positive number")
        require(self.temperature >= 0 and 0 < self.top_p <= 1, "temperature", "0 or more, and top_p in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class Workload:
    """decode: contexts spread evenly from `input_tokens` to `input_tokens + output_tokens`.

    kernel: `op` at its `shape`. rl_step: `prompts` of `input_tokens`, each answered `rollouts` times.
    """

    FOLDER: ClassVar[str] = "workloads"
    key: str = ""
    phase: str  # a file in bench/workloads
    precision: str
    batch_size: int = 1
    input_tokens: int = 0
    output_tokens: int = 0
    gradient_accumulation: int = 1
    op: str | None = None
    shape: str | None = None
    tolerance: float | None = None  # relative error of the check against float64; None: by precision
    # how a training step is done
    document_tokens_median: float | None = None  # documents packed into each sequence, their lengths lognormal
    document_tokens_sigma: float | None = None  # standard deviation of the logarithm of the length
    checkpointing: str = "none"  # selective: the MLPs are computed again in backward; full: the layers are
    optimizer_states: str = "fp32"  # of AdamW's two averages: fp32 | bf16
    fp8_scaling: str = "rowwise"  # precision fp8: one scale a row, or a tensor: rowwise | tensorwise
    fp8_around: str = "bf16"  # precision fp8: what all but the projections is computed in: bf16 | fp32
    routing_zipf: float | None = None  # experts drawn with popularity rank^-zipf (0: uniform); None: as the router says
    expert_parallel: int = 1  # the share of the experts that one of this many GPUs holds
    tensor_parallel: int = 1  # GPUs that share each layer's matrices
    lora_rank: int | None = None  # adapters of this rank on every projection; the base is frozen
    lora_alpha: float = 16.0  # adapters' outputs are scaled by alpha / rank
    # rl_step
    prompts: int = 1
    rollouts: int = 1  # answers to each prompt
    answer_tokens_quantiles: tuple[float, ...] = ()  # answer lengths at evenly spaced quantiles, the first at 0
    serving: Serving | None = None  # phase serve
    source: str  # why these sizes

    def __post_init__(self) -> None:
        phases = sorted(p.stem for p in (Path(__file__).parent / "workloads").glob("[a-z]*.py"))
        choices = {
            "phase": tuple(phases),
            "precision": PRECISIONS,
            "checkpointing": ("none", "selective", "full"),
            "optimizer_states": ("fp32", "bf16"),
            "fp8_scaling": ("rowwise", "tensorwise"),
            "fp8_around": ("bf16", "fp32"),
        }
        for name, known in choices.items():
            require(getattr(self, name) in known, name, f"one of {', '.join(known)}, got {getattr(self, name)!r}")
        counts = ("batch_size", "gradient_accumulation", "expert_parallel", "tensor_parallel", "prompts", "rollouts")
        for name in counts:
            require(getattr(self, name) >= 1, name, f"at least 1, got {getattr(self, name)}")
        if isinstance(self.serving, dict):  # sent to a worker as a table
            object.__setattr__(self, "serving", Serving(**self.serving))
        served = (self.phase == "serve") == (self.serving is not None)
        require(served, "serving", "a [serving] table where the phase is serve, and only there")
        least = 0 if self.phase in ("kernel", "ceiling", "serve") else 1
        require(self.input_tokens >= least, "input_tokens", f"at least {least}, got {self.input_tokens}")
        require(self.output_tokens >= 0, "output_tokens", f"a count, got {self.output_tokens}")
        allowed = self.tolerance is None or 0 < self.tolerance <= 0.1
        require(allowed, "tolerance", f"above 0 and at most 0.1, got {self.tolerance}")
        self._training()

    @property
    def working_precision(self) -> str:
        """What weights and activations are held in."""
        return self.fp8_around if self.precision == "fp8" else self.precision

    def without_bf16(self) -> Workload:
        """The same in fp32: for a CPU that only imitates bf16, many times slower."""
        if self.precision == "fp8":
            return dataclasses.replace(self, fp8_around="fp32")
        return dataclasses.replace(self, precision="fp32") if self.precision == "bf16" else self

    def _training(self) -> None:
        together = (self.document_tokens_median is None) == (self.document_tokens_sigma is None)
        require(together, "document_tokens_sigma", "document_tokens_median and document_tokens_sigma, or neither")
        for name in ("document_tokens_median", "document_tokens_sigma"):
            value = getattr(self, name)
            require(value is None or value > 0, name, f"a positive number, got {value}")
        zipf = self.routing_zipf
        require(zipf is None or zipf >= 0, "routing_zipf", f"0 (uniform) or more, got {zipf}")
        require(self.lora_rank is None or self.lora_rank >= 1, "lora_rank", f"at least 1, got {self.lora_rank}")
        require(self.lora_alpha > 0, "lora_alpha", f"a positive number, got {self.lora_alpha}")
        quantiles = self.answer_tokens_quantiles
        if self.phase == "rl_step":
            rising = all(a <= b for a, b in itertools.pairwise(quantiles))
            holds = len(quantiles) >= 2 and quantiles[0] >= 1 and rising
            require(holds, "answer_tokens_quantiles", "two or more token counts, rising, the first at least 1")
