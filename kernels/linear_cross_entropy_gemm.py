"""The matrix products of linear_cross_entropy, and what is worked out in their epilogues.

`_logits` multiplies hidden states by the vocabulary's weight. No logit leaves the registers as such: the epilogue
takes the maximum of a row's share of the tile, and writes two numbers a row and share (maximum, sum of exponentials),
from which the log-sum-exp follows (online softmax, Milakov & Gimelshein 2018, https://arxiv.org/abs/1805.02867), and,
if a gradient is wanted, exp(logit - maximum). That is at most 1, and 16 bits hold it to a relative 2⁻⁹ whatever the
logit's size; the exponential of a logit of 20 that was rounded to bfloat16 is off by up to 6%.
`_product` forms the two gradients, with the scale 1/n and the sum over chunks in the epilogue.

Both are persistent: one program a multiprocessor walks over output tiles, and from sm_90 on loads them through tensor
descriptors (TMA), the next tile's first factors while the last one's epilogue runs. Where descriptors cannot go
(sm_80, rows that are no multiple of 16 bytes) tiles come by pointer.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from bench.kernels.matmul_persistent import describable
from bench.kernels.op import architecture, processors
from bench.kernels.tuning import tuned

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _load(x, row, col, rows, cols, stride, T: tl.constexpr, TMA: tl.constexpr, R: tl.constexpr, C: tl.constexpr):
    """R x C elements of a row-major matrix, transposed where T; zeros past its ends, whatever memory holds there."""
    if TMA:
        value = x.load([row, col])
        # in shared memory, from which the tensor cores read 16-bit factors in either order
        value = value.T if T else value
    else:
        r = row + tl.arange(0, R)
        c = col + tl.arange(0, C)
        # loaded in the order wanted: a transposition between load and product would not be copied asynchronously
        r, c = (r[None, :], c[:, None]) if T else (r[:, None], c[None, :])
        # 64 bits: rows x vocabulary passes 2³¹
        value = tl.load(x + r.to(tl.int64) * stride + c, (r < rows) & (c < cols), other=0)
    return value


@triton.jit
def _store(x, value, row, col, rows, cols, stride, TMA: tl.constexpr, R: tl.constexpr, C: tl.constexpr):
    if TMA:
        x.store([row, col], value.to(x.dtype))
    else:
        r = row + tl.arange(0, R)
        c = col + tl.arange(0, C)
        place = x + r.to(tl.int64)[:, None] * stride + c[None, :]
        tl.store(place, value.to(x.dtype.element_ty), (r < rows)[:, None] & (c < cols)[None, :])


@triton.jit
def _softmax(
    x, exp, targets_ptr, peak_ptr, total_ptr, right_ptr, first_row, first_col, rows, V, exp_stride, partials,
    STORED: tl.constexpr, TMA: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    row = first_row + tl.arange(0, M)
    col = first_col + tl.arange(0, N)
    target = tl.load(targets_ptr + row, row < rows, other=-1)
    # base 2, the hardware's exponential; columns past the vocabulary count as logits of -inf
    x = tl.where((col < V)[None, :], x * LOG2_E, float("-inf"))
    # at most one tile of a row holds its target; a target outside the vocabulary is nowhere and writes nothing
    right = tl.sum(tl.where(col[None, :] == target[:, None], x, 0.0), 1)
    tl.store(right_ptr + row, right, (target >= first_col) & (target < tl.minimum(first_col + N, V)))
    # finite, so that a tile of -inf logits does not make -inf + inf
    peak = tl.maximum(tl.max(x, 1), -3e38)
    x = tl.exp2(x - peak[:, None])
    place = row.to(tl.int64) * partials + first_col // N
    # the right half of the last tile may lie past the vocabulary altogether
    written = (row < rows) & (first_col < V)
    tl.store(peak_ptr + place, peak, written)
    tl.store(total_ptr + place, tl.sum(x, 1), written)
    if STORED:
        _store(exp, x, first_row, first_col, rows, V, exp_stride, TMA, M, N)


@triton.jit
def _logits(
    hidden, weight, exp, targets_ptr, peak_ptr, total_ptr, right_ptr, rows, V, H,
    hidden_stride, weight_stride, exp_stride, partials,
    STORED: tl.constexpr, TMA: tl.constexpr, PRECISION: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    down = tl.cdiv(rows, M)
    # rows change fastest: the hidden states stay in the L2 cache and the weight streams through once
    for tile in tl.range(tl.program_id(0), down * tl.cdiv(V, N), tl.num_programs(0), flatten=TMA):
        first_row, first_col = tile % down * M, tile // down * N
        acc = tl.zeros((M, N), tl.float32)
        for k in range(0, H, K):
            a = _load(hidden, first_row, k, rows, H, hidden_stride, False, TMA, M, K)
            b = _load(weight, first_col, k, V, H, weight_stride, True, TMA, N, K)
            acc = tl.dot(a, b, acc, input_precision=PRECISION)
        # in halves: what the epilogue of all N columns needs at once does not fit the registers
        left, right = tl.split(tl.permute(tl.reshape(acc, (M, 2, N // 2)), (0, 2, 1)))
        _softmax(
            left, exp, targets_ptr, peak_ptr, total_ptr, right_ptr, first_row, first_col, rows, V,
            exp_stride, partials, STORED, TMA, M, N // 2,
        )  # fmt: skip
        _softmax(
            right, exp, targets_ptr, peak_ptr, total_ptr, right_ptr, first_row, first_col + N // 2, rows, V,
            exp_stride, partials, STORED, TMA, M, N // 2,
        )  # fmt: skip


@triton.jit
def _add(
    out, value, row, col, rows, cols, stride,
    ADDED: tl.constexpr, TMA: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    if ADDED:
        value += _load(out, row, col, rows, cols, stride, False, TMA, R, C).to(tl.float32)
    _store(out, value, row, col, rows, cols, stride, TMA, R, C)


@triton.jit
def _product(
    a, b, out, count_ptr, rows, cols, depth, a_stride, b_stride, out_stride,
    TRANSPOSED: tl.constexpr, ADDED: tl.constexpr, TMA: tl.constexpr, PRECISION: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    # a sum over every token; none counted leaves zeros, not 0 / 0
    scale = 1 / tl.maximum(tl.load(count_ptr), 1).to(tl.float32)
    across = tl.cdiv(cols, N)
    # columns change fastest: the programs at work share a few strips of `a`, the larger factor
    for tile in tl.range(tl.program_id(0), tl.cdiv(rows, M) * across, tl.num_programs(0), flatten=TMA):
        first_row, first_col = tile // across * M, tile % across * N
        acc = tl.zeros((M, N), tl.float32)
        for k in range(0, depth, K):
            if TRANSPOSED:
                x = _load(a, k, first_row, depth, rows, a_stride, True, TMA, K, M)
            else:
                x = _load(a, first_row, k, rows, depth, a_stride, False, TMA, M, K)
            y = _load(b, k, first_col, depth, cols, b_stride, False, TMA, K, N)
            acc = tl.dot(x, y, acc, input_precision=PRECISION)
        # in halves, so that reading the sum so far and storing it take half the shared memory
        halves = tl.permute(tl.reshape(acc * scale, (M, 2, N // 2)), (0, 2, 1))
        left, right = tl.split(halves)
        _add(out, left, first_row, first_col, rows, cols, out_stride, ADDED, TMA, M, N // 2)
        _add(out, right, first_row, first_col + N // 2, rows, cols, out_stride, ADDED, TMA, M, N // 2)


def _config(kernel: str, tma: bool, like: torch.Tensor, rows: int, cols: int, depth: int) -> dict[str, Any]:
    """Tiles: the largest for which ptxas spills nothing; four stages where they fit shared memory with the epilogue."""
    names = ("M", "N", "K", "num_warps", "num_stages")
    if like.dtype == torch.float32:
        # exact products run outside the tensor cores: for tests, not for speed
        return dict(zip(names, (64, 64, 32, 4, 1), strict=True)) | {"TMA": tma, "PRECISION": "ieee"}
    if tma:
        # from sm_100 on dhidden's epilogue takes more shared memory; dweight's reads the sum so far
        deep = kernel == "logits" or (kernel == "dhidden" and architecture(like.device) == 90)
        sizes = (128, 256, 64, 8, 4 if deep else 3)
    else:
        sizes = (128, 128, 64, 8, 4) if kernel == "dweight" else (128, 256, 32, 8, 4)
    key = ("tma" if tma else "pointer", *(triton.next_power_of_2(size) for size in (rows, cols, depth)))
    config = tuned(f"linear_cross_entropy.{kernel}", key, dict(zip(names, sizes, strict=True)), like.device)
    return config | {"TMA": tma, "PRECISION": "tf32"}


def _describable(*matrices: torch.Tensor) -> bool:
    """Whether TMA can address them: from sm_90 on, 16-byte aligned rows, not one row expanded to many."""
    return architecture(matrices[0].device) >= 90 and all(describable(x) for x in matrices)


def _programs(config: dict[str, Any], rows: int, cols: int, device: torch.device) -> tuple[int]:
    tiles = triton.cdiv(rows, config["M"]) * triton.cdiv(cols, config["N"])
    return (min(tiles, processors(device)),)


def logits(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, exp: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """hidden (rows, H), weight (V, H) -> maxima and sums of exponentials (rows, shares), target logits (rows,), and
    the share's width; base 2. Writes exp2(logit - maximum) to `exp` (rows, V) where there is one."""
    (rows, depth), vocabulary, device = hidden.shape, weight.shape[0], hidden.device
    tma = _describable(hidden, weight, *(() if exp is None else (exp,)))
    config = _config("logits", tma, hidden, rows, vocabulary, depth)
    M, N, K = config["M"], config["N"], config["K"]
    shares = triton.cdiv(vocabulary, N // 2)
    peak = torch.empty((rows, shares), dtype=torch.float32, device=device)
    total, right = torch.empty_like(peak), torch.empty(rows, dtype=torch.float32, device=device)
    matrices: Any = (hidden, weight, exp)
    if tma:
        blocks = ([M, K], [N, K], [M, N // 2])
        matrices = [
            x if x is None else TensorDescriptor.from_tensor(x, b) for x, b in zip(matrices, blocks, strict=True)
        ]
    _logits[_programs(config, rows, vocabulary, device)](
        *matrices, targets, peak, total, right, rows, vocabulary, depth,
        hidden.stride(0), weight.stride(0), 0 if exp is None else exp.stride(0), shares,
        STORED=exp is not None, **config,
    )  # fmt: skip
    return peak, total, right, N // 2


def product(kernel: str, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, count: torch.Tensor, added: bool) -> None:
    """out = a @ b / count ("dhidden") or aᵀ @ b / count ("dweight"), on top of what `out` holds where `added`."""
    transposed = kernel == "dweight"
    (rows, cols), depth = out.shape, b.shape[0]
    tma = _describable(a, b, out)
    config = _config(kernel, tma, a, rows, cols, depth)
    M, N, K = config["M"], config["N"], config["K"]
    matrices: Any = (a, b, out)
    if tma:
        blocks = ([K, M] if transposed else [M, K], [K, N], [M, N // 2])
        matrices = [TensorDescriptor.from_tensor(x, block) for x, block in zip(matrices, blocks, strict=True)]
    _product[_programs(config, rows, cols, out.device)](
        *matrices, count, rows, cols, depth, a.stride(0), b.stride(0), out.stride(0),
        TRANSPOSED=transposed, ADDED=added, **config,
    )  # fmt: skip
