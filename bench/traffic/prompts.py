"""The token ids of planned requests: prompts that begin alike where the plan says so, and nowhere else.

What a prompt says does not matter to a server with random weights, but which prompts begin alike decides its prefix
cache. Request i's new tokens come from a generator seeded by (seed, i), so that any process makes the same prompt from
the plan alone:
    tokens(i) = tokens(prefix_of)[:shared_tokens] + new(seed, i)[:input_tokens - shared_tokens]
A prompt is kept only while a request that was not yet made begins with it; one asked for out of turn is made again from
its beginnings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from bench.traffic.records import Planned

Tokens = NDArray[np.int32]


class Prompts:
    """Prompts of the requests of one plan, over token ids from 0 to `vocab` - 1."""

    def __init__(self, vocab: int, seed: int, planned: Iterable[Planned]):
        self.vocab, self.seed = vocab, seed
        self.planned = {request.number: request for request in planned}
        self.kept: dict[int, Tokens] = {}
        self.made: set[int] = set()
        self.waiting = Counter(r.prefix_of for r in self.planned.values() if r.prefix_of is not None)
        for request in self.planned.values():
            self._check(request)

    def _check(self, request: Planned) -> None:
        if request.prefix_of is None:
            holds = request.shared_tokens == 0
        else:
            parent = self.planned.get(request.prefix_of)
            most = 0 if parent is None else min(parent.input_tokens, request.input_tokens)
            holds = parent is not None and parent.number < request.number and request.shared_tokens <= most
        if not holds:
            raise ValueError(
                f"request {request.number}: shares {request.shared_tokens} tokens with {request.prefix_of}; "
                "expected an earlier request and no more tokens than either prompt has"
            )

    def tokens(self, planned: Planned) -> Tokens:
        """The prompt of a request of the plan. (input_tokens,)"""
        chain = [planned]
        while chain[-1].prefix_of is not None and chain[-1].prefix_of not in self.kept:
            chain.append(self.planned[chain[-1].prefix_of])
        top = chain[-1].prefix_of
        before = np.zeros(0, dtype=np.int32) if top is None else self.kept[top]
        for request in reversed(chain):
            before = np.concatenate((before[: request.shared_tokens], self._new(request)))
            if self.waiting[request.number]:
                self.kept[request.number] = before
        self._done(planned)
        return before

    def _new(self, request: Planned) -> Tokens:
        count = request.input_tokens - request.shared_tokens
        return np.random.default_rng([self.seed, request.number]).integers(0, self.vocab, count, dtype=np.int32)

    def _done(self, request: Planned) -> None:
        """Nobody waits any longer for this request's sake."""
        if request.number in self.made or request.prefix_of is None:
            return
        self.made.add(request.number)
        self.waiting[request.prefix_of] -= 1
        if not self.waiting[request.prefix_of]:
            self.kept.pop(request.prefix_of, None)
