"""Prefill: prompts from an empty cache to the logits of their last position, filling the KV cache on the way."""

from __future__ import annotations

from typing import Any

from bench.model import accounting, oracle
from bench.model.subject import Subject


class Prefill(Subject):
    """See measure/cell.py for what these names mean. Tokens a step: batch x input tokens."""

    token_kind = "input"

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        w = self.workload
        self.tokens_per_step = w.batch_size * w.input_tokens
        self.counts(accounting.prefill(self.slice, w.batch_size, w.input_tokens, w.precision))

    def check(self) -> tuple[float, float, str]:
        return self.against_float64(oracle.prefill_error, oracle.TOLERANCE)

    def prepare(self) -> None:
        w = self.workload
        network = self.network(w.input_tokens)
        self.prefill = self.compiled(network.prefill)
        self.kv = self.cache(w.input_tokens)
        self.prompts = self.tokens(w.batch_size, w.input_tokens)
        drawn = self.routing(w.batch_size * w.input_tokens)
        self.given = network.described(w.batch_size, w.input_tokens, None, drawn)

    def step(self) -> None:
        self.prefill(self.prompts, self.kv, self.given)


build = Prefill
