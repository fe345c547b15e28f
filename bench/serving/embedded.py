"""Drive the embedded engine: requests become due, the engine steps, tokens are noted, until all ended or time is up.

As generator.py does over a network: who is due when, dues.py says. Here client and
engine are one process, so a request that becomes due during a step waits for its end, as it would in a server's queue:
it counts as sent when it was due, and no client is ever late.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from threading import Event

import numpy as np

from bench.measure.clock import now
from bench.points.course import Course, in_flight
from bench.serving.engine import Engine
from bench.serving.request import Request
from bench.traffic.dues import Dues
from bench.traffic.records import CUT, Planned, Record

REFUSED = "refused"


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
    dues, course, open_records = Dues(planned, concurrency), Course(), dict[int, Record]()
    begin_s = now() if begin_s is None else begin_s
    engine.steps.clear()
    sleeper = Event()

    while (at_s := now() - begin_s) < deadline_s:
        while (next_s := dues.next_s) is not None and next_s <= at_s:
            due_s, one = dues.take()
            record = Record(one.number, due_s, due_s, one.input_tokens, one.output_tokens)
            course.records.append(record)
            try:
                engine.add(Request(one.number, tokens(one), one.output_tokens, temperature, top_p))
            except ValueError as error:
                record.status, record.reason, record.end_s = REFUSED, str(error), record.sent_s
                dues.ended(one.number, record.sent_s)
                continue
            open_records[one.number] = record
        if not engine.busy:
            if next_s is None:
                break
            sleeper.wait(min(next_s, deadline_s) - at_s)
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
                dues.ended(record.number, token_s)
    course.end_s = now() - begin_s
    course.max_num_seqs = engine.scheduler.max_num_seqs
    course.in_flight = in_flight(course.records)
    for record in open_records.values():
        record.status = CUT
    engine.clear()
    course.steps = [dataclasses.replace(step, start_s=step.start_s - begin_s) for step in engine.steps]
    return course
