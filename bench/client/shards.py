"""The load generator in several processes, for more streams than one Python process can read.

Each shard is a `drive` of its own in a fresh process (spawn). Requests are dealt round robin; the turns of a session,
which wait for each other, stay together. All shards prepare their prompts, say so, and are then told one instant to
start at: `clock.now` is the machine's monotonic clock, the same in every process on Linux and macOS. Their records
come back as one `Run`. A shard that dies takes its requests with it: they are `lost`, and a note says why.

Ctrl-C reaches the parent alone, which asks the shards to stop and still gets their records. A shard whose parent is
gone stops too.
"""

from __future__ import annotations

import contextlib
import heapq
import math
import multiprocessing
import multiprocessing.connection
import signal
from collections.abc import Callable, Sequence
from multiprocessing.context import SpawnProcess

from bench.client.address import Endpoint
from bench.client.generator import GRACE_S, Run, check, drive
from bench.measure.clock import now
from bench.traffic.records import Planned, Record

LOST = "lost"
LEAD_S = 0.2  # from the telling to the start
READY_S = 600.0  # for prompts to be made
MARGIN_S = 30.0  # beyond deadline and grace, for records to come back
Pipe = multiprocessing.connection.Connection


def drive_sharded(
    endpoint: Endpoint,
    planned: Sequence[Planned],
    text: Callable[[Planned], str],
    *,
    shards: int,
    concurrency: int | None = None,
    deadline_s: float,
    until_s: float = math.inf,
) -> Run:
    """`drive`, spread over `shards` processes; `text` must be picklable."""
    if shards < 2:
        return drive(endpoint, planned, text, concurrency=concurrency, deadline_s=deadline_s, until_s=until_s)
    check(planned, concurrency)
    endpoint.key()
    dealt = deal(planned, shards)
    if concurrency is not None and concurrency < shards:
        raise ValueError(f"concurrency {concurrency}: less than one for each of {shards} shards")
    spawn = multiprocessing.get_context("spawn")
    crew: list[tuple[SpawnProcess, Pipe]] = []
    for index, share in enumerate(dealt):
        mine, theirs = spawn.Pipe()
        places = None if concurrency is None else concurrency // shards + (index < concurrency % shards)
        arguments = (theirs, endpoint, share, text, places, deadline_s, until_s)
        process = spawn.Process(target=_shard, args=arguments, daemon=True)
        process.start()
        theirs.close()
        crew.append((process, mine))
    try:
        return _gathered(crew, dealt, deadline_s)
    finally:
        for process, pipe in crew:
            pipe.close()
            process.kill()
            process.join()


def deal(planned: Sequence[Planned], shards: int) -> list[list[Planned]]:
    """A share for each shard, in the order planned; a request goes where the one it comes after went."""
    place: dict[int, int] = {}
    shares: list[list[Planned]] = [[] for _ in range(shards)]
    turn = 0
    for one in sorted(planned, key=lambda one: one.number):
        if one.after is None:
            place[one.number], turn = turn % shards, turn + 1
        else:
            place[one.number] = place[one.after]
        shares[place[one.number]].append(one)
    return shares


def _shard(
    pipe: Pipe,
    endpoint: Endpoint,
    share: list[Planned],
    text: Callable[[Planned], str],
    concurrency: int | None,
    deadline_s: float,
    until_s: float,
) -> None:
    """One process: make the prompts, wait for the start, drive, answer with the run, or with the error's one line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def start() -> float:
        pipe.send("ready")
        return float(pipe.recv())

    try:
        times = {"deadline_s": deadline_s, "until_s": until_s}
        run = drive(endpoint, share, text, concurrency=concurrency, **times, start=start, stop=pipe)
        pipe.send(run)
    except (EOFError, BrokenPipeError):
        return
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")


def _gathered(crew: list[tuple[SpawnProcess, Pipe]], dealt: list[list[Planned]], deadline_s: float) -> Run:
    gone: dict[int, str] = {}
    ready: dict[int, object] = {}
    _receive(crew, set(range(len(crew))), READY_S, ready, gone)
    gone |= {index: str(answer) for index, answer in ready.items() if answer != "ready"}
    start_s = now() + LEAD_S
    for index, (_, pipe) in enumerate(crew):
        if index not in gone:
            try:
                pipe.send(start_s)
            except OSError:
                gone[index] = "it ended before the start"
    started = set(range(len(crew))) - set(gone)
    answers: dict[int, object] = {}
    interrupted = False
    try:
        _receive(crew, started, LEAD_S + deadline_s + GRACE_S + MARGIN_S, answers, gone)
    except KeyboardInterrupt:
        interrupted = True
        for index in started - set(answers) - set(gone):
            with contextlib.suppress(OSError):  # it has just ended by itself
                crew[index][1].send("stop")
        _receive(crew, started, GRACE_S + MARGIN_S, answers, gone)
    runs = {index: run for index, run in answers.items() if isinstance(run, Run)}
    gone |= {index: str(answer) for index, answer in answers.items() if index not in runs}
    run = merged(list(runs.values()), {index: (why, dealt[index]) for index, why in gone.items()})
    run.interrupted = run.interrupted or interrupted
    return run


def _receive(
    crew: list[tuple[SpawnProcess, Pipe]],
    wanted: set[int],
    within_s: float,
    answers: dict[int, object],
    gone: dict[int, str],
) -> None:
    """One message from each shard of `wanted`, into `answers`; of those that have none to give, `gone` says why."""
    end_s = now() + within_s
    while missing := wanted - set(answers) - set(gone):
        pipes = {crew[index][1]: index for index in missing}
        ready = multiprocessing.connection.wait(list(pipes), max(0.0, end_s - now()))
        if not ready:
            gone |= dict.fromkeys(missing, f"it did not answer within {within_s:g} s")
        for pipe in ready:
            index = pipes[pipe]  # type: ignore[index]
            try:
                answers[index] = crew[index][1].recv()
            except (EOFError, OSError):
                process = crew[index][0]
                process.join(1.0)
                gone[index] = f"its process ended with exit code {process.exitcode}"


def merged(runs: Sequence[Run], lost: dict[int, tuple[str, list[Planned]]]) -> Run:
    """Several shards' runs as one. `lost`: of each shard that gave none, why, and the requests it had."""
    records = [record for run in runs for record in run.records]
    for why, share in lost.values():
        for one in share:
            due_s = one.arrival_s or 0.0
            record = Record(one.number, due_s, due_s, one.input_tokens, one.output_tokens, status=LOST, reason=why)
            records.append(record)
    records.sort(key=lambda record: record.number)
    return Run(
        records,
        added([run.in_flight for run in runs]),
        max((run.end_s for run in runs), default=0.0),
        sum(run.unsent for run in runs),
        any(run.interrupted for run in runs),
        [lag for run in runs for lag in run.tick_lag_s],
        [note for run in runs for note in run.notes]
        + [f"shard {index} was lost with {len(share)} requests: {why}" for index, (why, share) in lost.items()],
    )


def added(samples: Sequence[list[tuple[float, int]]]) -> list[tuple[float, int]]:
    """The sum over shards, at every instant at which one of them counted; each counts with its latest until then."""
    latest = [0] * len(samples)
    out = []
    for at_s, shard, count in heapq.merge(*([(t, i, n) for t, n in series] for i, series in enumerate(samples))):
        latest[shard] = count
        out.append((at_s, sum(latest)))
    return out
