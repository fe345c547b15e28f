"""The matmul kernel of sm_90 and newer: c = a · bᵀ through tensor memory access (TMA), one program a multiprocessor.

Operands are (rows, depth) views of which either dimension may be the contiguous one, so that the products of the
backward pass (dy · weight, dyᵀ · x) read what the forward pass left where it lies: a tile is loaded as it is stored
and transposed as a view of shared memory, which the tensor cores of sm_90 and sm_100 read in both orders (of 16-bit
elements; of 8-bit ones only contiguous depth). Programs walk over tiles, and the loop over tiles and that over depth
are flattened into one, so the loads of the next tile are in flight while the last one is stored. Tiles are stored by
halves: the smaller buffer pays for one more stage of loads.
After: https://triton-lang.org/main/getting-started/tutorials/09-persistent-matmul.html
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from bench.kernels.op import processors
from bench.kernels.tuning import tuned

ACTIVATIONS = ("silu", "gelu")  # gelu: the tanh form
GELU = tl.constexpr(1.5957691216057308)  # 2 · sqrt(2 / pi): tanh(z) = 2 · sigmoid(2z) - 1
# (BM, BN, bytes of depth a step, warps, stages): within 227 KiB with half a tile of 16-bit output beside it
TILES = (
    (128, 256, 128, 8, 4),
    (128, 128, 128, 8, 5),
    (64, 256, 128, 4, 4),
    (64, 128, 256, 4, 4),
    (64, 64, 256, 4, 6),
    (64, 32, 512, 4, 4),
)
GROUP = 8  # rows of tiles that walk along the columns together


@triton.jit
def place(tile, rows, columns, GROUP: tl.constexpr):
    """Row and column of a tile by its number. GROUP rows go along the columns together: their operands meet in L2."""
    first = tile // (GROUP * columns) * GROUP
    inside = tile % (GROUP * columns)
    height = tl.minimum(rows - first, GROUP)
    return first + inside % height, inside // height


@triton.jit
def finish(acc, bias_ptr, column, N, ACTIVATION: tl.constexpr):
    """Bias and activation on a tile whose first column is `column`, in fp32."""
    if bias_ptr is not None:
        n = column + tl.arange(0, acc.shape[1])
        acc += tl.load(bias_ptr + n, n < N, other=0).to(tl.float32)[None, :]
    if ACTIVATION == "silu":
        acc *= tl.sigmoid(acc)
    elif ACTIVATION == "gelu":
        acc *= tl.sigmoid((acc + 0.044715 * acc * acc * acc) * GELU)
    return acc


@triton.jit
def _scaled(acc, a_scale_ptr, b_scale_ptr, row, column, M, N, ROWWISE: tl.constexpr):
    """Scales of fp8 operands: one number each, or one a row of either."""
    if ROWWISE:
        m, n = row + tl.arange(0, acc.shape[0]), column + tl.arange(0, acc.shape[1])
        a_scale = tl.load(a_scale_ptr + m, m < M, other=0)
        return acc * a_scale[:, None] * tl.load(b_scale_ptr + n, n < N, other=0)[None, :]
    return acc * (tl.load(a_scale_ptr) * tl.load(b_scale_ptr))


@triton.jit
def persistent(
    a_desc, b_desc, c_desc, bias_ptr, a_scale_ptr, b_scale_ptr, M, N, K,
    A_DEPTH_LAST: tl.constexpr, B_DEPTH_LAST: tl.constexpr, ROWWISE: tl.constexpr, EXACT: tl.constexpr,
    ACTIVATION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    HALVES: tl.constexpr,
):  # fmt: skip
    rows, columns = tl.cdiv(M, BM), tl.cdiv(N, BN)
    for tile in tl.range(tl.program_id(0), rows * columns, tl.num_programs(0), flatten=True):
        row, column = place(tile, rows, columns, GROUP)
        row, column = row * BM, column * BN
        acc = tl.zeros((BM, BN), tl.float32)
        # past the end of any dimension a descriptor loads zeros and stores nothing
        for k in range(0, K, BK):
            a = a_desc.load([row, k]) if A_DEPTH_LAST else a_desc.load([k, row]).T
            b = b_desc.load([column, k]).T if B_DEPTH_LAST else b_desc.load([k, column])
            if EXACT:
                a, b = a.to(tl.float16), b.to(tl.float16)
            acc = tl.dot(a, b, acc)
        if HALVES == 2:
            left, right = tl.split(acc.reshape(BM, 2, BN // 2).permute(0, 2, 1))
            if a_scale_ptr is not None:
                left = _scaled(left, a_scale_ptr, b_scale_ptr, row, column, M, N, ROWWISE)
                right = _scaled(right, a_scale_ptr, b_scale_ptr, row, column + BN // 2, M, N, ROWWISE)
            left = finish(left, bias_ptr, column, N, ACTIVATION)
            c_desc.store([row, column], left.to(c_desc.dtype))
            right = finish(right, bias_ptr, column + BN // 2, N, ACTIVATION)
            c_desc.store([row, column + BN // 2], right.to(c_desc.dtype))
        else:
            if a_scale_ptr is not None:
                acc = _scaled(acc, a_scale_ptr, b_scale_ptr, row, column, M, N, ROWWISE)
            acc = finish(acc, bias_ptr, column, N, ACTIVATION)
            c_desc.store([row, column], acc.to(c_desc.dtype))


def described(x: torch.Tensor, block: tuple[int, int]) -> TensorDescriptor:
    """A descriptor of a 2-D view by blocks of (rows, depth), in the order in which it is stored."""
    stored, block = (x, block) if x.stride(1) == 1 else (x.t(), block[::-1])
    return TensorDescriptor(stored, list(stored.shape), list(stored.stride()), list(block))


def describable(x: torch.Tensor) -> bool:
    """Whether TMA can address a 2-D view: one dimension contiguous, start and the other's stride 16-byte multiples."""
    inner = 1 if x.stride(1) == 1 else 0
    step = x.stride(1 - inner) * x.element_size()
    return x.stride(inner) == 1 and step % 16 == 0 and 0 < step < 2**40 and x.data_ptr() % 16 == 0


def cheapest(m: int, n: int, tiles: tuple[tuple[int, ...], ...], device: torch.device) -> tuple[int, ...]:
    """The tile with the least time: rounds over the multiprocessors x (products + operands' loads) of a tile.

    64 is what loading one more row costs in columns multiplied: larger tiles win until they leave
    multiprocessors idle; at few rows the narrowest tile that still fills the GPU does.
    """

    def time(tile: tuple[int, ...]) -> int:
        bm, bn = tile[:2]
        rounds = triton.cdiv(triton.cdiv(m, bm) * triton.cdiv(n, bn), processors(device))
        return rounds * (bm * bn + 64 * (bm + bn))

    return min(tiles, key=time)


def key(a: torch.Tensor, b: torch.Tensor) -> tuple[int | str, ...]:
    """Tuning key: rows as a power of two (they vary), width and depth as they are, the layout as in BLAS."""
    layout = ("n" if a.stride(1) == 1 else "t") + ("t" if b.stride(1) == 1 else "n")
    return (layout, triton.next_power_of_2(a.shape[0]), b.shape[0], a.shape[1])


def multiply(
    name: str, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, *, bias: torch.Tensor | None = None,
    activation: str | None = None, scales: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None),
) -> None:  # fmt: skip
    """c (M, N) = a (M, K) · b (N, K)ᵀ, all three describable; scales and bias as in the ops."""
    (m, k), n = a.shape, b.shape[0]
    exact = c.dtype == torch.float32
    # fp32 output of fp8 operands is for tests: their products in fp16 are exact, the tile small
    bm, bn, depth, warps, stages = (64, 64, 128, 4, 2) if exact else cheapest(m, n, TILES, a.device)
    default = {
        "BM": bm, "BN": bn, "BK": depth // a.element_size(), "GROUP": GROUP, "HALVES": 2 if bn == 256 else 1,
        "num_warps": warps, "num_stages": stages,
    }  # fmt: skip
    config = tuned(f"{name}.persistent", key(a, b), default, a.device)
    bm, bn, bk, halves = (config[name] for name in ("BM", "BN", "BK", "HALVES"))
    programs = min(triton.cdiv(m, bm) * triton.cdiv(n, bn), processors(a.device))
    persistent[(programs,)](
        described(a, (bm, bk)), described(b, (bn, bk)), described(c, (bm, bn // halves)), bias, *scales, m, n, k,
        A_DEPTH_LAST=a.stride(1) == 1, B_DEPTH_LAST=b.stride(1) == 1,
        ROWWISE=scales[0] is not None and scales[0].dim() > 0, EXACT=exact, ACTIVATION=activation, **config,
    )  # fmt: skip
