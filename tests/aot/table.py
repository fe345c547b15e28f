"""The committed tables of what the compiler makes of every kernel: results/kernels/aot_<arch>_<triton>.csv.

    python -m tests.aot.table [--op NAME ...] [--arch 90 ...] [--write] [--changed]

compiles what the ops' launchers launch at the shapes of real models and in a few suites, prints a line a kernel, and
with --write replaces the table's rows. With triton 3.6.0 instead of the installed one: PYTHONPATH=.aot/triton36:.
A row's `source` is the hash of the kernel's text, its specialisation and its launch options: a row whose hash still
stands need not be compiled again to be believed, so a test compiles those that changed and a few at random.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from typing import Any

import torch
import triton

from bench.kernels.op import ARCHITECTURES, Op, Shape, discover, tensors
from tests.aot import model_calls
from tests.aot.compile_check import Compiled, Launch, recorded_launches

FOLDER = Path(__file__).resolve().parents[2] / "results" / "kernels"
# column -> pattern of the SASS opcodes it counts
COUNTED = {
    "hmma": r"(H|I|Q)MMA",  # mma.sync, any architecture
    "wgmma": r"(H|I|Q)GMMA",  # Hopper
    "tcgen05": r"UTC(H|I|Q)MMA",  # Blackwell
    "tma_loads": r"UTMALDG",
    "tma_stores": r"UTMA(STG|REDG)",
    "async_copies": r"LDGSTS",
    "loads_128": r"LDG(STS)?\.E.*\.128",  # into registers or shared memory
    "stores_128": r"STG\.E.*\.128",
    "narrow_loads": r"LDG\.E.*\.(U|S)(16|8)",
}
KEY = ("op", "kernel", "config", "source")
COLUMNS = (*KEY, "warps", "registers", "spill_bytes", "shared_bytes", *COUNTED, "shapes")


def path_of(arch: int) -> Path:
    """The table of this architecture and the triton that is running."""
    return FOLDER / f"aot_sm{arch}_{triton.__version__}.csv"


def step(op: Op, shape: Shape, device: str, dtype: torch.dtype = torch.bfloat16) -> None:
    """One forward and, where there is one, backward call of the launcher; and the forward that keeps no gradient."""
    generator = torch.Generator().manual_seed(0)
    kwargs = op.inputs(shape, dtype, torch.device(device), generator)
    leaves = op.leaves(kwargs)
    kwargs = op.trained(kwargs)
    outputs = [x for x in tensors(op.triton(**kwargs)) if x.requires_grad]
    if leaves:
        pull = [torch.ones_like(x) for x in outputs]
        torch.autograd.grad(outputs, [kwargs[name] for name in leaves], pull)
        with torch.no_grad():
            op.triton(**kwargs)


Found = dict[tuple[str, ...], tuple[Launch, list[str]]]  # key -> launch, and where it was met


def _note(found: Found, op: str, launch: Launch, place: str) -> None:
    key = (op, launch.kernel.__name__.strip("_"), launch.config, launch.source)
    places = found.setdefault(key, (launch, []))[1]
    if place not in places:
        places.append(place)


def launches(ops: dict[str, Op], arch: int) -> Found:
    """Every distinct specialisation of these ops: at their own shapes, then in the cells of model_calls.SUITES."""
    found: Found = {}
    for name, op in ops.items():
        for key, shape in op.shapes.items():
            if arch not in op.architectures(shape):
                continue
            with recorded_launches(arch) as made:
                step(op, shape, "meta")
            if not made:
                raise RuntimeError(f"{name} {key}: nothing was launched")
            for launch in made:
                _note(found, name, launch, key)
    everything = discover()
    for model, workload in model_calls.cells():
        for launch in model_calls.record(everything, model, workload, arch):
            name = model_calls.op_of(launch, everything)
            if name in ops:
                _note(found, name, launch, f"{model.key}/{workload.key}")
    return found


def row_of(key: tuple[str, ...], built: Compiled, shapes: list[str]) -> dict[str, str]:
    """One row of the table, all text."""
    values: dict[str, Any] = dict(zip(KEY, key, strict=True))
    values |= {name: getattr(built, name) for name in ("warps", "registers", "spill_bytes", "shared_bytes")}
    values |= {name: built.count(pattern) for name, pattern in COUNTED.items()}
    return {name: str(value) for name, value in (values | {"shapes": "+".join(shapes)}).items()}


def read(arch: int) -> dict[tuple[str, ...], dict[str, str]]:
    """The committed table, by key; empty where there is none for this triton."""
    if not path_of(arch).is_file():
        return {}
    with path_of(arch).open(newline="", encoding="utf-8") as handle:
        return {tuple(row[name] for name in KEY): row for row in csv.DictReader(handle)}


def write(arch: int, rows: dict[tuple[str, ...], dict[str, str]]) -> None:
    """Replace the table, rows in the order of their keys."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with path_of(arch).open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[key] for key in sorted(rows))


def main() -> None:
    """Compile, print, and write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--op", action="append", choices=list(discover()), help="this op only; again for more")
    parser.add_argument("--arch", action="append", type=int, choices=ARCHITECTURES)
    parser.add_argument("--write", action="store_true", help="replace the rows of these ops in the table")
    parser.add_argument("--changed", action="store_true", help="believe rows whose source hash still stands")
    chosen = parser.parse_args()
    ops = {name: op for name, op in discover().items() if not chosen.op or name in chosen.op}
    shown = ("warps", "registers", "spill_bytes", "shared_bytes", *COUNTED)
    for arch in chosen.arch or ARCHITECTURES:
        known = read(arch)
        kept = {key: row for key, row in known.items() if chosen.op and key[0] not in ops}
        for key, (launch, places) in launches(ops, arch).items():
            if chosen.changed and key in known:
                kept[key] = known[key] | {"shapes": "+".join(places)}
                continue
            kept[key] = row = row_of(key, launch.compile(), places)
            figures = " ".join(f"{column} {row[column]}" for column in shown if row[column] != "0")
            print(f"sm{arch} {key[0]}.{key[1]} | {figures} | {key[2]} | {row['shapes']}", flush=True)
        if chosen.write:
            write(arch, kept)


if __name__ == "__main__":
    sys.exit(main())
