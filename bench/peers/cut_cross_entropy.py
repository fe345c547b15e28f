"""Apple's Cut Cross-Entropy (its own sample-code licence; written against 25.1.1, distribution cut-cross-entropy).

The logits are never stored. Its gradient leaves out what lies below a threshold, as it does by default.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bench.peers.found import lacking, need

PACKAGE = "cut-cross-entropy"


def why_not() -> str | None:
    """None where it can run."""
    return lacking("cut_cross_entropy")


def linear_cross_entropy(inputs: dict[str, Any]) -> Callable[[], Any]:
    """Mean loss of the rows that are not ignored (-100, as ours)."""
    from cut_cross_entropy import linear_cross_entropy as peer

    hidden, weight, targets = (inputs[name] for name in ("hidden", "weight", "targets"))
    need(hidden.dtype in (torch.bfloat16, torch.float16), f"16-bit only, not {hidden.dtype}")
    return lambda: peer(hidden, weight, targets)


OPS = {"linear_cross_entropy": linear_cross_entropy}
