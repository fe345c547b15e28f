"""Generating the answers of a reinforcement-learning step: a static batch, sampled at temperature 1.

Every prompt is computed once and its cache rows are copied to its answers (prefix sharing). All answers then decode
together until the longest is finished; its length is prescribed (answers.py). A finished sequence keeps its place: it
goes on computing its last position, and what it samples is left out, as in a batch that is never refilled. Sampling is
seeded: the numbers it needs lie on the device, a row for each step. On CUDA a step is one captured graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.kernels.op import compiled, relative_error
from bench.model.cache import KVCache
from bench.model.parts import Tokens
from bench.model.transformer import Transformer


class Rollout:
    """Answers of `lengths` tokens to `prompts` (P, I), as many to each; `cache` makes one of (slots, sequences).

    `routing` gives drawn routing of that many tokens, or None. Raises RuntimeError where the captured graph's logits
    are not those of the same step run eagerly.
    """

    answers: Tensor  # (longest, B) int64, one row a step; valid up to each answer's own length
    logits: Tensor

    def __init__(
        self,
        network: Transformer,
        backend: str,
        prompts: Tensor,
        lengths: list[int],
        cache: Callable[[int, int], KVCache],
        routing: Callable[[int], Tensor | None],
        tolerance: float,
        seed: int = 6,
    ):
        self.network, self.prompts, device = network, prompts, prompts.device
        (count, self.prompt_tokens), batch = prompts.shape, len(lengths)
        self.rollouts, self.longest = batch // count, max(lengths)
        self.prefill, self.decode = compiled(backend, network.prefill), compiled(backend, network.decode)
        self.given: Tokens = network.described(count, self.prompt_tokens, None, routing(prompts.numel()))
        self.drawn = routing(batch)
        self.shared = cache(self.prompt_tokens, count)
        self.kv = cache(self.prompt_tokens + self.longest - 1, batch)
        # where a finished sequence stays: the place of the last token it is fed
        last = [self.prompt_tokens + length - 2 for length in lengths]
        self.end = torch.tensor(last, dtype=torch.int32, device=device)
        generator = torch.Generator().manual_seed(seed)
        self.uniforms = torch.rand(self.longest, batch, generator=generator).to(device)
        self.answers = torch.zeros(self.longest, batch, dtype=torch.int64, device=device)
        self.last = torch.zeros(batch, dtype=torch.int64, device=device)
        self.row = torch.zeros(1, dtype=torch.int64, device=device)  # of the step in `uniforms` and `answers`
        network.eval()
        self.graph = self._capture(tolerance) if device.type == "cuda" and self.longest > 1 else None

    @torch.no_grad()
    def run(self) -> Tensor:
        """The answers (longest, B). Waits for nothing."""
        self._begin()
        for _ in range(self.longest - 1):
            if self.graph is not None:
                self.graph.replay()
            else:
                self._advance()
        return self.answers

    def _begin(self) -> None:
        """Prompts, their copies, and the first token of every answer."""
        logits = self.prefill(self.prompts, self.shared, self.given)
        for whole, part in zip((*self.kv.keys, *self.kv.values), (*self.shared.keys, *self.shared.values), strict=True):
            if whole is not None and part is not None:
                rows = part[:, None, : self.prompt_tokens]
                whole.unflatten(0, (-1, self.rollouts))[:, :, : self.prompt_tokens].copy_(rows)
        self._rewind()
        self._sample(logits.repeat_interleave(self.rollouts, 0))

    def _rewind(self) -> None:
        self.kv.lengths.fill_(self.prompt_tokens)
        self.row.zero_()

    def _sample(self, logits: Tensor) -> None:
        token = self.network.ops.sampling(logits, self.uniforms.index_select(0, self.row)[0])
        self.answers.index_copy_(0, self.row, token[None])
        self.last.copy_(token)
        self.row += 1

    @torch.no_grad()
    def _advance(self) -> None:
        """Feed the last tokens, sample the next."""
        self.logits = self.decode(self.last, self.kv, self.drawn)
        torch.minimum(self.kv.lengths, self.end, out=self.kv.lengths)
        self._sample(self.logits)

    def _capture(self, tolerance: float) -> torch.cuda.CUDAGraph:
        """A step as a CUDA graph, after runs on a side stream (compilation, library set-up)."""

        def once(step: Callable[[], Any]) -> Tensor:
            self._rewind()
            self.last.zero_()
            step()
            return self.logits

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                once(self._advance)
        torch.cuda.current_stream().wait_stream(side)
        eager = once(self._advance).clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._advance()
        error = relative_error(once(graph.replay), eager)
        if not error <= tolerance:
            raise RuntimeError(f"the captured graph's logits differ from the eager step's by {error:.3g}")
        return graph
