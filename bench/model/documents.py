"""Documents packed end to end into sequences, as pre-training and fine-tuning pack them.

Lengths are lognormal: exp(N(ln median, sigma)), at least one token, the same every time. A sequence is filled from
one stream of documents and the last one is cut at its end; attention never leaves a document (block-diagonal causal
mask, as in Llama 3, arXiv 2407.21783, section 3.2) and positions start again in each.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def packed(sequences: int, tokens: int, median: float, sigma: float, seed: int = 5) -> list[list[int]]:
    """Document lengths of each of `sequences` sequences of `tokens` tokens."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(sequences):
        row: list[int] = []
        while (left := tokens - sum(row)) > 0:
            drawn = math.exp(math.log(median) + sigma * float(torch.randn((), generator=generator)))
            row.append(min(left, max(1, round(drawn))))
        rows.append(row)
    return rows


def ends(lengths: list[list[int]], device: torch.device, chunk: int | None = None) -> Tensor:
    """cu_seqlens (n + 1,) int32 of the rows' documents laid end to end; cut also at every `chunk` of a document."""
    found = [0]
    for row in lengths:
        for length in row:
            step = chunk or length
            for at in range(0, length, step):
                found.append(found[-1] + min(step, length - at))
    return torch.tensor(found, dtype=torch.int32, device=device)


def positions(lengths: list[list[int]], device: torch.device) -> Tensor:
    """Place of each token in its document, (B, T)."""
    rows = [torch.cat([torch.arange(length) for length in row]) for row in lengths]
    return torch.stack(rows).to(device)
