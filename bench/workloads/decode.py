"""Decode: one token a sequence and step, greedy, for a batch whose contexts are spread evenly over the answer.

That is a serving batch in steady state: sequence b stands at input_tokens + (b + 1/2) / batch * output_tokens, and
stays there, so that every step does the same work and its FLOPs and bytes are exact. A step reads the token before,
appends to the KV cache, attends, and picks the next token, all on the device; on CUDA it is one captured graph.
"""

from __future__ import annotations

from typing import Any

import torch

from bench.kernels.op import relative_error
from bench.model import accounting, oracle
from bench.model.subject import Subject


class Decode(Subject):
    """See measure/cell.py for what these names mean. Tokens a step: the batch."""

    token_kind = "output"

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        w = self.workload
        self.tokens_per_step = w.batch_size
        answer = max(1, w.output_tokens)
        self.filled = [w.input_tokens + (2 * b + 1) * answer // (2 * w.batch_size) for b in range(w.batch_size)]
        mean_context = sum(self.filled) / w.batch_size + 1  # the new token sees itself
        self.counts(accounting.decode(self.slice, w.batch_size, mean_context, w.precision))

    def check(self) -> tuple[float, float, str]:
        return self.against_float64(oracle.decode_error, oracle.TOLERANCE)

    @torch.no_grad()
    def prepare(self) -> None:
        slots = self.workload.input_tokens + max(1, self.workload.output_tokens) + 1
        self.decode = self.compiled(self.network(slots).decode)
        self.kv = self.cache(slots)
        for cached in (*self.kv.keys, *self.kv.values):
            if cached is not None:
                cached.normal_()  # as after a prefill of random tokens: never zeros
        self.lengths = torch.tensor(self.filled, dtype=torch.int32, device=self.device)
        self.last = self.tokens(self.workload.batch_size)
        self.drawn = self.routing(self.workload.batch_size)
        self.graph = self._capture() if self.device.type == "cuda" else None

    def _capture(self) -> torch.cuda.CUDAGraph:
        """One step as a CUDA graph, after runs on a side stream (compilation, library set-up).

        Raises RuntimeError where the graph's logits are not those of the same step run eagerly.
        """
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._advance()
        torch.cuda.current_stream().wait_stream(side)
        start = self.last.clone()
        self._advance()
        eager = self.logits.clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._advance()
        self.last.copy_(start)
        graph.replay()
        error = relative_error(self.logits, eager)
        if not error <= oracle.TOLERANCE[self.workload.precision]:
            raise RuntimeError(f"the captured graph's logits differ from the eager step's by {error:.3g}")
        return graph

    @torch.no_grad()
    def _advance(self) -> None:
        self.kv.lengths.copy_(self.lengths)
        self.logits = self.decode(self.last, self.kv, self.drawn)
        self.last.copy_(self.logits.argmax(-1))

    def step(self) -> None:
        if self.graph is not None:
            self.graph.replay()
        else:
            self._advance()


build = Decode
