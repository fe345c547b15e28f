"""How wrong the model is about a GPU it has not seen, and with that how sure a modelled number is.

Leave one GPU out: for every GPU with points, all its rows leave the fit, the rest is fitted again, and its points are
predicted. Nothing of a GPU enters its own prediction. The same is done by whole generations, for GPUs of a generation
that nobody measured. Errors are ln(left out / published); their absolute sizes are shown as |left out / published - 1|.

A modelled number's interval is the middle 95% of those errors in cells of its kind: training or serving, dense or
mixture of experts, one node or more. A GPU whose generation has no row takes the errors by generation instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.modelled.fit import Efficiencies, Table, Timed, fit, stands_for
from bench.modelled.points import Point, of_rows, validation
from bench.modelled.roofline import FEW, roles, side

GOAL = {"median": 0.10, "p90": 0.25, "fleet": 0.30}  # absolute errors on published points of a GPU left out
LEAST = 20  # errors an interval needs; fewer, and the next wider kind is asked
FITTING_TIERS = ("node", "cluster")
DIGITS = 3  # of an efficiency: the same rows then give the same bytes on every machine
Kind = tuple[str, str, str]


@dataclass(frozen=True)
class Checked:
    """A point with what the model says of it: of all rows that fit, and without its own GPU's."""

    point: Point
    fitted: float
    left_out: float
    by_generation: float  # without its whole generation's
    kind: Kind
    stands_on: str  # the generation whose matmul efficiency it took when its GPU was left out; "" for its own

    @property
    def error(self) -> float:
        """left out / published - 1."""
        return self.left_out / self.point.tokens_per_s - 1


@dataclass(frozen=True)
class Summary:
    """Absolute errors of some points."""

    count: int
    median: float
    p90: float

    @classmethod
    def of(cls, checked: Iterable[Checked]) -> Summary | None:
        """None for no points."""
        sizes = [abs(one.error) for one in checked]
        if not sizes:
            return None
        return cls(len(sizes), float(np.median(sizes)), float(np.quantile(sizes, 0.9)))

    @property
    def met(self) -> bool:
        """Whether both goals are met."""
        return self.median <= GOAL["median"] and self.p90 <= GOAL["p90"]


@dataclass(frozen=True)
class Prediction:
    """Tokens/s with the middle 95% of what is left out, and the errors that stand behind it."""

    tokens_per_s: float
    low: float
    high: float
    error: Summary
    unseen_generation: bool
    batch: float
    tensor_parallel: int


@dataclass(frozen=True)
class Modelled:
    """The fitted model and its record."""

    efficiencies: Efficiencies
    checked: tuple[Checked, ...]
    generations: frozenset[str]  # that rows behind the fit have

    def predict(self, points: Sequence[Point]) -> list[Prediction]:
        """Of points with at least one plan, in order."""
        if not points:
            return []
        rates, plans = Table(timed(points)).predict(self.efficiencies)
        return [self._surely(p, float(rate), int(plan)) for p, rate, plan in zip(points, rates, plans, strict=True)]

    def _surely(self, point: Point, rate: float, plan: int) -> Prediction:
        unseen = point.gpu.architecture not in self.generations
        errors = self.errors_of(kind(point), unseen)
        low, high = np.exp(-np.quantile(errors, (0.975, 0.025)))
        sizes = np.abs(np.expm1(errors))
        error = Summary(len(errors), float(np.median(sizes)), float(np.quantile(sizes, 0.9)))
        used = point.plans[plan]
        return Prediction(rate, rate * low, rate * high, error, unseen, used.batch, used.tensor_parallel)

    def errors_of(self, wanted: Kind, unseen: bool) -> list[float]:
        """ln(left out / published) of the points of a kind, widened until there are LEAST of them."""
        every = [one for one in self.checked if one.point.tier in FITTING_TIERS]
        for depth in (3, 2, 1, 0):
            same = [one for one in every if one.kind[:depth] == wanted[:depth]]
            if len(same) >= LEAST:
                break
        return [math.log((c.by_generation if unseen else c.left_out) / c.point.tokens_per_s) for c in same]


def kind(point: Point) -> Kind:
    """train or serve, one node or more, dense or mixture."""
    nodes = "nodes" if point.cell.phase == "train_step" and point.cell.n_gpus > FEW else "node"
    return side(point.cell.phase), nodes, "mixture" if point.model.moe_layers else "dense"


def timed(points: Sequence[Point]) -> list[Timed]:
    """Points as the fit takes them."""
    return [(p.cell, p.gpu, p.plans) for p in points]


def fitted(points: Sequence[Point]) -> Efficiencies:
    """The efficiencies from the points that fit."""
    used = [p for p in points if p.use == "fit" and p.tier in FITTING_TIERS and p.plans]
    found = fit(timed(used), [p.tokens_per_s for p in used]) if used else Efficiencies()
    return Efficiencies({name: float(f"{value:.{DIGITS}g}") for name, value in found.values.items()})


def without(points: Sequence[Point], key: Callable[[Point], str]) -> dict[int, tuple[float, Efficiencies]]:
    """Each point's rate by a fit without any point of the same key, by its place, with that fit."""
    found: dict[int, tuple[float, Efficiencies]] = {}
    for value in sorted({key(p) for p in points}):
        place = [i for i, p in enumerate(points) if key(p) == value]
        rest = fitted([p for p in points if key(p) != value])
        rates, _ = Table(timed([points[i] for i in place])).predict(rest)
        found |= {i: (float(rate), rest) for i, rate in zip(place, rates, strict=True)}
    return found


def build(rows: Iterable[Mapping[str, Any]]) -> Modelled:
    """The model from throughput rows and the validation points, with every point checked."""
    points = [p for p in (*of_rows(rows), *validation()) if p.plans]
    everything = fitted(points)
    by_gpu = without(points, lambda p: p.cell.gpu)
    by_generation = without(points, lambda p: p.gpu.architecture)
    now = Table(timed(points)).predict(everything)[0] if points else []
    checked = tuple(
        Checked(p, float(now[i]), by_gpu[i][0], by_generation[i][0], kind(p), _stands_on(p, by_gpu[i][1]))
        for i, p in enumerate(points)
    )
    seen = frozenset(p.gpu.architecture for p in points if p.use == "fit")
    return Modelled(everything, checked, seen)


def _stands_on(point: Point, rest: Efficiencies) -> str:
    name = roles(point.cell, point.gpu)["matmul"]
    known = stands_for(name, list(rest.values))
    return "" if known == name else known.partition("matmul ")[2]


def rows_of(modelled: Modelled) -> list[dict[str, Any]]:
    """results/accuracy.csv: every point, in the order they were given."""
    made = []
    for one in modelled.checked:
        point, cell = one.point, one.point.cell
        made.append(
            {
                **{name: getattr(cell, name) for name in ("phase", "model", "gpu", "n_gpus", "precision")},
                **{name: getattr(cell, name) for name in ("input_tokens", "output_tokens")},
                **{name: getattr(point, name) for name in ("row", "tier", "use", "source")},
                "published_tokens_per_s": point.tokens_per_s,
                "left_out_tokens_per_s": one.left_out,
                "error": one.error,
                "fitted_tokens_per_s": one.fitted,
                "stands_on": one.stands_on,
                "overhead": one.left_out / point.tokens_per_s if point.tier == "hours" else None,
            }
        )
    return made
