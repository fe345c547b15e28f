"""FlashAttention-3 for Hopper (BSD-3-Clause) in the build vLLM ships (written against vLLM 0.26.0): forward only.

CROSSOVER_FA3_SO names the file `_vllm_fa3_C.abi3.so`, taken out of vLLM's wheel. The call's arguments are filled in by
the names of the schema the library registers, because their number differs between versions.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.peers.found import Unsupported, lacking, need

VARIABLE = "CROSSOVER_FA3_SO"


def why_not() -> str | None:
    """None where it can run."""
    path = os.environ.get(VARIABLE)
    if not path or not Path(path).is_file():
        return f"{VARIABLE} names no file (_vllm_fa3_C.abi3.so of vLLM's wheel)"
    if lacking():
        return lacking()
    return None if torch.cuda.get_device_capability()[0] == 9 else "Hopper only"


def _call(given: dict[str, Any]) -> Callable[[], Any]:
    """fwd with these arguments; every other one as if it were not there."""
    torch.ops.load_library(os.environ[VARIABLE])
    forward = torch.ops._vllm_fa3_C.fwd.default
    absent = {"int": 0, "float": 0.0, "bool": False}
    values: dict[str, Any] = {}
    for argument in forward._schema.arguments:
        name = argument.name
        values[name] = given.pop(name) if name in given else absent.get(str(argument.type))
    if given:
        raise Unsupported(f"this build's fwd has no {', '.join(given)}")
    if "cp_world_size" in values:
        values["cp_world_size"] = 1
    return lambda: forward(*values.values())[0]


def _window(window: int | None) -> dict[str, Any]:
    """Keys left and right of the query, -1 for all; a window makes the mask, which `is_causal` would else."""
    if window is None:
        return {"is_causal": True, "window_size_left": -1, "window_size_right": -1}
    return {"is_causal": False, "window_size_left": window - 1, "window_size_right": 0}


def attention(inputs: dict[str, Any]) -> Callable[[], Any]:
    """Whole sequences or packed documents, windows, sinks."""
    q, k, v = (inputs[name].detach() for name in ("q", "k", "v"))
    need(q.dtype in (torch.bfloat16, torch.float16), f"16-bit only, not {q.dtype}")
    shape, offsets, sinks = q.shape, inputs.get("cu_seqlens"), inputs.get("sinks")
    given = _window(inputs.get("window")) | {"softmax_scale": inputs.get("scale") or shape[3] ** -0.5}
    if sinks is not None:
        given["s_aux"] = sinks.detach().to(torch.bfloat16)
    if offsets is not None:
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        longest = int(offsets.diff().max())
        given |= {"cu_seqlens_q": offsets, "cu_seqlens_k": offsets}
        given |= {"max_seqlen_q": longest, "max_seqlen_k": longest}
    call = _call(given | {"q": q, "k": k, "v": v, "num_splits": 1})
    return lambda: call().view(shape)


def decode_attention(inputs: dict[str, Any]) -> Callable[[], Any]:
    """One query over a padded or paged cache, fp8 with one scale where it is; splits as it chooses."""
    q, k, v, lengths = (inputs[name] for name in ("q", "k_cache", "v_cache", "lengths"))
    need(v is not None, "no latent cache here")
    need(inputs.get("k_scale") is None, "an fp8 cache wants fp8 queries, which the op does not have")
    need(q.dtype in (torch.bfloat16, torch.float16), f"16-bit only, not {q.dtype}")
    sinks = inputs.get("sinks")
    given = _window(inputs.get("window")) | {"softmax_scale": inputs.get("scale") or q.shape[2] ** -0.5}
    given |= {"seqused_k": lengths.int(), "page_table": inputs.get("block_table"), "num_splits": 0}
    if sinks is not None:
        given["s_aux"] = sinks.to(torch.bfloat16)
    call = _call(given | {"q": q[:, None], "k": k, "v": v})
    return lambda: call()[:, 0]


OPS = {"attention": attention, "decode_attention": decode_attention}
