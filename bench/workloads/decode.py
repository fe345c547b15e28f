"""Decode: one token a sequence and step, greedy, contexts growing from `input_tokens` to their limit and back.

A step reads the token before, appends to the KV cache, picks the next token and advances the lengths, all on
the device; on CUDA the whole step is one captured graph, replayed. FLOPs and bytes are those of the mean context.
"""

from __future__ import annotations

from typing import Any

import torch

from bench.config import Model, Workload
from bench.kernels.op import compiled, load
from bench.model import accounting, oracle
from bench.model.memory import sliced
from bench.model.transformer import DTYPES, KVCache, Transformer


class Decode:
    """See measure/cell.py for what these names mean. Tokens a step: the batch."""

    token_kind = "output"

    def __init__(self, device: str, model: dict[str, Any], workload: dict[str, Any], backend: str, layers: int):
        self.device, self.backend, self.layers = torch.device(device), backend, layers
        self.model, self.workload = Model(**model), Workload(**workload)
        w = self.workload
        self.tokens_per_step = w.batch_size
        self.limit = w.input_tokens + max(1, w.output_tokens)
        mean_context = (w.input_tokens + 1 + self.limit) / 2  # the new token sees itself
        cost = accounting.decode(sliced(self.model, layers), w.batch_size, mean_context, w.precision)
        self.flops, self.flops_unhalved, self.bytes = cost.flops, cost.flops_unhalved, cost.bytes

    def check(self) -> tuple[float, float, str]:
        w = self.workload
        error, shape = oracle.decode_error(self.model, self.backend, w.precision, self.device, w.input_tokens)
        return error, w.tolerance or oracle.TOLERANCE[w.precision], shape

    @torch.no_grad()
    def prepare(self) -> None:
        w = self.workload
        network = Transformer(
            self.model,
            load(self.backend),
            precision=w.precision,
            device=self.device,
            max_tokens=self.limit,
            layers=self.layers,
        )
        self.cache = KVCache(self.model, self.layers, w.batch_size, self.limit, DTYPES[w.precision], self.device)
        for cached in (*self.cache.keys, *self.cache.values):
            cached.normal_()  # as after a prefill of random tokens: never zeros
        self.cache.lengths.fill_(w.input_tokens)
        generator = torch.Generator().manual_seed(3)
        self.tokens = torch.randint(self.model.vocab, (w.batch_size,), generator=generator).to(self.device)
        self.decode = compiled(self.backend, network.decode)
        self.graph = self._capture() if self.device.type == "cuda" else None

    def _capture(self) -> torch.cuda.CUDAGraph:
        """Record one step as a CUDA graph, after a first run on a side stream (compilation, library set-up)."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._advance()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._advance()
        return graph

    @torch.no_grad()
    def _advance(self) -> None:
        self.tokens.copy_(self.decode(self.tokens, self.cache).argmax(-1))
        lengths = self.cache.lengths
        lengths.copy_(torch.where(lengths >= self.limit, self.workload.input_tokens, lengths))

    def step(self) -> None:
        if self.graph is not None:
            self.graph.replay()
        else:
            self._advance()


build = Decode
