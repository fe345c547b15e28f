"""What an engine's steps say about a window: how full its batches were, and the share of time prompts took.

A step may decode some sequences and read a chunk of a prompt at once. Its decoding would have taken, without the
chunk, about what steps do that only decode as many; so a line is laid through those,
    seconds = a + b · sequences,
and what a mixed step takes above it is the prompts' part. Prompts are so charged what they add, not a share of the
weights that decoding reads anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.points.window import Window


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the engine: when it began and how long the device took; what it computed, and what there was then.

    bench/serving_results.py says what each field is.
    """

    start_s: float
    duration_s: float
    prefill_tokens: int
    decode_sequences: int
    kv_tokens: int = 0
    decode_kv_tokens: int = 0
    waiting: int = 0
    cached_blocks: int = 0
    lookup_s: float = 0.0


@dataclass(frozen=True, slots=True)
class StepSummary:
    """Of the window. `busy_share`: of its time with a step running. Means weigh each step by its time."""

    busy_share: float
    decode_sequences: float
    prefill_share: float | None


def summarise_steps(steps: Sequence[Step], window: Window) -> StepSummary | None:
    """None where no step ran in the window; no prefill share where no step only decoded and some did both."""
    table = np.array([(s.start_s, s.duration_s, s.prefill_tokens, s.decode_sequences) for s in steps], dtype=float)
    start, duration, prefill, decode = table.reshape(-1, 4).T
    inside = np.clip(start + duration, window.start_s, window.end_s) - np.clip(start, window.start_s, window.end_s)
    busy = float(inside.sum())
    if busy <= 0:
        return None
    ran = inside > 0
    duration, prefill, decode, inside = duration[ran], prefill[ran], decode[ran], inside[ran]
    plain, mixed = (prefill == 0) & (decode > 0), (prefill > 0) & (decode > 0)
    share: float | None = None
    if plain.any() or not mixed.any():
        alone = _line(decode[plain], duration[plain], decode)
        part = np.where(mixed, np.clip(1 - alone / duration, 0, 1), prefill > 0)
        share = float(part @ inside / busy)
    return StepSummary(busy / window.seconds, float(decode @ inside / busy), share)


def _line(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Least squares through (x, y), read at `at`; level where x never varies."""
    if not len(x):
        return np.zeros(len(at))
    apart = x - x.mean()
    spread = float(apart @ apart)
    rise = float(apart @ y) / spread if spread else 0.0
    return np.asarray(y.mean() + rise * (at - x.mean()))
