"""Decode: one token a sequence and step, greedy, contexts growing from `input_tokens` to their limit and back.

A step reads the token before, appends to the KV cache, picks the next token and advances the lengths, all on
the device; on CUDA the whole step is one captured graph, replayed. FLOPs and bytes are those of the mean context.
"""

from __future__ import annotations

from typing import Any

import torch

from bench.model import accounting, oracle
from bench.model.subject import Subject


class Decode(Subject):
    """See measure/cell.py for what these names mean. Tokens a step: the batch."""

    token_kind = "output"

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        w = self.workload
        self.tokens_per_step = w.batch_size
        self.limit = w.input_tokens + max(1, w.output_tokens)
        mean_context = (w.input_tokens + 1 + self.limit) / 2  # the new token sees itself
        self.counts(accounting.decode(self.slice, w.batch_size, mean_context, w.precision))

    def check(self) -> tuple[float, float, str]:
        return self.against_float64(oracle.decode_error)

    @torch.no_grad()
    def prepare(self) -> None:
        w = self.workload
        self.decode = self.compiled(self.network(self.limit).decode)
        self.kv = self.cache(self.limit)
        for cached in (*self.kv.keys, *self.kv.values):
            cached.normal_()  # as after a prefill of random tokens: never zeros
        self.kv.lengths.fill_(w.input_tokens)
        self.last = self.tokens(w.batch_size)
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
        self.last.copy_(self.decode(self.last, self.kv).argmax(-1))
        lengths = self.kv.lengths
        lengths.copy_(torch.where(lengths >= self.limit, self.workload.input_tokens, lengths))

    def step(self) -> None:
        if self.graph is not None:
            self.graph.replay()
        else:
            self._advance()


build = Decode
