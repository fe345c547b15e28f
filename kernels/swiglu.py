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
from torch.autograd.function import once_differentiable

from bench.kernels.op import Op, Shape
from bench.kernels.tuning import tuned

TILE = 2048  # elements of a program: two 128-bit loads of each half for each of 128 threads, at 2 bytes an element
# float64 is for the reference: the kernels compute in fp32 whatever they read
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def reference(gate_up: torch.Tensor) -> torch.Tensor:
    """(..., 2F) -> (..., F)."""
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


@triton.jit
def _place(rows, WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Rows, columns and mask of this program's tile."""
    # 64 bits: 75k tokens of Llama 3.1 8B (2F = 28672) pass 2³¹ elements
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    col = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    return row, col, (row < rows) & (col < WIDTH)


@triton.jit
def _forward(gate_up_ptr, out_ptr, rows, WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row, col, mask = _place(rows, WIDTH, ROWS, BLOCK)
    source = gate_up_ptr + row * (2 * WIDTH) + col
    gate = tl.load(source, mask, other=0).to(tl.float32)
    up = tl.load(source + WIDTH, mask, other=0).to(tl.float32)
    # one rounding, at the store; the reference rounds silu(gate) as well
    out = gate * tl.sigmoid(gate) * up
    tl.store(out_ptr + row * WIDTH + col, out.to(out_ptr.dtype.element_ty), mask)


@triton.jit
def _backward(dout_ptr, gate_up_ptr, grad_ptr, rows, WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row, col, mask = _place(rows, WIDTH, ROWS, BLOCK)
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


def _launch(kernel: str, gate_up: torch.Tensor) -> tuple[int, tuple[int, int], dict[str, Any]]:
    """Rows, grid and constants. Rows lie on axis 0, the only axis that may pass 65535."""
    width = gate_up.shape[-1] // 2
    rows = gate_up.numel() // (2 * width)
    # the widest block that leaves at most an eighth of its lanes without a column, on several rows if it is short
    fitting = (b for b in (2048, 1024, 512, 256) if triton.cdiv(width, b) * b <= width * 9 / 8)
    block = next(fitting, min(2048, triton.next_power_of_2(width)))
    config = {"BLOCK": block, "ROWS": TILE // block, "num_warps": 4}
    config = tuned(f"swiglu.{kernel}", (rows.bit_length(), width, gate_up.element_size()), config, gate_up.device)
    return rows, (triton.cdiv(rows, config["ROWS"]), triton.cdiv(width, config["BLOCK"])), {"WIDTH": width, **config}


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: torch.Tensor) -> torch.Tensor:
        width = gate_up.shape[-1] // 2
        size = (*gate_up.shape[:-1], width)
        out = torch.empty(size, dtype=gate_up.dtype, device=gate_up.device)
        rows, grid, config = _launch("forward", gate_up)
        _forward[grid](gate_up, out, rows, **config)
        # the input alone is kept: neither silu(gate) nor the product is stored
        ctx.save_for_backward(gate_up)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: torch.Tensor) -> torch.Tensor:
        (gate_up,) = ctx.saved_tensors
        # not over gate_up itself: an activation kept for a second backward must survive the first
        grad = torch.empty_like(gate_up)
        rows, grid, config = _launch("backward", gate_up)
        # autograd may hand over an expanded gradient (of a sum, say): the kernel wants dense rows
        _backward[grid](dout.contiguous(), gate_up, grad, rows, **config)
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


def backward_flops(shape: Shape) -> int:
    """The sigmoid's exp, add, divide; six operations for dgate, two for dup."""
    return 11 * shape["tokens"] * shape["F"]


def backward_bytes(shape: Shape, element: int) -> int:
    """Read dout, gate and up, write both gradients."""
    return 5 * shape["tokens"] * shape["F"] * element


OP = Op(
    reference=reference,
    triton=swiglu,
    inputs=inputs,
    shapes={
        "llama_3_1_8b_train": {"tokens": 8192, "F": 14336},
        "llama_3_1_8b_decode": {"tokens": 64, "F": 14336},
        "llama_3_2_1b_train": {"tokens": 16384, "F": 8192},
        "qwen3_0_6b_train": {"tokens": 16384, "F": 3072},
        "deepseek_v3_dense_train": {"tokens": 4096, "F": 18432},
        "gpt_oss_expert_train": {"tokens": 32768, "F": 2880},
        "qwen3_30b_expert_train": {"tokens": 65536, "F": 768},
    },
    test_shapes={
        "one_block": {"tokens": 6, "F": 2048},
        "two_blocks": {"tokens": 3, "F": 4000},
        "several_rows": {"tokens": 13, "F": 768},
        "narrow": {"tokens": 17, "F": 24},
        "odd": {"tokens": 7, "F": 1171},
    },
    flops=flops,
    bytes=least_bytes,
    differentiable=("gate_up",),
    backward_flops=backward_flops,
    backward_bytes=backward_bytes,
    candidates={
        f"swiglu.{kernel}": (
            {"num_warps": 8},
            {"BLOCK": 1024, "ROWS": 1, "num_warps": 4},
            {"BLOCK": 2048, "ROWS": 1, "num_warps": 4},
            {"BLOCK": 4096, "ROWS": 1, "num_warps": 8},
            {"BLOCK": 256, "ROWS": 4, "num_warps": 4},
            {"BLOCK": 512, "ROWS": 4, "num_warps": 4},
        )
        for kernel in ("forward", "backward")
    },
)
