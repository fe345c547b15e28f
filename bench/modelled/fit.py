"""The efficiencies, by least squares of log(published rate / modelled rate); what a name takes where no row tells it.

One unknown for each name that the rows need (roofline.roles). Three things keep few rows from saying too much:

    an outlier counts less           soft L1 of the residual over NOISE (Huber 1964): a row may be tuned badly
    a generation is like the last    sd PULL of its logarithm around the nearest older one's; narrower precisions
                                     around wider ones, where no older generation has them
    no kernel beats the data sheet   efficiencies are at most 1

A name that no row needed (a GPU left out, a generation nobody measured) takes the number of the nearest older
generation, then of the nearest newer one, then of the next wider precision: `stands_for` says which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from bench.config import Gpu
from bench.modelled.roofline import (
    EFFICIENCIES,
    GENERATIONS,
    NARROWER,
    SHARED,
    Hardware,
    age,
    amounts,
    roles,
    seconds,
    slopes,
)
from bench.modelled.work import Cell, Plan

Array = Any
Timed = tuple[Cell, Gpu, Sequence[Plan]]
NOISE = 0.12  # sd of ln rate that a row is believed to, as the spread between submitters and versions of one cell is
PULL = 0.15  # sd of ln efficiency from one generation to the next; judgement
WIDE = 0.7  # sd of ln of what nothing else ties: a factor of two
START = 0.6  # an efficiency before any row is seen


def _parts(name: str) -> tuple[str, str, str] | None:
    """("train matmul", "fp8", "sm_90") or ("memory", "", "sm_90"); None for what all GPUs share."""
    *head, generation = name.split(" ")
    if name.startswith("memory "):
        return "memory", "", generation
    return (" ".join(head[:2]), head[2], generation) if len(head) == 3 else None


def stands_for(name: str, known: Sequence[str]) -> str:
    """The name whose number `name` takes: itself, an older or newer generation's, a wider precision's; "" for none."""
    parts = _parts(name)
    if name in known or parts is None:
        return name if name in known or name in SHARED else ""
    kind, precision, generation = parts
    same = {p[2]: other for other in known if (p := _parts(other)) and p[:2] == (kind, precision)}
    older = [other for other in same if age(other) < age(generation)]
    newer = [other for other in same if age(other) > age(generation)]
    if older:
        return same[max(older, key=age)]
    if newer:
        return same[min(newer, key=age)]
    wider = NARROWER.get(precision)
    return stands_for(f"{kind} {wider} {generation}", known) if wider else ""


@dataclass(frozen=True)
class Efficiencies:
    """What was fitted, by name."""

    values: dict[str, float] = field(default_factory=dict)

    def of(self, name: str) -> float:
        """The number a name takes; 1 for "" and for software without a row."""
        known = stands_for(name, list(self.values)) if name else ""
        return self.values.get(known, SHARED.get(known, START if _parts(name) else 1.0))


class Table:
    """Cells with their plans, as arrays: what does not change while efficiencies are tried."""

    def __init__(self, cells: Sequence[Timed]) -> None:
        """Cells without a plan must have been left out."""
        every = [(cell, gpu, plan) for cell, gpu, made in cells for plan in made]
        self.starts = np.cumsum([0, *(len(made) for *_, made in cells)])[:-1]
        self.hardware = Hardware.of([(cell, gpu) for cell, gpu, _ in every])
        once, again = amounts([plan.once for *_, plan in every]), amounts([plan.again for *_, plan in every])
        times, repeats, self.tokens = np.array([(p.times, p.repeats, p.tokens) for *_, p in every], dtype=float).T
        self.steps = ((times, once), (repeats, again))
        named = [roles(cell, gpu) for cell, gpu, _ in every]
        self.names = {role: [names[role] for names in named] for role in (named[0] if named else {})}

    def parts(self, numbers: Mapping[str, Array]) -> dict[str, Array]:
        """Seconds each plan spends on each part; `numbers` by role, one a plan."""
        (times, once), (repeats, again) = ((count, seconds(step, self.hardware, numbers)) for count, step in self.steps)
        return {name: times * once[name] + repeats * again[name] for name in once}

    def rates(self, numbers: Mapping[str, Array], parts: Mapping[str, Array]) -> Array:
        """Tokens/s of each plan."""
        return self.tokens / sum(parts.values()) * numbers["nodes"] * numbers["software"]

    def fastest(self, rates: Array) -> Array:
        """Place of each cell's fastest plan."""
        ends = [*self.starts[1:], len(rates)]
        return np.array([at + int(np.argmax(rates[at:end])) for at, end in zip(self.starts, ends, strict=True)], int)

    def predict(self, found: Efficiencies) -> tuple[Array, Array]:
        """Tokens/s of each cell, and the place of its plan among the cell's own."""
        memo = {name: found.of(name) for names in self.names.values() for name in set(names)}
        numbers = {role: np.array([memo[name] for name in names]) for role, names in self.names.items()}
        rates = self.rates(numbers, self.parts(numbers))
        chosen = self.fastest(rates)
        return rates[chosen], chosen - self.starts


def fit(cells: Sequence[Timed], rates: Sequence[float], pull: float = PULL) -> Efficiencies:
    """Efficiencies from cells and their known rates (tokens/s). `pull` 0: rows alone decide, for exact data."""
    table, target = Table(cells), np.log(np.array(rates, dtype=float))
    names = sorted({name for column in table.names.values() for name in column if name})
    place = {name: index for index, name in enumerate(names)}
    index = {role: np.array([place.get(name, -1) for name in column]) for role, column in table.names.items()}
    start = np.log([SHARED.get(name, START if _parts(name) else 1.0) for name in names])
    top = np.array([0.0 if any(word in name for word in EFFICIENCIES) else np.inf for name in names]) + 1e-9
    ties = _ties(names, start, pull) if pull else (np.zeros((0, len(names))), np.zeros(0))
    rows = np.arange(len(target))

    last: dict[bytes, tuple[Array, Array]] = {}  # scipy asks for residuals and slopes of one x one after the other

    def both(x: Array) -> tuple[Array, Array]:
        if x.tobytes() not in last:
            last.clear()
            last[x.tobytes()] = at(x)
        return last[x.tobytes()]

    def at(x: Array) -> tuple[Array, Array]:
        """Residuals of rows and ties, in sd, and their slopes."""
        values = np.append(np.exp(x), 1.0)  # index -1: a part without a number
        numbers = {role: values[which] for role, which in index.items()}
        parts = table.parts(numbers)
        every = table.rates(numbers, parts)
        chosen = table.fastest(every)
        slope = np.zeros((len(rows), len(names) + 1))
        for role, found in slopes(parts, table.hardware, numbers).items():
            np.add.at(slope, (rows, index[role][chosen]), found[chosen])
        missed = (np.log(every[chosen]) - target) / NOISE
        return np.concatenate([missed, ties[0] @ x - ties[1]]), np.concatenate([slope[:, :-1] / NOISE, ties[0]])

    def loss(z: Array) -> Array:
        """Soft L1 of the rows, squares of the ties: value, first and second derivative (scipy's convention)."""
        value, first, second = z.copy(), np.ones_like(z), np.zeros_like(z)
        root = np.sqrt(1 + z[: len(rows)])
        value[: len(rows)], first[: len(rows)], second[: len(rows)] = 2 * (root - 1), 1 / root, -0.5 / root**3
        return np.array([value, first, second])

    solved = least_squares(
        lambda x: both(x)[0],
        np.minimum(start, top - 1e-3),
        jac=lambda x: both(x)[1],
        bounds=(-np.inf, top),
        loss=loss if pull else "linear",
        xtol=1e-12,
        ftol=None,
        gtol=None,
    )
    return Efficiencies({name: float(value) for name, value in zip(names, np.exp(solved.x), strict=True)})


def _ties(names: Sequence[str], start: Array, pull: float) -> tuple[Array, Array]:
    """What the unknowns x are like before any row: (matrix, vector) of matrix @ x - vector, in sd."""
    matrix, vector = np.zeros((len(names), len(names))), np.zeros(len(names))
    for i, name in enumerate(names):
        like = _parent(name, names)
        if like:
            matrix[i, i], matrix[i, names.index(like)] = 1 / pull, -1 / pull
        else:
            matrix[i, i], vector[i] = 1 / WIDE, start[i] / WIDE
    return matrix, vector


def _parent(name: str, names: Sequence[str]) -> str:
    """What an efficiency is pulled to: the nearest older generation's, else the next wider precision's of its own."""
    parts = _parts(name)
    if parts is None:
        return ""
    kind, precision, generation = parts
    for older in reversed(GENERATIONS[: age(generation)]):
        if (other := f"{kind} {precision} {older}".replace("  ", " ")) in names:
            return other
    wider = NARROWER.get(precision, "")
    other = f"{kind} {wider} {generation}"
    return other if other in names else _parent(other, names) if wider else ""
