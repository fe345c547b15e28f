"""Sobol indices: which part of a result's variance comes from which input, alone and in concert.

    first order   S_i = Var(E[y | x_i]) / Var(y)            what fixing x_i would take away, on average
    total order   T_i = E[Var(y | all but x_i)] / Var(y)    what is left when all but x_i is fixed: S_i and every
                                                            interaction in which x_i has a part

They hold for independent inputs. A factor is therefore one normal or a set of them (SALib: a group), whose members may
be mixed as one likes afterwards: the indices of a set count all it does. First orders sum to at most 1, total orders to
at least 1; the difference is interaction.

Sampling (Saltelli's scheme on a scrambled Sobol' sequence), estimators (Saltelli et al. 2010, Computer Physics
Communications 181, 259-270) and the bootstrap of the 95% intervals are SALib's (Iwanaga, Usher & Herman 2022).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.claim.priors import Array

SAMPLES = 1024  # N: a power of two; the model runs N (factors + 2) times
RESAMPLES = 100
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Index:
    """One factor's part of one result. The intervals are half-widths at CONFIDENCE."""

    factor: str
    first: float
    first_interval: float
    total: float
    total_interval: float


def indices(
    factors: Mapping[str, Sequence[str]],
    results: Callable[[Mapping[str, Array]], Mapping[str, Array]],
    seed: int,
    samples: int = SAMPLES,
) -> dict[str, list[Index]]:
    """Indices of every result, largest total order first; none for a result that does not vary.

    `factors`: factor -> its independent standard normals, by name. `results`: those normals, each (runs,), to results
    by name, each (runs,). Raises ValueError where a result is not finite: it has no variance.
    """
    from SALib.analyze import sobol as analyse

    names = [name for members in factors.values() for name in members]
    layout = tuple(place for place, members in enumerate(factors.values()) for _ in members)
    problem = _problem(layout)
    found: dict[str, list[Index]] = {}
    for result, y in results(dict(zip(names, _grid(layout, samples, seed), strict=True))).items():
        if not np.isfinite(y).all():
            raise ValueError(f"{result}: expected finite values, got {np.count_nonzero(~np.isfinite(y))} that are not")
        if np.ptp(y) <= 1e-12 * max(1.0, float(np.abs(y).max())):
            found[result] = []
        elif len(factors) == 1:
            found[result] = [Index(next(iter(factors)), 1.0, 0.0, 1.0, 0.0)]
        else:
            s = analyse.analyze(
                problem, y, calc_second_order=False, num_resamples=RESAMPLES, conf_level=CONFIDENCE, seed=seed + 1
            )  # + 1: SALib takes 0 for no seed
            columns = (s[name].tolist() for name in ("S1", "S1_conf", "ST", "ST_conf"))
            found[result] = [Index(*one) for one in zip(factors, *columns, strict=True)]
            found[result].sort(key=lambda index: (-index.total, index.factor))
    return found


def _problem(layout: tuple[int, ...]) -> dict[str, Any]:
    """SALib's statement of it: standard normals, and the factor each belongs to."""
    count, groups = len(layout), [f"factor {place}" for place in layout]
    names = [f"normal {place}" for place in range(count)]
    return {
        **{"num_vars": count, "names": names, "groups": groups},
        **{"bounds": [[0, 1]] * count, "dists": ["norm"] * count},
    }


@functools.lru_cache(maxsize=8)
def _grid(layout: tuple[int, ...], samples: int, seed: int) -> Array:
    """Saltelli's design, (normals, runs). Kept: questions of one layout have the same."""
    from SALib.sample import sobol as sample

    made = sample.sample(_problem(layout), samples, calc_second_order=False, seed=seed)
    return np.ascontiguousarray(made.T)


def unsettled(ranked: Sequence[Index], place: int) -> str | None:
    """The next factor, down or else up, whose interval overlaps that of the one at `place`; None: the place is sure."""
    own = ranked[place]
    for other in (*ranked[place + 1 : place + 2], *ranked[max(place - 1, 0) : place]):
        if abs(own.total - other.total) < own.total_interval + other.total_interval:
            return other.factor
    return None
