"""The kernels behind `grouped_matmul` and `moe`: rows sorted by expert times that expert's matrix, and its gradient.

    product:          y[s] = x[s] · W_eᵀ   (or · W_e, for dx)   for the rows s of expert e
    weight_gradient:  dW_e = Σ_s dy[s]ᵀ · x[s]

How many rows an expert has is known on the device alone. So the host launches a persistent grid for the most tiles
there can be, rows / BLOCK_M + experts, and a small kernel writes the table of those there are: nothing is read back.
Where memory is described to the hardware (TMA, sm_90 and later), the descriptors are ragged ones of Triton's own: a
tile that reaches past its expert's last row loads zeros and stores nothing there. Rows may be gathered instead of
dense, `source[s] // k` being the row to read: those loads go through pointers.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from triton.tools.ragged_tma import create_ragged_descriptor, to_ragged_indices
from triton.tools.tensor_descriptor import TensorDescriptor

from bench.kernels.op import architecture, processors
from bench.kernels.tuning import tuned

MAX_EXPERTS = 1024  # one program of the table's kernel holds them all
SLOTS = 64  # entries of the table written by one program; half as many beside more than 256 experts: no spills


@triton.jit
def _table(offs_ptr, table_ptr, slots, E, BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr, SLOTS: tl.constexpr):
    """Columns of `slots` entries: expert, its first row, past its last, its first tile, its tiles; then all tiles."""
    expert = tl.arange(0, BLOCK_E)
    end = tl.load(offs_ptr + expert, expert < E, other=0)
    start = tl.load(offs_ptr + expert - 1, (expert > 0) & (expert < E), other=0)
    tiles = tl.cdiv(tl.maximum(end - start, 0), BLOCK_M)
    past = tl.cumsum(tiles, 0)
    slot = tl.program_id(0) * SLOTS + tl.arange(0, SLOTS)
    # experts whose tiles all lie before this slot: an empty expert is passed over
    mine = tl.sum((past[None, :] <= slot[:, None]).to(tl.int32), 1)
    valid = (slot < slots) & (mine < E)
    first_row = tl.load(offs_ptr + mine - 1, valid & (mine > 0), other=0)
    last_row = tl.load(offs_ptr + mine, valid, other=0)
    own = mine[:, None] == expert[None, :]
    own_tiles = tl.sum(tl.where(own, tiles[None, :], 0), 1)
    own_past = tl.sum(tl.where(own, past[None, :], 0), 1)
    tl.store(table_ptr + slot, mine, valid)
    tl.store(table_ptr + slots + slot, first_row, valid)
    tl.store(table_ptr + 2 * slots + slot, last_row, valid)
    tl.store(table_ptr + 3 * slots + slot, own_past - own_tiles, valid)
    tl.store(table_ptr + 4 * slots + slot, own_tiles, valid)
    if tl.program_id(0) == 0:
        tl.store(table_ptr + 5 * slots, tl.sum(tiles, 0))


@triton.jit
def _swizzled(place, rows, columns, GROUP: tl.constexpr):
    """Row and column of tile `place`: GROUP rows of tiles go down the columns together, to meet in the L2 cache."""
    group = place // (GROUP * columns)
    height = tl.minimum(rows - group * GROUP, GROUP)
    inside = place % (GROUP * columns)
    return group * GROUP + inside % height, inside // height


@triton.jit
def _product(
    x, weight, bias_ptr, source_ptr, y, table_ptr, slots, C, R,
    TMA: tl.constexpr, TRANSPOSED: tl.constexpr, GATHER: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr, GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """C columns of y, summed over R. The matrix of an expert lies as (C, R), or TRANSPOSED as (R, C)."""
    POINTERS: tl.constexpr = GATHER or not TMA
    columns = tl.cdiv(C, BLOCK_C)
    tiles = tl.load(table_ptr + 5 * slots) * columns
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=TMA):
        slot = table_ptr + tile // columns
        expert = tl.load(slot)
        start, end = tl.load(slot + slots), tl.load(slot + 2 * slots)
        m, c = _swizzled(tile - tl.load(slot + 3 * slots) * columns, tl.load(slot + 4 * slots), columns, GROUP)
        m, c = m * BLOCK_M, c * BLOCK_C
        col = c + tl.arange(0, BLOCK_C)
        if POINTERS:
            # rows past the expert's last repeat it: read, and never stored
            row = tl.minimum(start + m + tl.arange(0, BLOCK_M), end - 1)
            row = tl.load(source_ptr + row) // GATHER if GATHER else row
            x_row = x + (row.to(tl.int64) * R)[:, None]
        if not TMA:
            w_expert = weight + expert.to(tl.int64) * C * R
        acc = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
        for r in range(0, R, BLOCK_R):
            k = r + tl.arange(0, BLOCK_R)
            a = tl.load(x_row + k[None, :], (k < R)[None, :], other=0) if POINTERS else x.load([start + m, r])
            if TMA:
                if TRANSPOSED:
                    b = weight.load([expert, r, c]).reshape(BLOCK_R, BLOCK_C)
                else:
                    b = weight.load([expert, c, r]).reshape(BLOCK_C, BLOCK_R).T
            elif TRANSPOSED:
                b = tl.load(w_expert + k[:, None] * C + col[None, :], (k < R)[:, None] & (col < C)[None, :], other=0)
            else:
                b = tl.load(w_expert + col[None, :] * R + k[:, None], (k < R)[:, None] & (col < C)[None, :], other=0)
            acc = tl.dot(a, b, acc, input_precision=PRECISION)
        if HAS_BIAS:
            bias = tl.load(bias_ptr + expert.to(tl.int64) * C + col, col < C, other=0).to(tl.float32)
            acc += bias[None, :]
        if TMA:
            i, j, m = to_ragged_indices(start, end - start, m)
            y.store([i, j, m, c], acc.to(y.dtype).reshape(1, 1, BLOCK_M, BLOCK_C))
        else:
            out = start + m + tl.arange(0, BLOCK_M)
            y_row = y + out.to(tl.int64)[:, None] * C
            tl.store(y_row + col[None, :], acc.to(y.dtype.element_ty), (out < end)[:, None] & (col < C)[None, :])


@triton.jit
def _rows(x, source_ptr, start, m, end, c, WIDTH, TMA: tl.constexpr, GATHER: tl.constexpr, TURNED: tl.constexpr,
          BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):  # fmt: skip
    """Rows m and on of an expert, columns c and on; zeros past its last row, whatever its neighbour holds there."""
    if TMA and not GATHER:
        i, j, place = to_ragged_indices(start, end - start, m)
        tile = x.load([i, j, place, c]).reshape(BLOCK_M, BLOCK_C)
        if TURNED:
            tile = tile.T
    else:
        row = start + m + tl.arange(0, BLOCK_M)
        inside = row < end
        if GATHER:
            row = tl.load(source_ptr + row, inside, other=0) // GATHER
        row = row.to(tl.int64) * WIDTH
        col = c + tl.arange(0, BLOCK_C)
        # turned as it is read, not after: a copy straight to shared memory has no registers to turn it in
        if TURNED:
            tile = tl.load(x + row[None, :] + col[:, None], inside[None, :] & (col < WIDTH)[:, None], other=0)
        else:
            tile = tl.load(x + row[:, None] + col[None, :], inside[:, None] & (col < WIDTH)[None, :], other=0)
    return tile


@triton.jit
def _weight_gradient(
    dy, x, source_ptr, dw, offs_ptr, E, N, K,
    TMA: tl.constexpr, DY_GATHER: tl.constexpr, X_GATHER: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    high, wide = tl.cdiv(N, BLOCK_N), tl.cdiv(K, BLOCK_K)
    for tile in tl.range(tl.program_id(0), E * high * wide, tl.num_programs(0), flatten=TMA):
        expert = tile // (high * wide)
        n, k = _swizzled(tile % (high * wide), high, wide, GROUP)
        n, k = n * BLOCK_N, k * BLOCK_K
        start = tl.load(offs_ptr + expert - 1, expert > 0, other=0)
        end = tl.load(offs_ptr + expert)
        # an expert without rows keeps its zeros, and they are stored
        acc = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
        for m in range(0, end - start, BLOCK_M):
            a = _rows(dy, source_ptr, start, m, end, n, N, TMA, DY_GATHER, True, BLOCK_M, BLOCK_N)
            b = _rows(x, source_ptr, start, m, end, k, K, TMA, X_GATHER, False, BLOCK_M, BLOCK_K)
            acc = tl.dot(a, b, acc, input_precision=PRECISION)
        if TMA:
            dw.store([expert, n, k], acc.to(dw.dtype).reshape(1, BLOCK_N, BLOCK_K))
        else:
            row, col = n + tl.arange(0, BLOCK_N)[:, None], k + tl.arange(0, BLOCK_K)[None, :]
            place = dw + tl.cast(expert, tl.int64) * N * K + row * K + col
            tl.store(place, acc.to(dw.dtype.element_ty), (row < N) & (col < K))


class Groups:
    """Rows sorted by expert: `offs` (E,) int32 on the device, where each expert's rows end."""

    def __init__(self, offs: torch.Tensor, rows: int) -> None:
        self.offs, self.rows, self.experts = offs, rows, offs.shape[0]
        self._tables: dict[int, tuple[torch.Tensor, int]] = {}

    def table(self, block: int) -> tuple[torch.Tensor, int]:
        """The table of tiles of `block` rows and its length; written once, for every product that asks."""
        if block not in self._tables:
            # each expert's last tile may be short: at most one tile an expert more than the rows fill
            slots = triton.cdiv(self.rows, block) + min(self.experts, self.rows)
            table = torch.empty(5 * slots + 1, dtype=torch.int32, device=self.offs.device)
            several = SLOTS if self.experts <= 256 else SLOTS // 2
            sizes = {"BLOCK_M": block, "BLOCK_E": triton.next_power_of_2(self.experts), "SLOTS": several}
            _table[(triton.cdiv(slots, several),)](self.offs, table, slots, self.experts, **sizes)
            self._tables[block] = table, slots
        return self._tables[block]


def _described(device: torch.device, *tensors: torch.Tensor) -> bool:
    """Whether the hardware can address these: it wants their start and every row at whole 16 bytes."""

    def aligned(x: torch.Tensor) -> bool:
        # a dimension of size 1 may have any stride and the tensor still be contiguous
        steps = (x.shape[-1], *x.stride()[:-1])
        return x.data_ptr() % 16 == 0 and all(step > 0 and step * x.element_size() % 16 == 0 for step in steps)

    return architecture(device) >= 90 and all(aligned(x) for x in tensors)


def _product_config(rows: int, experts: int, width: int, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Tile by the mean rows of an expert: an expert of 4 rows is bound by its weight, which any tile reads once."""
    if dtype == torch.float32:
        # exact fp32 products run outside the tensor cores: for tests, not for speed
        return {"BLOCK_M": 32, "BLOCK_C": 64, "BLOCK_R": 32, "GROUP": 8, "num_warps": 4, "num_stages": 1}
    mean = triton.cdiv(rows, experts)
    if mean <= 16:
        block, column, reduced, warps, stages = (16, 64, 128, 4, 4)
    elif mean <= 64:
        block, column, reduced, warps, stages = (64, 128, 64 if architecture(device) >= 90 else 32, 4, 4)
    elif architecture(device) >= 90:
        block, column, reduced, warps, stages = (128, 256, 64, 8, 3)
    else:
        block, column, reduced, warps, stages = (128, 128, 32, 8, 4)
    column = min(column, max(16, triton.next_power_of_2(width)))
    sizes = {"BLOCK_M": block, "BLOCK_C": column, "BLOCK_R": reduced, "GROUP": 8}
    return sizes | {"num_warps": warps, "num_stages": stages}


def product(
    x: torch.Tensor, weight: torch.Tensor, groups: Groups, kernel: str, *, transposed: bool = False,
    bias: torch.Tensor | None = None, source: torch.Tensor | None = None, gather: int = 0,
) -> torch.Tensor:  # fmt: skip
    """(rows, C): x's rows, or with `gather` = k its rows source // k, each times its expert's matrix."""
    experts, (c, r) = weight.shape[0], weight.shape[:0:-1] if transposed else weight.shape[1:]
    y = torch.empty((groups.rows, c), dtype=x.dtype, device=x.device)
    key = (triton.next_power_of_2(groups.rows), experts, c, r)
    config = tuned(kernel, key, _product_config(groups.rows, experts, c, x.device, x.dtype), x.device)
    table, slots = groups.table(config["BLOCK_M"])
    m, n, k = config["BLOCK_M"], config["BLOCK_C"], config["BLOCK_R"]
    tma = _described(x.device, x, weight, y)
    args: tuple[Any, ...] = (x, weight, y)
    if tma:
        args = (
            x if gather else TensorDescriptor.from_tensor(x, [m, k]),
            TensorDescriptor.from_tensor(weight, [1, k, n] if transposed else [1, n, k]),
            create_ragged_descriptor(y, [m, n]),
        )
    # two small programs share a multiprocessor: more loads are then in flight
    resident = processors(x.device) * (1 if m == 128 else 2)
    grid = (min(resident, slots * triton.cdiv(c, n)),)
    _product[grid](
        args[0], args[1], bias, source, args[2], table, slots, c, r, TMA=tma, TRANSPOSED=transposed, GATHER=gather,
        HAS_BIAS=bias is not None, PRECISION=_precision(x.dtype), **config,
    )  # fmt: skip
    return y


def _precision(dtype: torch.dtype) -> str:
    return "ieee" if dtype == torch.float32 else "tf32"


def _gradient_config(n: int, k: int, gather: int, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    if dtype == torch.float32:
        return {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 64, "GROUP": 8, "num_warps": 4, "num_stages": 1}
    described = architecture(device) >= 90
    wide, reduced, stages = (256, 64, 3) if described else (128, 32, 4)
    sizes = {"BLOCK_M": reduced, "BLOCK_N": min(128, max(16, triton.next_power_of_2(n))), "GROUP": 8}
    sizes["BLOCK_K"] = min(wide, max(16, triton.next_power_of_2(k)))
    # which rows to gather is itself loaded: half the stages lie between that load and theirs
    return sizes | {"num_warps": 8, "num_stages": 2 * stages - 1 if gather else stages}


def weight_gradient(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, groups: Groups, kernel: str, *,
    source: torch.Tensor | None = None, dy_gather: int = 0, x_gather: int = 0,
) -> torch.Tensor:  # fmt: skip
    """As `weight` (E, N, K): for each expert dyᵀ · x over its rows, zeros where it has none."""
    experts, n, k = weight.shape
    dw = torch.empty_like(weight)
    key = (triton.next_power_of_2(groups.rows), experts, n, k)
    config = tuned(kernel, key, _gradient_config(n, k, dy_gather or x_gather, x.device, x.dtype), x.device)
    m, block_n, block_k = config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_K"]
    tma = _described(x.device, dy, x)
    args: tuple[Any, ...] = (dy, x, dw)
    if tma:
        args = (
            dy if dy_gather else create_ragged_descriptor(dy, [m, block_n]),
            x if x_gather else create_ragged_descriptor(x, [m, block_k]),
            TensorDescriptor.from_tensor(dw, [1, block_n, block_k]),
        )
    tiles = experts * triton.cdiv(n, block_n) * triton.cdiv(k, block_k)
    _weight_gradient[(min(processors(x.device), tiles),)](
        args[0], args[1], source, args[2], groups.offs, experts, n, k, TMA=tma, DY_GATHER=dy_gather, X_GATHER=x_gather,
        PRECISION=_precision(x.dtype), **config,
    )  # fmt: skip
    return dw
