"""The engine: plan a step, send it, and read what the step before has said.

    loop:  pieces = schedule();  launch(pieces);  land(the step launched before)

On a GPU the engine runs one step ahead: while a step computes, the host plans the next one, which needs no token's
value, since the token to be fed stands on the device and lengths are known in advance. So the time of scheduling is
hidden unless it is longer than a step. A CPU does its work within `launch`, and lands at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bench.measure.clock import now
from bench.points.steps import Step
from bench.serving.request import Request
from bench.serving.runner import Launched, Runner
from bench.serving.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class Token:
    """A request has one more token."""

    number: int  # the request's
    at_s: float
    last: bool
    cached_tokens: int | None  # of its prompt, found in the prefix cache


@dataclass
class Engine:
    """Requests in, tokens out."""

    scheduler: Scheduler
    runner: Runner
    ahead: bool = True  # plan a step before the one before it has ended
    steps: list[Step] = field(default_factory=list)
    failure: str | None = None  # it raises what goes wrong
    ended: int = 0  # requests whose last token was given
    _flying: Launched | None = None

    @property
    def max_num_seqs(self) -> int:
        """Requests it runs at once."""
        return self.scheduler.max_num_seqs

    @property
    def cache_size(self) -> tuple[int, int]:
        """Blocks of the paged cache, and their bytes."""
        return self.scheduler.blocks.count, self.runner.cache.bytes

    def begin(self) -> None:
        """Empty the prefix cache."""
        self.scheduler.blocks.forget()

    @property
    def busy(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self.scheduler.waiting or self.scheduler.running)

    def add(self, request: Request) -> None:
        """Queue a request. Raises ValueError where the cache could never hold it."""
        longest = len(request.prompt) + request.max_tokens
        room = self.runner.table.shape[1] * self.runner.size
        if longest > room:
            raise ValueError(f"request {request.number}: {longest} tokens; expected at most max_model_len = {room}")
        self.scheduler.add(request)

    def step(self) -> list[Token]:
        """Send the next step; the tokens that have become known meanwhile, in order."""
        pieces = self.scheduler.schedule()
        launched = self.runner.launch(pieces) if pieces else None
        tokens = self._land(self._flying)
        self._flying = launched
        if not self.ahead:
            tokens += self._land(launched)
            self._flying = None
        return tokens

    def clear(self) -> None:
        """Forget every unfinished request; the prefix cache stays as it is."""
        self._land(self._flying)
        self._flying = None
        self.scheduler.clear()

    def _land(self, launched: Launched | None) -> list[Token]:
        if launched is None:
            return []
        values, device_s = launched.wait()
        at = now()
        found = []
        for piece, value in zip((p for p in launched.pieces if p.samples), values, strict=True):
            request = piece.request
            found.append(Token(request.number, at, self.accept(request, value), request.cached_tokens))
        self._log(launched, at, device_s)
        return found

    def accept(self, request: Request, value: int) -> bool:
        """A token of the request has become known; whether it was the last."""
        request.output.append(value)
        last = len(request.output) == request.max_tokens
        if request.slot >= 0:  # else it was preempted meanwhile
            self.scheduler.publish(request)
        if last:
            self.scheduler.finish(request)
            self.ended += 1
        return last

    def _log(self, launched: Launched, at: float, device_s: float) -> None:
        pieces, scheduler = launched.pieces, self.scheduler
        decodes = sum(piece.decode for piece in pieces)
        self.steps.append(
            Step(
                start_s=at - device_s,
                duration_s=device_s,
                prefill_tokens=sum(piece.count for piece in pieces) - decodes,
                decode_sequences=decodes,
                kv_tokens=sum(piece.start + piece.count for piece in pieces),
                decode_kv_tokens=sum(piece.start + 1 for piece in pieces[:decodes]),
                waiting=len(scheduler.waiting),
                cached_blocks=scheduler.blocks.idle_prefixes,
                lookup_s=scheduler.lookup_s,
            )
        )
        scheduler.lookup_s = 0.0
