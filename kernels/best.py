"""Backend `best`: at each call, the implementation that was measured fastest at these shapes on this GPU.

Beside our Triton kernels stands torch's own op. Where a measurement says torch is faster at exactly these argument
shapes, `best` takes it; everywhere else, and on every GPU without a table, it takes Triton. Nothing is timed here.
The committed choices, each with the two times, the run and the date behind it, stand in `configs/best.csv`; the
user's own, written by `python -m bench tune`, in `results/local/best.csv`, and go before them.

`ran()` says which side each op took, for the row of a measurement.
"""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from bench.kernels.op import Op, tensors
from bench.kernels.tuning import ROOT, rows_of

COLUMNS = ("device_name", "op", "key", "choice", "triton_us", "reference_us", "run", "date")
SIDES = ("triton", "reference")
_ran: Counter[tuple[str, str]] = Counter()


def key_of(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Shapes and dtypes of a call's tensors and its other arguments, as the table writes them.

    "8192x4096.bfloat16 4096.bfloat16 eps=1e-05 grad": `grad` where a gradient will be asked for.
    """
    bound = inspect.signature(function).bind(*args, **kwargs)
    words = []
    for name, value in bound.arguments.items():
        found = tensors(value)
        if isinstance(value, torch.Tensor):
            words.append(_shape(value))
        elif found:  # a list: how many, and how much in all
            words.append(f"{len(found)}of{sum(x.numel() for x in found)}.{str(found[0].dtype).removeprefix('torch.')}")
        elif value is not None:
            words.append(f"{name}={value}")
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in tensors([*bound.arguments.values()]))
    return " ".join([*words, "grad"] if wanted else words)


def _shape(x: torch.Tensor) -> str:
    # (B, T, H) and (B · T, H) are the same rows to an op that works by rows: a model passes either
    size = (x.shape[0] * x.shape[1], x.shape[2]) if x.dim() == 3 else x.shape
    return "x".join(map(str, size)) + f".{str(x.dtype).removeprefix('torch.')}"


@functools.cache
def choices(device_name: str) -> dict[tuple[str, str], str]:
    """(op, key) -> triton or reference, for one GPU by its exact name. Raises ValueError for another word."""
    table = {}
    for path, row in rows_of(ROOT / "configs" / "best.csv", ROOT / "results" / "local" / "best.csv"):
        if row["choice"] not in SIDES:
            raise ValueError(f"{path}: choice: expected triton or reference, got {row['choice']!r}")
        if row["device_name"] == device_name:
            table[row["op"], row["key"]] = row["choice"]
    return table


class Best:
    """One op: a callable with the op's own signature."""

    def __init__(self, name: str, op: Op):
        self.name, self.op = name, op

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        device = next(x.device for x in tensors([*args, *kwargs.values()]))
        table = choices(torch.cuda.get_device_name(device)) if device.type == "cuda" else {}
        # the key costs some microseconds on the host: only where a table could answer
        side = table.get((self.name, key_of(self.op.reference, args, kwargs)), "triton") if table else "triton"
        _ran[self.name, side] += 1
        return getattr(self.op, side)(*args, **kwargs)


def ran() -> str | None:
    """Which sides the ops of `best` took since the last call, such as "matmul=reference rms_norm=triton"; or None."""
    sides: dict[str, list[str]] = {}
    for name, side in sorted(_ran):
        sides.setdefault(name, []).append(side)
    _ran.clear()
    return " ".join(f"{name}={'+'.join(found)}" for name, found in sides.items()) or None
