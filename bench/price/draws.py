"""Seeded draws: a stream of normals for each name, and the triangle between a range's ends.

Every uncertain input has its own stream, seeded by the seed and the input's name, so that one input's change never
moves another's draws. Correlations act on the normals. Wherever a seed is asked for, the streams themselves will do:
whoever varies one input (bench/claim/influence.py) gives all normals by name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Seed = int | Mapping[str, Array]  # or the streams: standard normals by name, each (draws,)


def triangular(numbers: Sequence[float], u: Array) -> Array:
    """The triangular distribution (low, mode, high) at the cumulative probability u."""
    low, mode, high = numbers
    span = high - low
    rising = low + np.sqrt(u * span * (mode - low))
    falling = high - np.sqrt((1 - u) * span * (high - mode))
    return np.where(u < (mode - low) / span, rising, falling)


def normals(name: str, draws: int, seed: Seed) -> Array:
    """`draws` standard normals of the stream called `name`; the same for the same seed and name."""
    if not isinstance(seed, int):
        return seed[name]
    words = np.frombuffer(hashlib.sha256(name.encode()).digest(), dtype=np.uint32)
    generator = np.random.default_rng(np.random.SeedSequence([seed, *words.tolist()]))
    return generator.standard_normal(draws)
