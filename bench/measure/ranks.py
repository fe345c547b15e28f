"""A cell that several processes measure together: joining torch's process group, one clock, one answer.

torchrun has started one process a GPU (torch.distributed; nothing here is home-made). A step holds collectives, so
all ranks must take the same number of steps: every time that decides is the same on all of them, the slowest rank's
for a sample and rank 0's for the hour. Memory is the largest rank's, energy the sum of the boards'.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from bench.measure.clock import Timer

JOIN_LIMIT_S = 120.0  # for all ranks to import torch and meet


@contextmanager
def joined(world: dict[str, Any] | None, device: str) -> Iterator[None]:
    """Inside the block this process is one rank of the default process group; without a world nothing happens.

    `world`: rank, world_size, and `group`, a name that no other cell of the run has. The store is torchrun's.
    """
    if world is None:
        yield
        return
    import torch
    import torch.distributed as dist

    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    limit = datetime.timedelta(seconds=JOIN_LIMIT_S)
    store = dist.TCPStore(*meeting_place(), None, False, limit)  # type: ignore[attr-defined]
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
        store=dist.PrefixStore(f"crossover/{world['group']}", store),  # type: ignore[attr-defined]
        rank=world["rank"],
        world_size=world["world_size"],
    )
    # not after an error: the others may sit in a collective this rank will never enter, and leaving would wait for
    # them; its worker is replaced
    yield
    dist.destroy_process_group()


def meeting_place() -> tuple[str, int]:
    """Where torchrun's store answers."""
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])


class RankTimer:
    """A timer whose every answer is the same on all ranks."""

    def __init__(self, timer: Timer):
        self.timer = timer

    def now(self) -> float:
        """Rank 0's clock."""
        import torch
        import torch.distributed as dist

        told = torch.tensor([self.timer.now()], dtype=torch.float64)
        dist.broadcast(told, 0)
        return float(told)

    def times(self, step: Callable[[], object], samples: int, group: int) -> list[float]:
        """Each sample is the slowest rank's."""
        import torch
        import torch.distributed as dist

        spans = torch.tensor(self.timer.times(step, samples, group), dtype=torch.float64)
        dist.all_reduce(spans, dist.ReduceOp.MAX)
        return [float(span) for span in spans]


def worst(error: float) -> float:
    """The largest of all ranks' numbers, NaN where one is."""
    import torch
    import torch.distributed as dist

    told = torch.tensor([error], dtype=torch.float64)
    dist.all_reduce(told.nan_to_num_(nan=float("inf")), dist.ReduceOp.MAX)
    return float("nan") if told.isinf() else float(told)


def total(value: float) -> float:
    """The sum of all ranks' numbers."""
    import torch
    import torch.distributed as dist

    told = torch.tensor([value], dtype=torch.float64)
    dist.all_reduce(told)
    return float(told)


def together(row: dict[str, Any]) -> dict[str, Any]:
    """One row of all ranks' rows: rank 0's, with what the ranks have between them. The same on every rank."""
    import torch.distributed as dist

    rows: list[dict[str, Any]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(rows, row)

    def known(name: str) -> list[Any]:
        return [one[name] for one in rows if one.get(name) is not None]

    joint = dict(rows[0])
    for name, merge in MERGED.items():
        values = known(name)
        if name in joint or values:
            joint[name] = merge(values) if values else None
    if len(known("energy_joules_per_step")) < len(rows):  # a sum with a board missing would be no sum
        joint["energy_joules_per_step"] = None
    return joint


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _union(values: list[str]) -> str:
    return "+".join(sorted({part for value in values for part in value.split("+") if part}))


MERGED: dict[str, Callable[[list[Any]], Any]] = {
    "setup_s": max,
    "peak_memory_bytes": max,
    "energy_joules_per_step": sum,
    "sm_clock_hz": min,
    "temperature_c": max,
    "throttle_reasons": _union,
    "flags": _union,
    "exposed_communication_s": _mean,
}
