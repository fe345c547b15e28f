"""cuDNN's fused attention through PyTorch (proprietary library shipped with torch; written against torch 2.11)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.nn.attention import SDPBackend

from bench.peers.found import lacking, need
from bench.peers.sdpa_flash import whole

why_not = lacking


def attention(inputs: dict[str, Any]) -> Callable[[], Any]:
    """Whole sequences only: torch offers no window and no packed documents with this backend."""
    need(inputs.get("window") is None and inputs.get("cu_seqlens") is None, "whole sequences only")
    return whole(SDPBackend.CUDNN_ATTENTION, inputs)


OPS = {"attention": attention}
