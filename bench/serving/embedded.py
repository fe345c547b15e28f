"""Drive an engine of this process: requests become due, it steps, tokens are noted, until all ended or time is up.

As generator.py does over a network: who is due when, dues.py says. Here client and
engine are one process, so a request that becomes due during a step waits for its end, as it would in a server's queue:
it counts as sent when it was due, and no client is ever late. The engine is ours (engine.py), or a peer's
(bench/peers/serve), which may compute in a thread of its own: then a step is a short wait for what it has to say.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from threading import Event
from typing import Protocol

import numpy as np

from bench.measure.clock import now
from bench.points.course import Course, counted
from bench.points.steps import Step
from bench.serving.request import Request
from bench.traffic.dues import Dues
from bench.traffic.records import CUT, Planned, Record

REFUSED = "refused"
FAILED = "failed"


class Token(Protocol):
    """A request has one more token."""

    @property
    def number(self) -> int:
        """The request's."""

    @property
    def at_s(self) -> float:
        """On the host's clock."""

    @property
    def last(self) -> bool:
        """Whether the request has ended with it."""

    @property
    def cached_tokens(self) -> int | None:
        """Of its prompt, found in the prefix cache; None: not told."""


class Driven(Protocol):
    """What drives like our engine. `steps` stays empty where an engine tells none."""

    steps: list[Step]

    @property
    def max_num_seqs(self) -> int:
        """Requests it runs at once."""

    @property
    def failure(self) -> str | None:
        """Why it serves no more, in one line, or None: whatever is open then has failed."""

    @property
    def busy(self) -> bool:
        """Whether any request is unfinished."""

    @property
    def ended(self) -> int:
        """Requests whose last token it has given, since it was made: its own count, which no record is behind."""

    @property
    def cache_size(self) -> tuple[int, int]:
        """Blocks of the paged cache, and their bytes."""

    def begin(self) -> None:
        """Be ready, with an empty prefix cache: called before each load."""

    def add(self, request: Request) -> None:
        """Queue a request. Raises ValueError where it refuses it."""

    def step(self) -> Sequence[Token]:
        """Go on; the tokens that have become known meanwhile, in order."""

    def clear(self) -> None:
        """Forget every unfinished request."""


def drive(
    engine: Driven,
    planned: Sequence[Planned],
    tokens: Callable[[Planned], np.ndarray],
    *,
    concurrency: int | None = None,
    until_s: float = math.inf,
    limit_s: float,
    begin_s: float | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
) -> Course:
    """Send all of `planned` to an idle engine, until all that was due by `until_s` has ended.

    At `limit_s`, or then, what is still running is cut, and the engine emptied. The same happens as soon as the engine
    fails, and what is open has failed with it. `begin_s`: the instant of the clock that times are counted from; None:
    now.
    """
    dues, course, open_records = Dues(planned, concurrency), Course(), dict[int, Record]()
    changes: list[tuple[float, int]] = []  # of the requests in flight: when due, and when the engine says they ended
    ended = engine.ended
    begin_s = now() if begin_s is None else begin_s
    engine.steps.clear()
    sleeper = Event()

    while engine.failure is None and (at_s := now() - begin_s) < limit_s:
        if at_s >= until_s and not any(record.scheduled_s <= until_s for record in open_records.values()):
            break
        while (next_s := dues.next_s) is not None and next_s <= at_s:
            due_s, one = dues.take()
            record = Record(one.number, due_s, due_s, one.input_tokens, one.output_tokens)
            course.records.append(record)
            changes.append((due_s, 1))
            try:
                engine.add(Request(one.number, tokens(one), one.output_tokens, temperature, top_p))
            except ValueError as error:
                record.status, record.reason, record.end_s = REFUSED, str(error), record.sent_s
                changes.append((due_s, -1))
                dues.ended(one.number, record.sent_s)
                continue
            open_records[one.number] = record
        if not engine.busy:
            if next_s is None:
                break
            sleeper.wait(min(next_s, limit_s) - at_s)
            continue
        tokens_given = engine.step()
        for token in tokens_given:
            record = open_records[token.number]
            token_s = token.at_s - begin_s
            record.token_s.append(token_s)
            record.output_tokens += 1
            record.cached_tokens = token.cached_tokens
            if record.first_token_s is None:
                record.first_token_s = token_s
            if token.last:
                record.end_s = token_s
                del open_records[record.number]
                dues.ended(record.number, token_s)
        if engine.ended > ended:
            changes.append((tokens_given[-1].at_s - begin_s, ended - engine.ended))
            ended = engine.ended
    course.end_s = now() - begin_s
    course.max_num_seqs = engine.max_num_seqs
    for record in open_records.values():
        record.status = CUT
        if engine.failure is not None:
            record.status, record.reason, record.end_s = FAILED, engine.failure, course.end_s
    course.in_flight = counted(changes)
    engine.clear()
    course.steps = [dataclasses.replace(step, start_s=step.start_s - begin_s) for step in engine.steps]
    return course
