"""Prefill: prompts from an empty cache to the logits of their last position, filling the KV cache on the way."""

from __future__ import annotations

from typing import Any

import torch

from bench.config import Model, Workload
from bench.kernels.op import compiled, load
from bench.model import accounting, oracle
from bench.model.memory import sliced
from bench.model.transformer import DTYPES, KVCache, Transformer


class Prefill:
    """See measure/cell.py for what these names mean. Tokens a step: batch x input tokens."""

    token_kind = "input"

    def __init__(self, device: str, model: dict[str, Any], workload: dict[str, Any], backend: str, layers: int):
        self.device, self.backend, self.layers = torch.device(device), backend, layers
        self.model, self.workload = Model(**model), Workload(**workload)
        w = self.workload
        self.tokens_per_step = w.batch_size * w.input_tokens
        cost = accounting.prefill(sliced(self.model, layers), w.batch_size, w.input_tokens, w.precision)
        self.flops, self.flops_unhalved, self.bytes = cost.flops, cost.flops_unhalved, cost.bytes

    def check(self) -> tuple[float, float, str]:
        w = self.workload
        error, shape = oracle.prefill_error(self.model, self.backend, w.precision, self.device, w.input_tokens)
        return error, w.tolerance or oracle.TOLERANCE[w.precision], shape

    def prepare(self) -> None:
        w = self.workload
        network = Transformer(
            self.model,
            load(self.backend),
            precision=w.precision,
            device=self.device,
            max_tokens=w.input_tokens,
            layers=self.layers,
        )
        self.cache = KVCache(self.model, self.layers, w.batch_size, w.input_tokens, DTYPES[w.precision], self.device)
        self.prefill = compiled(self.backend, network.prefill)
        generator = torch.Generator().manual_seed(3)
        shape = (w.batch_size, w.input_tokens)
        self.tokens = torch.randint(self.model.vocab, shape, generator=generator).to(self.device)

    def step(self) -> None:
        self.prefill(self.tokens, self.cache)


build = Prefill
