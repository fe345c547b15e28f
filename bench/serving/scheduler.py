"""Which tokens the next step computes: continuous batching with chunked prefill, prefix reuse and preemption.

Running requests come first, each with all its tokens that are not yet computed (one, while it decodes), then waiting
ones in the order they came, until `max_num_batched_tokens` tokens or `max_num_seqs` requests are reached: a long
prompt is so cut into chunks that share steps with decoding (Orca, OSDI 2022; Sarathi-Serve, arXiv 2403.02310). Where
the cache is full, the request admitted last gives its blocks back and waits in front, to be computed again from
what the prefix cache still has (vLLM's preemption by recompute). Nothing is admitted in a step that preempted.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from bench.measure.clock import now
from bench.serving.blocks import Blocks
from bench.serving.request import Request


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens `start` to `start + count` of a request, computed in one step."""

    request: Request
    start: int
    count: int
    decode: bool  # one token that stands on the device: the one sampled in the step before
    samples: bool  # its last token is the request's last, so the next one is sampled


class Scheduler:
    """Requests waiting and running, and the blocks they hold."""

    def __init__(self, blocks: Blocks, *, max_num_seqs: int, max_num_batched_tokens: int):
        self.blocks, self.max_num_seqs, self.max_num_batched_tokens = blocks, max_num_seqs, max_num_batched_tokens
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.preemptions = 0
        self.lookup_s = 0.0  # host time of looking prefixes up, since somebody last set it to 0
        self._slots = list(range(max_num_seqs - 1, -1, -1))

    def add(self, request: Request) -> None:
        """Queue a request. Raises ValueError where the whole cache could not hold it."""
        most = len(request.prompt) + request.max_tokens - 1  # the last token's keys are never needed
        room = self.blocks.count * self.blocks.size
        if not len(request.prompt) or request.max_tokens < 1 or most > room:
            raise ValueError(
                f"request {request.number}: {len(request.prompt)} + {request.max_tokens} tokens; expected at least"
                f" one of each, and a cache of {room} to hold them"
            )
        self.waiting.append(request)

    def schedule(self) -> list[Piece]:
        """The next step's pieces, blocks allotted: those that decode first. Empty where nothing can run."""
        pieces: list[Piece] = []
        budget = self.max_num_batched_tokens
        before = self.preemptions
        position = 0
        while position < len(self.running) and budget:
            request = self.running[position]
            if request.done:  # its last token is on its way
                position += 1
                continue
            count = min(request.total - request.computed, budget)
            if not self._room(request, count):
                continue  # somebody was preempted: perhaps this request itself, the last
            pieces.append(_piece(request, count))
            budget -= count
            position += 1
        while self.preemptions == before and self.waiting and len(self.running) < self.max_num_seqs and budget:
            request = self.waiting[0]
            count = self._admitted(request, budget)
            if not count:
                break
            self.running.append(self.waiting.popleft())
            request.slot = self._slots.pop()
            pieces.append(_piece(request, count))
            budget -= count
        self._advance(pieces)
        return sorted(pieces, key=lambda piece: not piece.decode)

    def finish(self, request: Request) -> None:
        """All tokens of a request are known: its blocks and its slot are free."""
        self.running.remove(request)
        self._leave(request)

    def clear(self) -> None:
        """Forget every request, waiting or running."""
        for request in self.running:
            self._leave(request)
        self.running.clear()
        self.waiting.clear()

    def publish(self, request: Request) -> None:
        """Tell the prefix cache of every full block whose tokens are computed and known."""
        if not self.blocks.caching:
            return
        full = min(request.computed, request.known) // self.blocks.size
        if full > request.published:
            hashes = request.block_hashes(self.blocks.size, full * self.blocks.size)
            for index in range(request.published, full):
                self.blocks.publish(request.blocks[index], hashes[index])
            request.published = full

    def _needed(self, request: Request, tokens: int) -> int:
        return -(-tokens // self.blocks.size) - len(request.blocks)

    def _room(self, request: Request, count: int) -> bool:
        """Blocks for `count` more tokens of a running request; where there are none, preempt the last and say no."""
        needed = self._needed(request, request.computed + count)
        if needed > self.blocks.available:
            self._preempt(next(last for last in reversed(self.running) if not last.done))
            return False
        request.blocks += self.blocks.take(max(0, needed))
        return True

    def _admitted(self, request: Request, budget: int) -> int:
        """Tokens of a waiting request to compute now, its blocks allotted; 0 where it must wait on."""
        if request.known < request.total:  # preempted while its last token was on its way
            return 0
        size = self.blocks.size
        begun = now()
        # the last token is always computed: somebody has to give its logits
        hashes = request.block_hashes(size, request.known - 1) if self.blocks.caching else ()
        hit = self.blocks.matched(hashes)
        self.lookup_s += now() - begun
        count = min(request.total - len(hit) * size, budget)
        needed = -(-(len(hit) * size + count) // size) - len(hit)
        if needed > self.blocks.available - self.blocks.free_among(hit):
            return 0
        self.blocks.share(hit)
        request.blocks = hit + self.blocks.take(needed)
        request.computed = len(hit) * size
        request.published = len(hit)
        if not request.preemptions:
            request.cached_tokens = request.computed
        return count

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self._leave(request)
        request.computed, request.published, request.live = 0, 0, False
        request.preemptions += 1
        self.preemptions += 1
        self.waiting.appendleft(request)

    def _leave(self, request: Request) -> None:
        self.blocks.release(request.blocks)
        request.blocks = []
        self._slots.append(request.slot)
        request.slot, request.told = -1, 0

    def _advance(self, pieces: list[Piece]) -> None:
        """Count what the step will have done, so that the next one can be planned before this one has ended."""
        for piece in pieces:
            request = piece.request
            request.computed += piece.count
            if piece.samples:
                request.generated += 1
                request.live = True
            self.publish(request)


def _piece(request: Request, count: int) -> Piece:
    last = request.computed + count == request.total
    return Piece(request, request.computed, count, decode=request.live and count == 1, samples=last)
