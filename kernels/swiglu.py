"""SwiGLU, the gate of a transformer's feed-forward block (Shazeer 2020, https://arxiv.org/abs/2002.05202).

    out = silu(gate) · up,   silu(g) = g · sigmoid(g),   gate_up = [gate | up]

Backward, from the saved input alone (the sigmoid is cheaper to compute again than to read back):

    dgate = dout · up · s · (1 + gate · (1 - s)),   dup = dout · silu(gate)

Both halves come from one matmul, so the kernel reads them where they lie and nothing is split or copied.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from bench.kernels.op import Compile, Op, Shape

# one 128-bit load of each half for each of 128 threads, at 2 bytes an element
BLOCK = 1024
# float64 is for the reference: the kernels compute in fp32 whatever they read
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def reference(gate_up: torch.Tensor) -> torch.Tensor:
    """(..., 2F) -> (..., F)."""
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


@triton.jit
def _forward(gate_up_ptr, out_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    # 64 bits: 75k tokens of Llama 3.1 8B (2F = 28672) pass 2^31 elements
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = col < WIDTH
    source = gate_up_ptr + row * (2 * WIDTH) + col
    gate = tl.load(source, mask, other=0).to(tl.float32)
    up = tl.load(source + WIDTH, mask, other=0).to(tl.float32)
    # one rounding, at the store; the reference rounds silu(gate) as well
    out = gate * tl.sigmoid(gate) * up
    tl.store(out_ptr + row * WIDTH + col, out.to(out_ptr.dtype.element_ty), mask)


@triton.jit
def _backward(dout_ptr, gate_up_ptr, grad_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = col < WIDTH
    place = row * (2 * WIDTH) + col
    gate = tl.load(gate_up_ptr + place, mask, other=0).to(tl.float32)
    up = tl.load(gate_up_ptr + place + WIDTH, mask, other=0).to(tl.float32)
    dout = tl.load(dout_ptr + row * WIDTH + col, mask, other=0).to(tl.float32)
    sigma = tl.sigmoid(gate)
    # d silu(g)/dg = sigmoid(g) · (1 + g · (1 - sigmoid(g)))
    dgate = dout * up * sigma * (1 + gate * (1 - sigma))
    dup = dout * gate * sigma
    element = grad_ptr.dtype.element_ty
    tl.store(grad_ptr + place, dgate.to(element), mask)
    tl.store(grad_ptr + place + WIDTH, dup.to(element), mask)


def _grid(gate_up: torch.Tensor) -> tuple[int, int]:
    """Rows and blocks of columns; rows lie on axis 0, the only axis that may pass 65535."""
    width = gate_up.shape[-1] // 2
    return gate_up.numel() // (2 * width), triton.cdiv(width, BLOCK)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: torch.Tensor) -> torch.Tensor:
        width = gate_up.shape[-1] // 2
        size = (*gate_up.shape[:-1], width)
        out = torch.empty(size, dtype=gate_up.dtype, device=gate_up.device)
        _forward[_grid(gate_up)](gate_up, out, WIDTH=width, BLOCK=BLOCK)
        # the input alone is kept: neither silu(gate) nor the product is stored
        ctx.save_for_backward(gate_up)
        return out

    @staticmethod
    def backward(ctx: Any, dout: torch.Tensor) -> torch.Tensor:
        (gate_up,) = ctx.saved_tensors
        # not over gate_up itself: an activation kept for a second backward must survive the first
        grad = torch.empty_like(gate_up)
        width = gate_up.shape[-1] // 2
        # autograd may hand over an expanded gradient (of a sum, say): the kernel wants dense rows
        _backward[_grid(gate_up)](dout.contiguous(), gate_up, grad, WIDTH=width, BLOCK=BLOCK)
        return grad


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """(..., 2F) contiguous, gate first -> (..., F)."""
    if gate_up.dtype not in DTYPES:
        raise ValueError(f"swiglu: want float32, float16 or bfloat16, got {gate_up.dtype}")
    if gate_up.dim() == 0 or gate_up.numel() == 0 or gate_up.shape[-1] % 2:
        raise ValueError(f"swiglu: the last dimension must be even, nothing empty: {gate_up.shape}")
    # it is a matmul's own output in every model here; a copy would hide a third of the op's traffic
    if not gate_up.is_contiguous():
        raise ValueError("swiglu: gate_up must be contiguous")
    return _SwiGLU.apply(gate_up)


def inputs(shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> dict[str, Any]:
    size = (shape["tokens"], 2 * shape["F"])
    return {"gate_up": torch.randn(size, device=device, generator=generator).to(dtype)}


def flops(shape: Shape) -> int:
    """exp, add, divide, two multiplications: 5 an output."""
    return 5 * shape["tokens"] * shape["F"]


def least_bytes(shape: Shape, element: int) -> int:
    """Read gate and up, write the product."""
    return 3 * shape["tokens"] * shape["F"] * element


def compiles() -> list[Compile]:
    """Both passes at the feed-forward widths of the listed models."""
    forward = {"gate_up_ptr": "*bf16", "out_ptr": "*bf16"}
    backward = {"dout_ptr": "*bf16", "gate_up_ptr": "*bf16", "grad_ptr": "*bf16"}
    return [
        Compile(kernel, signature, {"WIDTH": width, "BLOCK": BLOCK})
        for kernel, signature in ((_forward, forward), (_backward, backward))
        for width in (14336, 8192, 3072)
    ]


OP = Op(
    reference=reference,
    triton=swiglu,
    inputs=inputs,
    shapes={
        "llama_3_1_8b_train": {"tokens": 8192, "F": 14336},
        "llama_3_1_8b_decode": {"tokens": 64, "F": 14336},
        "llama_3_2_1b_train": {"tokens": 16384, "F": 8192},
        "qwen3_0_6b_train": {"tokens": 16384, "F": 3072},
    },
    test_shapes={
        "one_block": {"tokens": 6, "F": 256},
        "two_blocks": {"tokens": 3, "F": 1536},
        "odd": {"tokens": 7, "F": 1171},
    },
    flops=flops,
    bytes=least_bytes,
    compiles=compiles,
    differentiable=("gate_up",),
)
