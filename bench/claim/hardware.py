"""What a served FLOP takes and costs, from the same rates as r and the price book.

    USD per useful FLOP served = usd_per_gpu_hour / (3600 x 2N x served)      N: active parameters of the row's model

`served` is in computed tokens per GPU-second (ratio.py), of serve rows or of prefill and decode mixed at w inputs
computed per output. 2N makes rates of models of all sizes one quantity, so the size of the mix that is served can be
an input of its own. As in r: equal weight for every (gpu, model), inside it for every rate and row.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from bench import config
from bench.architecture import Model
from bench.claim.priors import Array, normals, triangular
from bench.claim.ratio import Rate
from bench.claim.route_sections import Served
from bench.price import book
from bench.results import BASES

Triangle = tuple[float, float, float]


@dataclass(frozen=True)
class Case:
    """One way to serve: seconds per token of prefill and decode (None: a serve row, which counts both), and noise."""

    gpu: str
    model: str
    basis: str
    whole: float | None
    parts: tuple[float, float]
    sd: float
    holds_idle: bool
    rows: tuple[str, ...]


@dataclass(frozen=True)
class Hardware:
    """Draws, each (draws,): FLOP a GPU-second, USD a GPU-hour, and 1 where that rate lacks its idle time."""

    flop_per_gpu_s: Array
    usd_per_gpu_hour: Array
    busy: Array


def contract_prices(served: Served, as_of: datetime.date) -> dict[str, Triangle]:
    """GPU -> low, median and high of the standing prices of the term, instances alone."""
    found: dict[str, list[book.Price]] = {}
    for seller in book.standing(book.providers().values(), as_of):
        for row in seller.price:
            if (row.term, row.includes) == (served.term, "instance"):
                found.setdefault(row.gpu, []).append(row)
    triangles = {}
    for gpu, rows in found.items():
        middle = float(np.median([row.usd_per_gpu_hour for row in rows]))
        low = min(row.low or row.usd_per_gpu_hour for row in rows)
        triangles[gpu] = (low, middle, max(row.high or row.usd_per_gpu_hour for row in rows))
    for gpu, stands_in in served.priced_as.items():
        if stands_in in triangles:
            triangles.setdefault(gpu, triangles[stands_in])
    return triangles


def cases(rates: Sequence[Rate], prices: Mapping[str, Triangle]) -> list[Case]:
    """Every served rate on a GPU with a price: each row of serve rates, each prefill with each decode."""
    found = []
    for rate in (rate for rate in rates if rate.gpu in prices):
        if rate.phase == "serve":
            for s in rate.sources:
                seconds = 1 / s.tokens_per_gpu_s
                found.append(Case(rate.gpu, rate.model, rate.basis, seconds, (0, 0), s.sd, s.holds_idle, s.rows))
        for other in rates if rate.phase == "prefill" else ():
            if (other.gpu, other.model, other.precision) == (rate.gpu, rate.model, rate.precision):
                found += _by_phase(rate, other) if other.phase == "decode" else []
    return found


def _by_phase(prefill: Rate, decode: Rate) -> list[Case]:
    basis = max(prefill.basis, decode.basis, key=BASES.index)
    return [
        Case(
            prefill.gpu,
            prefill.model,
            basis,
            None,
            (1 / first.tokens_per_gpu_s, 1 / last.tokens_per_gpu_s),
            max(first.sd, last.sd),
            first.holds_idle,
            (*first.rows, *last.rows),
        )
        for first in prefill.sources
        for last in decode.sources
    ]


def draw(found: Sequence[Case], prices: Mapping[str, Triangle], inputs: Array, count: int, seed: int) -> Hardware:
    """Draws over `found`, which must not be empty; `inputs`: computed input tokens per output token, (count,)."""
    members = Counter((case.gpu, case.model) for case in found)
    ends = np.cumsum([1 / members[case.gpu, case.model] for case in found])
    u = np.asarray(ndtr(normals("routes: case", count, seed)))
    which = np.searchsorted(ends[:-1] / ends[-1], u, side="right")

    def each(values: Sequence[float]) -> Array:
        return np.array(values, dtype=float)[which]

    first, last = each([case.parts[0] for case in found]), each([case.parts[1] for case in found])
    whole = each([case.whole or 0.0 for case in found])
    seconds = np.where(whole > 0, whole, (inputs * first + last) / (inputs + 1))
    noise = each([case.sd for case in found]) * normals("routes: rate", count, seed)
    models = config.load_all(Model)
    flop = each([2.0 * models[case.model].active_matmul_params for case in found])
    market = np.asarray(ndtr(normals("routes: price", count, seed)))  # one market: all GPUs' prices move together
    usd = np.zeros(count)
    for gpu, (low, middle, high) in prices.items():
        price = triangular((low, middle, high), market) if low < high else np.full(count, middle)
        usd = np.where(each([case.gpu == gpu for case in found]) > 0, price, usd)
    return Hardware(flop / seconds * np.exp(noise), usd, each([not case.holds_idle for case in found]))
