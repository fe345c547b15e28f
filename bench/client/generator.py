"""Many requests on one event loop: sent when they are due, open loop or closed, until all have ended or time is up.

Who is due when, dues.py says; a request leaves then, whatever the server is doing.

A load generator that is itself too slow makes a server look slow, so it says how late it was: each record has when it
was due and when it was sent, and `Run.tick_lag_s` how late a timer 25 times a second fired, which shows an event loop
that is too busy to read in time even where nothing is due.
"""

from __future__ import annotations

import asyncio
import gc
import math
import multiprocessing.connection
import resource
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field

from bench.client.address import ChatRequest, Endpoint
from bench.client.client import UNCOUNTED, Client, connect, stream
from bench.measure.clock import now
from bench.traffic.dues import Dues
from bench.traffic.records import CUT, OK, Planned, Record

TICKS_PER_S = 25
EARLY_S = 1.2e-3  # epoll wakes up to a millisecond late: what is left of the wait is spun, reading sockets meanwhile
GRACE_S = 5.0  # for requests that are cut to come to their end
SPARE_FILES = 64


@dataclass
class Run:
    """What one loop, or several merged, measured. Seconds since the start."""

    records: list[Record]  # of the requests that were sent, by number
    in_flight: list[tuple[float, int]]  # (when, requests sent and not ended), at each change and at 25 Hz
    end_s: float  # the interval is 0 to this
    unsent: int = 0  # planned, not due before the end
    interrupted: bool = False
    tick_lag_s: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what a reader should know, a line each


def drive(
    endpoint: Endpoint,
    planned: Sequence[Planned],
    text: Callable[[Planned], str],
    *,
    concurrency: int | None = None,
    deadline_s: float,
    until_s: float = math.inf,
    start: Callable[[], float] = now,
    stop: multiprocessing.connection.Connection | None = None,
) -> Run:
    """Send all of `planned`, the prompts made by `text` beforehand, and wait for the answers.

    Once all that was due by `until_s` has ended, at `deadline_s` after the start, on Ctrl-C, or when `stop` has
    something to read, requests in flight are cut.
    `start` is asked once all is prepared for the instant to begin at, on `clock.now`. Raises ValueError, one line, on a
    plan or an endpoint that cannot be driven.
    """
    endpoint.key()
    check(planned, concurrency)
    allow_files(concurrency or 0)
    bodies = {one.number: ChatRequest(text(one), one.output_tokens).body(endpoint) for one in planned}
    # a collection stops all streams, for a tenth of a second once there are thousands; it would find next to nothing
    # (317 objects after 5,000 requests), for what a request leaves behind has no cycles
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        return asyncio.run(_Drive(endpoint, planned, bodies, concurrency, deadline_s, until_s).run(start, stop))
    finally:
        if collecting:
            gc.enable()


def check(planned: Sequence[Planned], concurrency: int | None) -> None:
    """Raises ValueError, one line, on a plan that contradicts itself."""
    known = {one.number for one in planned}
    if len(known) != len(planned):
        raise ValueError("two planned requests have one number")
    for one in planned:
        if one.after is not None and (one.after not in known or one.after >= one.number):
            raise ValueError(f"request {one.number} comes after {one.after}, which is not planned before it")
        if one.after is None and one.arrival_s is None and concurrency is None:
            raise ValueError(f"request {one.number} has no arrival: a closed loop needs a concurrency")
    if concurrency is not None and concurrency < 1:
        raise ValueError(f"concurrency {concurrency}: expected at least 1")


def allow_files(connections: int) -> None:
    """As many open files as the system grants. Raises ValueError where they cannot do."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and connections + SPARE_FILES > hard:
        raise ValueError(f"{connections} connections: this system allows a process {hard} open files (ulimit -n)")


class _Drive:
    """The state of one loop."""

    def __init__(
        self,
        endpoint: Endpoint,
        planned: Sequence[Planned],
        bodies: dict[int, bytes],
        concurrency: int | None,
        deadline_s: float,
        until_s: float,
    ):
        self.endpoint, self.bodies, self.deadline_s, self.until_s = endpoint, bodies, deadline_s, until_s
        self.dues = Dues(planned, concurrency)
        self.left = len(planned)  # not ended yet
        self.idle: list[Client] = []
        self.busy: dict[asyncio.Task[None], tuple[Client, Planned, float]] = {}
        self.error: Exception | None = None
        self.sent = 0  # and not ended
        self.records: list[Record] = []
        self.samples: list[tuple[float, int]] = []
        self.lags: list[float] = []
        self.wake, self.over = asyncio.Event(), asyncio.Event()
        self.begin_s = 0.0

    def clock(self) -> float:
        """Seconds since the start."""
        return now() - self.begin_s

    async def run(self, start: Callable[[], float], stop: multiprocessing.connection.Connection | None) -> Run:
        loop = asyncio.get_running_loop()
        self.begin_s = start()
        interrupted = False

        def halt() -> None:
            nonlocal interrupted
            interrupted = True
            loop.remove_reader(stop)  # type: ignore[arg-type]
            self.over.set()

        if stop is not None:
            loop.add_reader(stop, halt)
        helpers = []
        try:
            await asyncio.sleep(-self.clock())
            helpers = [asyncio.create_task(self._guarded(work)) for work in (self._dispatch(), self._sample())]
            async with asyncio.timeout(self.deadline_s - self.clock()):
                if self.left:
                    await self.over.wait()
        except TimeoutError:
            pass
        except asyncio.CancelledError:  # Ctrl-C: what was measured is worth keeping
            interrupted = True
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
        for helper in helpers:
            helper.cancel()
        await self._cut()
        end_s = self.clock()
        for client in self.idle:
            await client.aclose()
        if stop is not None:
            loop.remove_reader(stop)
        if self.error is not None:
            raise self.error
        self.records.sort(key=lambda record: record.number)
        return Run(self.records, self.samples, end_s, self.left, interrupted, self.lags)

    async def _guarded(self, work: Coroutine[None, None, None]) -> None:
        """A mistake of ours ends the measurement; unseen it would only make it wait."""
        try:
            await work
        except Exception as error:
            self.error = error
            self.over.set()

    async def _dispatch(self) -> None:
        loop = asyncio.get_running_loop()
        while self.left:
            next_s = self.dues.next_s
            gap_s = None if next_s is None else next_s - self.clock()
            if gap_s is None or gap_s > EARLY_S:
                timer = None if gap_s is None else loop.call_later(gap_s - EARLY_S, self.wake.set)
                await self.wake.wait()
                self.wake.clear()
                if timer is not None:
                    timer.cancel()
            elif gap_s > 0:
                await asyncio.sleep(0)
            else:
                due_s, one = self.dues.take()
                client = self.idle.pop() if self.idle else connect(self.endpoint)
                task = asyncio.create_task(self._guarded(self._one(client, one, due_s)))
                self.busy[task] = (client, one, due_s)

    async def _one(self, client: Client, one: Planned, due_s: float) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.sent += 1
        self._counted()
        try:
            record = await stream(client, self.bodies.pop(one.number), one, due_s, self.clock)
        finally:
            del self.busy[task]
            self.sent -= 1
            self._counted()
        self.records.append(record)
        self.left -= 1
        self.dues.ended(one.number, self.clock())
        self.wake.set()
        if not self.left:
            self.over.set()
        self._look()
        if record.status in (OK, UNCOUNTED):
            self.idle.append(client)
        else:
            await client.aclose()

    def _counted(self) -> float:
        """Put down how many are in flight now; short answers begin and end between two ticks."""
        at_s = self.clock()
        self.samples.append((at_s, self.sent))
        return at_s

    def _look(self) -> None:
        """Whether all that was due by `until_s` has ended."""
        if self.clock() >= self.until_s and not any(due_s <= self.until_s for _, _, due_s in self.busy.values()):
            self.over.set()

    async def _sample(self) -> None:
        tick = 0
        while True:
            due_s = tick / TICKS_PER_S
            await asyncio.sleep(due_s - self.clock())
            at_s = self._counted()
            self.lags.append(at_s - due_s)
            self._look()
            tick = max(tick + 1, int(at_s * TICKS_PER_S))

    async def _cut(self) -> None:
        """End what is in flight, each with its record."""
        tasks = list(self.busy)
        for client, _, _ in list(self.busy.values()):
            client.cut()
        if tasks:
            await asyncio.wait(tasks, timeout=GRACE_S)
        for task, (_, one, due_s) in list(self.busy.items()):
            task.cancel()
            lost = Record(one.number, due_s, due_s, one.input_tokens, one.output_tokens, status=CUT)
            lost.reason = "still running at the end, and did not stop when told to"
            self.records.append(lost)
            self.left -= 1
