"""A request inside the engine: its tokens, how far it has come, and which blocks of the cache are its own.

A token is computed once its keys and values are in the cache; the last token of a request never is, until the token
after it is wanted. Tokens are counted when the device was told to make them and known when the host has read them: the
engine may run one step ahead of what it knows (engine.py), so `total` can pass `len(tokens)` by one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(eq=False, slots=True)
class Request:
    """Exactly `max_tokens` tokens are generated: lengths come from traffic, not from what random weights say."""

    number: int
    prompt: np.ndarray  # int32 token ids, at least one
    max_tokens: int
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0
    output: list[int] = field(default_factory=list)  # generated and known
    generated: int = 0  # generated, known or not
    computed: int = 0  # tokens in the cache
    cached_tokens: int = 0  # of the prompt, found in the prefix cache when the request was first admitted
    preemptions: int = 0
    blocks: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)  # of the full blocks of known tokens, as far as needed
    published: int = 0  # leading blocks whose hashes the prefix cache has been told
    slot: int = -1  # row in the runner's tensors while it runs
    told: int = 0  # leading blocks the runner's table holds in that row
    live: bool = False  # the token to be fed next stands on the device, in the slot

    @property
    def total(self) -> int:
        """Tokens there are: prompt and generated."""
        return len(self.prompt) + self.generated

    @property
    def known(self) -> int:
        """Of them, those the host knows."""
        return len(self.prompt) + len(self.output)

    @property
    def done(self) -> bool:
        """Whether the last token has been asked for."""
        return self.generated >= self.max_tokens

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Known tokens start to stop, int32."""
        inside = self.prompt[start:stop]
        left = len(self.prompt)
        if stop <= left:
            return inside
        return np.concatenate((inside, np.asarray(self.output[max(0, start - left) : stop - left], dtype=np.int32)))

    def block_hashes(self, size: int, tokens: int) -> Sequence[bytes]:
        """A hash for each full block of the first `tokens` known tokens, each standing for all tokens up to its end."""
        for index in range(len(self.hashes), tokens // size):
            before = self.hashes[-1] if self.hashes else b""
            block = self.tokens(index * size, (index + 1) * size)
            self.hashes.append(hashlib.blake2b(before + block.tobytes(), digest_size=16).digest())
        return self.hashes[: tokens // size]
