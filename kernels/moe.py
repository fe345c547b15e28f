"""Mixture of experts, the routed feed-forward block (Shazeer et al. 2017, https://arxiv.org/abs/1701.06538).

    y[t] = Σ_j weights[t, j] · (a · down[e]ᵀ + down_bias[e]),   e = experts[t, j]
    a = silu(gate) · up,   [gate | up] = x[t] · gate_up[e]ᵀ + gate_up_bias[e]
An expert outside 0 to E - 1, such as the -1 by which expert parallelism marks one that lives elsewhere, adds nothing
and its weight gets a gradient of zero.

With `limit` L the activation of gpt-oss (https://arxiv.org/abs/2508.10925): a = (u + 1) · g · sigmoid(1.702 · g), where
g = min(gate, L) and u = up clamped to ±L. Gate and up are halves, as in swiglu.py; gpt-oss stores them interleaved.

The T · k assignments are sorted by expert on the device (moe_sort.py) and the tokens' rows are gathered by the loads
of the first product: no permuted copy of x is written, here or in backward. Each token then gathers its k results and
sums them in order: no atomics. Backward, for the assignments s of token t, with w[s] the weight of each:

    b[s] = dy[t] · down[e],   dw[s] = Σ b[s] · a[s],   da[s] = w[s] · b[s]   (+ dy[t] · down_bias[e] in dw)
    ddown[e] = Σ_s dy[t]ᵀ · (w[s] · a[s]),   dgate_up[e] = Σ_s dh[s]ᵀ · x[t],   dx[t] = Σ_s dh[s] · gate_up[e]

so that neither the second product's result nor a is kept (as in SonicMoE, https://arxiv.org/abs/2512.14080).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from bench.kernels.grouped_matmul import GRADIENT, PRODUCT, active
from bench.kernels.grouped_matmul_tiles import MAX_EXPERTS, Groups, product, weight_gradient
from bench.kernels.moe_reference import SLOPE, reference
from bench.kernels.moe_sort import sorted_by_expert
from bench.kernels.op import Op, Shape

ALPHA = tl.constexpr(SLOPE)
BLOCK_H, BLOCK_F, ROWS = 1024, 256, 4  # 8 elements a thread of 4 warps: one 16-byte load of a 2-byte type
# float64 is for the reference: the kernels sum in fp32 whatever they read
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit
def _gated(h_tile, mask, limit, WIDTH: tl.constexpr, CLAMPED: tl.constexpr):
    """gate, up and sigmoid in fp32, clamped where asked, and what is inside the limits."""
    gate = tl.load(h_tile, mask, other=0).to(tl.float32)
    up = tl.load(h_tile + WIDTH, mask, other=0).to(tl.float32)
    if CLAMPED:
        gate_inside, up_inside = gate <= limit, (up >= -limit) & (up <= limit)
        gate = tl.minimum(gate, limit)
        # the 1 is gpt-oss's: an up of 0 passes the gate on
        up = tl.maximum(tl.minimum(up, limit), -limit) + 1
        sigma = tl.sigmoid(gate * ALPHA)
    else:
        gate_inside, up_inside = mask, mask
        sigma = tl.sigmoid(gate)
    return gate, up, sigma, gate_inside, up_inside


@triton.jit
def _activate(
    h_ptr, a_ptr, rows, limit,
    WIDTH: tl.constexpr, CLAMPED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # 64 bits: 131k rows of 2F = 16384 pass 2³¹ elements
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (col < WIDTH)
    gate, up, sigma, _, _ = _gated(h_ptr + row * (2 * WIDTH) + col, mask, limit, WIDTH, CLAMPED)
    tl.store(a_ptr + row * WIDTH + col, (gate * sigma * up).to(a_ptr.dtype.element_ty), mask)


@triton.jit
def _activate_backward(
    h_ptr, b_ptr, weights_ptr, source_ptr, last_ptr, dh_ptr, dweights_ptr, rows, limit,
    WIDTH: tl.constexpr, CLAMPED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dh and dweights of whole rows; w · a takes b's place, which is not needed any more."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    # rows that no valid assignment fills get zeros: what memory holds there is not read
    filled = row < tl.load(last_ptr)
    source = tl.load(source_ptr + row, filled, other=0)
    weight = tl.load(weights_ptr + source, filled, other=0).to(tl.float32)[:, None]
    dweight = tl.zeros((ROWS,), tl.float32)
    wide = row.to(tl.int64)[:, None]
    for c in range(0, WIDTH, BLOCK):
        col = c + tl.arange(0, BLOCK)[None, :]
        mask, read = (row < rows)[:, None] & (col < WIDTH), filled[:, None] & (col < WIDTH)
        place = wide * (2 * WIDTH) + col
        gate, up, sigma, gate_inside, up_inside = _gated(h_ptr + place, read, limit, WIDTH, CLAMPED)
        b = tl.load(b_ptr + wide * WIDTH + col, read, other=0).to(tl.float32)
        a = gate * sigma * up
        dweight += tl.sum(a * b, 1)
        slope = gate * ALPHA if CLAMPED else gate
        # d (g · sigmoid(α g)) / dg = sigmoid · (1 + α g · (1 - sigmoid))
        dgate = tl.where(gate_inside, weight * b * up * sigma * (1 + slope * (1 - sigma)), 0.0)
        dup = tl.where(up_inside, weight * b * gate * sigma, 0.0)
        tl.store(dh_ptr + place, dgate.to(dh_ptr.dtype.element_ty), mask)
        tl.store(dh_ptr + place + WIDTH, dup.to(dh_ptr.dtype.element_ty), mask)
        tl.store(b_ptr + wide * WIDTH + col, (weight * a).to(b_ptr.dtype.element_ty), mask)
    tl.store(dweights_ptr + source, dweight, filled)


@triton.jit
def _combine(
    rows_ptr, weights_ptr, slot_ptr, y_ptr,
    WEIGHTED: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A token's k rows summed in the order of its choices, times their weights where WEIGHTED."""
    token = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for j in tl.static_range(K):
        row = tl.load(slot_ptr + token * K + j).to(tl.int64)
        # a choice without a row adds nothing, whatever its weight
        value = tl.load(rows_ptr + row * WIDTH + col, (col < WIDTH) & (row >= 0), other=0).to(tl.float32)
        if WEIGHTED:
            value *= tl.load(weights_ptr + token * K + j, row >= 0, other=0).to(tl.float32)
        total += value
    tl.store(y_ptr + token * WIDTH + col, total.to(y_ptr.dtype.element_ty), col < WIDTH)


def _combined(rows: torch.Tensor, weights: torch.Tensor | None, slot: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    y, (tokens, width) = torch.empty_like(like), like.shape
    _combine[(tokens, triton.cdiv(width, BLOCK_H))](
        rows, weights, slot, y, WEIGHTED=weights is not None, K=slot.shape[0] // tokens, WIDTH=width, BLOCK=BLOCK_H
    )
    return y


class _MoE(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, experts: torch.Tensor,
        weights: torch.Tensor, gate_up_bias: Any, down_bias: Any, limit: float | None,
    ) -> torch.Tensor:  # fmt: skip
        source, slot, offs = sorted_by_expert(experts, gate_up.shape[0])
        groups = Groups(offs, experts.numel())
        h = product(x, gate_up, groups, "moe.gate_up", bias=gate_up_bias, source=source, gather=experts.shape[1])
        width = down.shape[2]
        a = torch.empty((groups.rows, width), dtype=x.dtype, device=x.device)
        ctx.glu = {"WIDTH": width, "CLAMPED": limit is not None, "ROWS": ROWS, "BLOCK": BLOCK_F}
        grid = (triton.cdiv(groups.rows, ROWS), triton.cdiv(width, BLOCK_F))
        _activate[grid](h, a, groups.rows, limit or 0.0, **ctx.glu)
        y = _combined(product(a, down, groups, "moe.down", bias=down_bias), weights, slot, x)
        ctx.save_for_backward(x, gate_up, down, experts, weights, down_bias, h, source, slot, offs)
        ctx.groups, ctx.limit = groups, limit or 0.0
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        x, gate_up, down, experts, weights, down_bias, h, source, slot, _ = ctx.saved_tensors
        groups, k, needs = ctx.groups, experts.shape[1], ctx.needs_input_grad
        dy = dy.contiguous()
        b = product(dy, down, groups, "moe.down_dx", transposed=True, source=source, gather=k)
        dh, dweights = torch.empty_like(h), torch.zeros(weights.shape, dtype=torch.float32, device=x.device)
        _activate_backward[(triton.cdiv(groups.rows, ROWS),)](
            h, b, weights, source, groups.offs[-1:], dh, dweights, groups.rows, ctx.limit, **ctx.glu
        )
        ddown = dgate_up = dx = dgate_up_bias = ddown_bias = None
        if needs[2]:
            ddown = weight_gradient(dy, b, down, groups, "moe.ddown", source=source, dy_gather=k)
        if needs[1]:
            dgate_up = weight_gradient(dh, x, gate_up, groups, "moe.dgate_up", source=source, x_gather=k)
        if needs[0]:
            dx = _combined(product(dh, gate_up, groups, "moe.dx", transposed=True), None, slot, x)
        # the biases' gradients are small dense products: torch's
        number = torch.arange(gate_up.shape[0], device=x.device)
        if down_bias is not None:
            valid = (experts >= 0) & (experts < len(number))
            dweights += (dy @ down_bias.T).gather(1, experts.long() * valid).where(valid, 0)
        if needs[6]:
            share = torch.where(experts[:, :, None] == number, weights[:, :, None], 0).sum(1)
            ddown_bias = share.to(dy.dtype).T @ dy
        if needs[5]:
            chosen = torch.bucketize(torch.arange(groups.rows, device=x.device), groups.offs, right=True)
            dgate_up_bias = (chosen[:, None] == number).to(dh.dtype).T @ dh
        return dx, dgate_up, ddown, None, dweights.to(weights.dtype), dgate_up_bias, ddown_bias, None


def _check(x: Any, gate_up: Any, down: Any, experts: Any, weights: Any, biases: dict[str, Any]) -> None:
    if x.dim() != 2 or gate_up.dim() != 3 or gate_up.shape[1] % 2 or gate_up.shape[2] != x.shape[1]:
        raise ValueError(f"moe: want x (T, H), gate_up (E, 2F, H), got {x.shape} and {gate_up.shape}")
    size, (count, width, hidden) = x.shape[0], gate_up.shape
    if down.shape != (count, hidden, width // 2) or 0 in (size, count, width, hidden) or count > MAX_EXPERTS:
        raise ValueError(f"moe: want down (E, H, F), nothing empty, E to {MAX_EXPERTS}: {gate_up.shape}, {down.shape}")
    if experts.dim() != 2 or experts.shape[0] != size or weights.shape != experts.shape or experts.numel() == 0:
        raise ValueError(f"moe: want experts and weights ({size}, k), got {experts.shape} and {weights.shape}")
    if experts.dtype != torch.int32 or weights.dtype not in DTYPES:
        raise ValueError(f"moe: want int32 experts, floating weights, got {experts.dtype} and {weights.dtype}")
    shapes = {"gate_up_bias": (count, width), "down_bias": (count, hidden)}
    for name, bias in biases.items():
        if bias is not None and bias.shape != shapes[name]:
            raise ValueError(f"moe: {name} must be {shapes[name]}, got {bias.shape}")
    tensors = [gate_up, down, *(bias for bias in biases.values() if bias is not None)]
    if x.dtype not in DTYPES or any(tensor.dtype != x.dtype for tensor in tensors):
        raise ValueError(f"moe: want one of float32/16, bfloat16 for all but weights, got {x.dtype}, {gate_up.dtype}")
    tensors += [x, experts, weights]
    if any(tensor.device != x.device or not tensor.is_contiguous() for tensor in tensors):
        raise ValueError("moe: all tensors must be contiguous and on one device")


def moe(
    x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor, *,
    gate_up_bias: torch.Tensor | None = None, down_bias: torch.Tensor | None = None, limit: float | None = None,
) -> torch.Tensor:  # fmt: skip
    """As `reference`. Reads nothing back, so safe in a CUDA graph."""
    _check(x, gate_up, down, experts, weights, {"gate_up_bias": gate_up_bias, "down_bias": down_bias})
    if limit is not None and not limit > 0:
        raise ValueError(f"moe: limit must be positive, got {limit}")
    return _MoE.apply(x, gate_up, down, experts, weights, gate_up_bias, down_bias, limit)


def inputs(shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> dict[str, Any]:
    """k different experts a token, whose popularity falls with rank to the power -zipf / 100 (0: uniform)."""
    tokens, count, k, hidden, width = (shape[key] for key in ("T", "E", "k", "H", "F"))

    def draw(*size: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(size, device=device, generator=generator) * scale).to(dtype)

    # whole numbers are drawn where the generator lives: tensors without memory draw nothing
    place = generator.device
    popularity = torch.arange(1, count + 1, device=place).float() ** (-shape.get("zipf", 0) / 100)
    popularity = popularity[torch.randperm(count, generator=generator, device=place)]
    experts = torch.multinomial(popularity.expand(tokens, -1), k, generator=generator)
    # products of the order of 1, as a trained layer's are
    kwargs = {"x": draw(tokens, hidden), "gate_up": draw(count, 2 * width, hidden, scale=hidden**-0.5)}
    kwargs |= {"down": draw(count, hidden, width, scale=width**-0.5), "experts": experts.int().to(device)}
    kwargs["weights"] = torch.randn((tokens, k), device=device, generator=generator).softmax(-1)
    if not shape.get("gpt_oss"):
        return kwargs | {"gate_up_bias": None, "down_bias": None, "limit": None}
    biases = {"gate_up_bias": draw(count, 2 * width, scale=0.1), "down_bias": draw(count, hidden, scale=0.1)}
    return kwargs | biases | {"limit": 7.0}


def flops(shape: Shape) -> int:
    """Three products a token and chosen expert."""
    return 6 * shape["T"] * shape["k"] * shape["H"] * shape["F"]


def least_bytes(shape: Shape, element: int) -> int:
    """Read x and the experts that can be chosen, write y; nothing between need reach memory."""
    used = active(shape["E"], shape["T"] * shape["k"])
    return element * (2 * shape["T"] * shape["H"] + 3 * used * shape["H"] * shape["F"]) + 8 * shape["T"] * shape["k"]


def backward_bytes(shape: Shape, element: int) -> int:
    """Read dy, x, what forward kept of gate and up, and the experts; write dx and the experts' gradients."""
    used = active(shape["E"], shape["T"] * shape["k"]) + shape["E"]
    kept = 3 * shape["T"] * shape["H"] + 2 * shape["T"] * shape["k"] * shape["F"]
    return element * (kept + 3 * used * shape["H"] * shape["F"]) + 12 * shape["T"] * shape["k"]


QWEN3 = {"E": 128, "k": 8, "H": 2048, "F": 768}
OP = Op(
    reference=reference,
    triton=moe,
    inputs=inputs,
    shapes={
        "qwen3_30b_a3b_train": {"T": 8192, **QWEN3},
        "qwen3_30b_a3b_train_zipf": {"T": 8192, **QWEN3, "zipf": 100},
        "qwen3_30b_a3b_decode": {"T": 64, **QWEN3},
        "qwen3_30b_a3b_prefill": {"T": 1024, **QWEN3},
        "gpt_oss_20b_train": {"T": 8192, "E": 32, "k": 4, "H": 2880, "F": 2880, "gpt_oss": 1},
        "mixtral_8x7b_train": {"T": 4096, "E": 8, "k": 2, "H": 4096, "F": 14336},
    },
    test_shapes={
        "even": {"T": 24, "E": 4, "k": 2, "H": 32, "F": 64},
        "zipf": {"T": 33, "E": 8, "k": 2, "H": 64, "F": 32, "zipf": 250},
        "gpt_oss": {"T": 24, "E": 5, "k": 3, "H": 48, "F": 32, "gpt_oss": 1},
        "odd": {"T": 29, "E": 5, "k": 1, "H": 37, "F": 27, "zipf": 100},
    },
    flops=flops,
    bytes=least_bytes,
    differentiable=("x", "gate_up", "down", "weights", "gate_up_bias", "down_bias"),
    backward_flops=lambda shape: 2 * flops(shape),
    backward_bytes=backward_bytes,
    candidates={f"moe.{name}": PRODUCT for name in ("gate_up", "down", "down_dx", "dx")}
    | {f"moe.{name}": GRADIENT for name in ("ddown", "dgate_up")},
)
