"""FlashInfer's CUDA kernels for serving (Apache-2.0, written against 0.6.6, distribution flashinfer-python).

It builds a kernel with nvcc and ninja when it is first asked for, which takes minutes and is not timed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bench.peers.found import lacking, need

PACKAGE = "flashinfer-python"
UNCHECKED = {"sampling": "it draws its own random numbers"}


def why_not() -> str | None:
    """None where it can run."""
    return lacking("flashinfer")


def kv_append(inputs: dict[str, Any]) -> Callable[[], Any]:
    """The whole cache as one sequence whose pages lie in order, so that a slot is a position in it."""
    import flashinfer

    k, v, k_cache, v_cache, slots = (inputs[name] for name in ("k", "v", "k_cache", "v_cache", "slots"))
    need(v is not None, "no latent cache here")
    need(k.dtype == k_cache.dtype, "it does not convert to the cache's dtype")
    need(bool((slots >= 0).all()), "no rows to leave out")
    slots = slots.flatten()
    pages, page = k_cache.shape[:2]
    device = k.device
    indices = torch.arange(pages, device=device, dtype=torch.int32)
    offsets = torch.tensor([0, pages], device=device, dtype=torch.int32)
    last = torch.tensor([page], device=device, dtype=torch.int32)
    row, position = torch.zeros_like(slots, dtype=torch.int32), slots.int()
    new = [x.reshape(-1, *x.shape[-2:]) for x in (k, v)]

    def thunk() -> Any:
        flashinfer.append_paged_kv_cache(*new, row, position, (k_cache, v_cache), indices, offsets, last)
        return k_cache, v_cache

    return thunk


def rms_norm(inputs: dict[str, Any]) -> Callable[[], Any]:
    """Forward only. With a residual it writes over both, here over copies made once."""
    import flashinfer

    x, weight, eps, residual = (inputs[name] for name in ("x", "weight", "eps", "residual"))
    if residual is None:
        return lambda: (flashinfer.rmsnorm(x, weight, eps), x)
    y, h = x.detach().clone(), residual.detach().clone()

    def thunk() -> Any:
        flashinfer.fused_add_rmsnorm(y, h, weight.detach(), eps)
        return y, h

    return thunk


def swiglu(inputs: dict[str, Any]) -> Callable[[], Any]:
    """Forward only."""
    import flashinfer

    gate_up = inputs["gate_up"].detach()
    return lambda: flashinfer.silu_and_mul(gate_up)


def sampling(inputs: dict[str, Any]) -> Callable[[], Any]:
    """Softmax with temperature, then sampling by rejection; its own random numbers, so tokens differ from ours."""
    from flashinfer import sampling as peer

    logits = inputs["logits"].float()
    temperature, top_k, top_p = (inputs.get(name) for name in ("temperature", "top_k", "top_p"))

    def thunk() -> Any:
        probs = peer.softmax(logits, temperature=temperature)
        if top_k is not None and top_p is not None:
            return peer.top_k_top_p_sampling_from_probs(probs, top_k, top_p)
        if top_k is not None:
            return peer.top_k_sampling_from_probs(probs, top_k)
        return peer.sampling_from_probs(probs) if top_p is None else peer.top_p_sampling_from_probs(probs, top_p)

    return thunk


OPS = {
    "kv_append": kv_append,
    "rms_norm": rms_norm,
    "swiglu": swiglu,
    "sampling": sampling,
}
