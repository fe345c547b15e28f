"""Drive the embedded engine: requests become due, the engine steps, tokens are noted, until all ended or time is up.

As generator.py does over a network: an open loop sends each request at its `arrival_s`; a closed one keeps
`concurrency` users, each of whom goes through the turns of a session, thinking between them. Here client and
engine are one process, so a request that becomes due during a step waits for its end, as it would in a server's queue:
it counts as sent when it was due, and no client is ever late.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from threading import Event

import numpy as np

from bench.measure.clock import now
from bench.serving.engine import Engine
from bench.serving.records import Planned, Record
from bench.serving.request import Request
from bench.serving.steps import Step

CUT = "cut"
REFUSED = "refused"


@dataclass
class Course:
    """What one load point was: seconds since its start."""

    records: list[Record] = field(default_factory=list)
    in_flight: list[tuple[float, int]] = field(
        default_factory=list
    )  # (when, requests sent and not ended), as it changed
    steps: list[Step] = field(default_factory=list)
    end_s: float = 0.0


class _Plan:
    """Who is due when: a heap of arrivals, users who come one after another, and turns that wait for the one before."""

    def __init__(self, planned: Sequence[Planned], concurrency: int | None):
        self.later: dict[int, list[Planned]] = {}
        for one in planned:
            if one.after is not None:
                self.later.setdefault(one.after, []).append(one)
        first = [one for one in planned if one.after is None]
        self.users = iter([one for one in first if one.arrival_s is None])
        self.due = [(one.arrival_s, one.number, one) for one in first if one.arrival_s is not None]
        heapq.heapify(self.due)
        self.user: dict[int, int] = {}  # request -> its user's first request
        self.turns: dict[int, int] = {}  # of each user: turns sent or to come
        for _ in range(concurrency or 0):
            self.next_user(0.0)

    def next_user(self, at_s: float) -> None:
        one = next(self.users, None)
        if one is not None:
            heapq.heappush(self.due, (at_s, one.number, one))
            self.user[one.number] = one.number
            self.turns[one.number] = 1

    def take(self, at_s: float) -> tuple[float, Planned] | None:
        """The next request due by then."""
        if not self.due or self.due[0][0] > at_s:
            return None
        due_s, _, one = heapq.heappop(self.due)
        return due_s, one

    def ended(self, number: int, at_s: float) -> None:
        """Its later turns get their time; where a user has none left, the next one comes."""
        turns = self.later.get(number, [])
        for one in turns:
            heapq.heappush(self.due, (at_s + one.think_s, one.number, one))
        first = self.user.pop(number, None)
        if first is None:
            return
        self.turns[first] += len(turns) - 1
        self.user |= dict.fromkeys((one.number for one in turns), first)
        if not self.turns[first]:
            self.next_user(at_s)


def _in_flight(records: Sequence[Record]) -> list[tuple[float, int]]:
    """How many requests were sent and not ended, after each change."""
    changes = [(record.sent_s, 1) for record in records]
    changes += [(record.end_s, -1) for record in records if record.end_s is not None]
    changes.sort()
    return list(zip((at_s for at_s, _ in changes), accumulate(by for _, by in changes), strict=True))


def drive(
    engine: Engine,
    planned: Sequence[Planned],
    tokens: Callable[[Planned], np.ndarray],
    *,
    concurrency: int | None = None,
    deadline_s: float,
    begin_s: float | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
) -> Course:
    """Send all of `planned` to an idle engine; at `deadline_s` what is still running is cut, and the engine emptied.

    `begin_s`: the instant of the clock that times are counted from; None: now.
    """
    plan, course, open_records = _Plan(planned, concurrency), Course(), dict[int, Record]()
    begin_s = now() if begin_s is None else begin_s
    engine.steps.clear()
    sleeper = Event()

    while (at_s := now() - begin_s) < deadline_s:
        while (taken := plan.take(at_s)) is not None:
            due_s, one = taken
            record = Record(one.number, due_s, due_s, one.input_tokens, one.output_tokens)
            course.records.append(record)
            try:
                engine.add(Request(one.number, tokens(one), one.output_tokens, temperature, top_p))
            except ValueError as error:
                record.status, record.reason, record.end_s = REFUSED, str(error), record.sent_s
                plan.ended(one.number, record.sent_s)
                continue
            open_records[one.number] = record
        if not engine.busy:
            if not plan.due:
                break
            sleeper.wait(min(plan.due[0][0], deadline_s) - at_s)
            continue
        for token in engine.step():
            record = open_records[token.request.number]
            token_s = token.at_s - begin_s
            record.token_s.append(token_s)
            record.output_tokens += 1
            record.cached_tokens = token.request.cached_tokens
            if record.first_token_s is None:
                record.first_token_s = token_s
            if token.last:
                record.end_s = token_s
                del open_records[record.number]
                plan.ended(record.number, token_s)
    course.end_s = now() - begin_s
    course.in_flight = _in_flight(course.records)
    for record in open_records.values():
        record.status = CUT
    engine.clear()
    course.steps = [dataclasses.replace(step, start_s=step.start_s - begin_s) for step in engine.steps]
    return course
