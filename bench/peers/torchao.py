"""torchao's weight-only int8 and fp8 linear layers (BSD-3-Clause, written against 0.17.0).

They are tensor subclasses whose product torch.compile fuses, as its documentation runs them; the compiled function
is made once, untimed. Its int4 is tinygemm, which `torch_weight_only` calls by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from bench.peers.found import lacking, need

PACKAGE = "torchao"
COMPILES = True


def why_not() -> str | None:
    """None where it can run."""
    return lacking("torchao")


def quant_matmul(inputs: dict[str, Any]) -> Callable[[], Any]:
    """A scale a row."""
    from torchao.quantization.quantize_.workflows.float8.float8_tensor import Float8Tensor
    from torchao.quantization.quantize_.workflows.int8.int8_tensor import Int8Tensor

    x, weight, scale = (inputs[name] for name in ("x", "weight", "scale"))
    need(weight.dtype != torch.int32, "int4: see torch_weight_only")
    kind = Int8Tensor if weight.dtype == torch.int8 else Float8Tensor
    layer = kind(weight, scale.view(-1, 1), block_size=[1, weight.shape[1]], dtype=x.dtype)
    compiled: Any = torch.compile(F.linear, dynamic=False)
    return lambda: compiled(x, layer)


OPS = {"quant_matmul": quant_matmul}
