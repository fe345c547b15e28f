"""Several processes of one torchrun measuring one run: rank 0 leads and keeps the journal, the others follow.

    torchrun --nproc-per-node 8 -m bench run        each process has a worker of its own, bound to its own GPU

What is to be called travels through the key-value store of torchrun's rendezvous (torch.distributed's TCPStore):

    call/<n>          rank 0: {"call", "arguments", "limit_s", "fresh"}, or null when the run is over
    failed/<n>        the first rank whose cell did not end well: {"status", "reason"}
    ended/<n>/<rank>  that rank is through with it

A rank that waits looks at `failed` every second and then kills its own worker, which may sit in a collective that will
never end: so a cell that one rank cannot finish ends on all of them, with that rank's status.
"""

from __future__ import annotations

import datetime
import json
import os
import signal
from dataclasses import dataclass
from typing import Any

from bench.measure.clock import now
from bench.measure.worker import LOOK_S, Worker, WorkerDied

MEET_S = 600.0  # for the other ranks to come to the next call: they may still be starting
FAREWELL_S = 20.0
RUN = "bench.measure.cell:run"


class Ended(Exception):
    """torchrun is ending this process: another rank has died."""


@dataclass(frozen=True)
class World:
    """This process among those that torchrun started."""

    rank: int
    size: int


def world() -> World | None:
    """From torchrun's environment; None where this process is alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    return World(int(os.environ["RANK"]), size) if size > 1 else None


def open_store() -> Any:
    """The store all ranks share. Waits for rank 0's machine to answer."""
    import torch.distributed as dist

    store, _, _ = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
    return dist.PrefixStore("crossover", store)  # type: ignore[attr-defined]


class Crew:
    """Rank 0's caller: `call` asks its own worker, `together` every rank's. See run.py: Caller."""

    def __init__(self, world: World, store: Any, worker: Worker | None = None):
        self.world, self.store, self.worker = world, store, worker or Worker()
        self.number, self.fresh = 0, False
        signal.signal(signal.SIGTERM, _end)

    def call(self, target: str, arguments: dict[str, Any], limit_s: float) -> Any:
        """The answer of this rank's own worker."""
        return self.worker.call(target, arguments, limit_s)

    def together(self, arguments: dict[str, Any], limit_s: float) -> Any:
        """The cell's row, measured by all ranks. Raises WorkerDied where one of them fails without a row."""
        self.number += 1
        asked = {"arguments": arguments, "limit_s": limit_s, "fresh": self.fresh}
        self.store.set(f"call/{self.number}", json.dumps(asked))
        self.fresh = False
        start = now()
        answer = _take_part(self.worker, self.world, self.store, self.number, arguments, limit_s)
        others = [f"ended/{self.number}/{rank}" for rank in range(1, self.world.size)]
        while not self.store.check(others):
            if now() - start > limit_s + FAREWELL_S:
                missing = [key.rsplit("/", 1)[1] for key in others if not self.store.check([key])]
                raise WorkerDied("timeout", f"no answer from rank {', '.join(missing)} within {limit_s:g} s")
            _wait(self.store, others, LOOK_S)
        return answer

    def stop(self) -> None:
        """End this rank's worker now and the others' before their next call."""
        self.fresh = True
        self.worker.stop()

    def close(self) -> None:
        """Let the other ranks go."""
        self.worker.stop()
        self.store.set(f"call/{self.number + 1}", "null")
        _wait(self.store, [f"gone/{rank}" for rank in range(1, self.world.size)], FAREWELL_S)


def follow(world: World, store: Any) -> None:
    """The life of every rank but the first: measure along until rank 0 says it is over."""
    worker, number = Worker(), 0
    try:
        while True:
            number += 1
            while not _wait(store, [f"call/{number}"], MEET_S):
                pass  # rank 0 may be busy with cells of its own; if it dies, torchrun ends this process
            asked = json.loads(store.get(f"call/{number}"))
            if asked is None:
                break
            if asked["fresh"]:
                worker.stop()
            try:
                _take_part(worker, world, store, number, asked["arguments"], asked["limit_s"])
            except WorkerDied:
                worker.stop()
            store.set(f"ended/{number}/{world.rank}", "1")
    finally:
        worker.stop()
    store.set(f"gone/{world.rank}", "1")


def _take_part(
    worker: Worker, world: World, store: Any, number: int, arguments: dict[str, Any], limit_s: float
) -> dict[str, Any]:
    """This rank's part of a cell; its failure is told to all, another's ends it. The row, as all ranks have it."""
    failed = f"failed/{number}"

    def other() -> str | None:
        return store.get(failed).decode() if store.check([failed]) else None

    asked = arguments | {"world": {"rank": world.rank, "world_size": world.size, "group": number}}
    try:
        answer: dict[str, Any] = worker.call(RUN, asked, limit_s, unless=other)
    except WorkerDied as death:
        answer = {"status": death.status, "reason": death.reason}
    if answer["status"] == "ok":
        return answer
    if answer["status"] == "error":  # perhaps only the echo of a rank that died, whose own word is on its way
        _wait(store, [failed], 2 * LOOK_S)
    told = json.dumps({"status": answer["status"], "reason": f"rank {world.rank}: {answer['reason']}"})
    # the first to fail says why: what the others die of follows from it
    first: dict[str, Any] = json.loads(store.compare_set(failed, "", told))
    return answer | first


def _wait(store: Any, keys: list[str], seconds: float) -> bool:
    """Whether all keys were there within that time."""
    try:
        store.wait(keys, datetime.timedelta(seconds=seconds))
    except Exception as error:  # the store's own time-out has another type in each torch
        if "time" in str(error).lower():
            return False
        raise
    return True


def _end(number: int, frame: object) -> None:
    raise Ended("torchrun ended this process: another rank had died")
