"""Seeded draws: a stream of normals for each name, and the triangle between a range's ends.

Every uncertain input has its own stream, seeded by the seed and the input's name, so that one input's change never
moves another's draws. Correlations act on the normals.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def triangular(numbers: Sequence[float], u: Array) -> Array:
    """The triangular distribution (low, mode, high) at the cumulative probability u."""
    low, mode, high = numbers
    span = high - low
    rising = low + np.sqrt(u * span * (mode - low))
    falling = high - np.sqrt((1 - u) * span * (high - mode))
    return np.where(u < (mode - low) / span, rising, falling)


def normals(name: str, draws: int, seed: int) -> Array:
    """`draws` standard normals of the stream called `name`; the same for the same seed and name."""
    words = np.frombuffer(hashlib.sha256(name.encode()).digest(), dtype=np.uint32)
    generator = np.random.default_rng(np.random.SeedSequence([seed, *words.tolist()]))
    return generator.standard_normal(draws)
