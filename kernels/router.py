"""The router of a mixture of experts: each token's top-k experts and their weights.

    softmax:  p = softmax(logits),    choice = p
    sigmoid:  p = sigmoid(logits),    choice = p + bias   (DeepSeek-V3, https://arxiv.org/abs/2412.19437, §2.1.2)

    experts = top-k of choice,   weights = scale · p[experts] / Σ p[experts]   (without `normalise`: scale · p[experts])

Softmax over all and normalised (Qwen3-MoE) is the same number as softmax over the chosen logits alone (Mixtral,
gpt-oss): the sum over all cancels. With `groups`, a token first keeps the `top_groups` groups of neighbouring experts
whose two best choices sum highest. Of equal choices the lowest expert goes first. The bias steers the choice alone
and has no gradient. Backward, with c = 1 where chosen, g = scale · dweights there, s = Σ c · p (1 if not normalised):

    dp = c · (g - Σ g · p / s) / s   (not normalised: c · g),   dlogits = p · (dp - Σ dp · p),  or dp · p · (1 - p)
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from bench.kernels.op import Op, Shape
from bench.kernels.tuning import tuned

MAX_EXPERTS, MAX_TOP_K = 512, 16
SCORINGS = ("softmax", "sigmoid")
# a live choice of -inf counts as this, the lowest finite fp32: it still goes before what is not to be chosen
LOWEST = tl.constexpr(-3.4028234663852886e38)
LEAST = tl.constexpr(1e-20)  # DeepSeek-V3's guard: sigmoids may all underflow
# float64 is for the reference: the kernels compute in fp32 whatever they read
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def reference(
    logits: torch.Tensor, top_k: int, *, scoring: str = "softmax", normalise: bool = True, scale: float = 1.0,
    bias: torch.Tensor | None = None, groups: int = 1, top_groups: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """logits (T, E), bias (E,) -> weights (T, k) in at least fp32, experts (T, k) int32, best first."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    scores = wide.softmax(-1) if scoring == "softmax" else wide.sigmoid()
    # softmax keeps the order of the logits, but rounding may tie what they tell apart
    choice = wide if scoring == "softmax" else scores
    choice = choice.detach() if bias is None else choice.detach() + bias
    choice = choice.clamp_min(LOWEST.value)
    if groups > 1:
        grouped = choice.unflatten(-1, (groups, -1))
        best = grouped.topk(2, -1).values.sum(-1).sort(dim=-1, descending=True, stable=True).indices[:, :top_groups]
        kept = torch.zeros(best.shape[0], groups, dtype=torch.bool, device=best.device).scatter(1, best, True)
        choice = grouped.masked_fill(~kept[:, :, None], float("-inf")).flatten(1)
    # a stable sort, because top-k promises nothing about ties
    experts = choice.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    weights = scores.gather(1, experts)
    if normalise:
        weights = weights / (weights.sum(-1, keepdim=True) + LEAST.value)
    return weights * scale, experts.int()


@triton.jit
def _kept(choice, GROUPS: tl.constexpr, TOP_GROUPS: tl.constexpr, ROWS: tl.constexpr, E: tl.constexpr):
    """choice with -inf outside the groups whose two best sum highest."""
    grouped = tl.reshape(choice, (ROWS, GROUPS, E // GROUPS))
    first, where = tl.max(grouped, 2, return_indices=True)
    member = tl.arange(0, E // GROUPS)[None, None, :]
    second = tl.max(tl.where(member == where[:, :, None], float("-inf"), grouped), 2)
    total = first + second
    # a group's rank: how many groups go before it
    other, own = total[:, None, :], total[:, :, None]
    group = tl.arange(0, GROUPS)
    ahead = (other > own) | ((other == own) & (group[None, None, :] < group[None, :, None]))
    rank = tl.sum(ahead.to(tl.int32), 2)
    return tl.reshape(tl.where((rank < TOP_GROUPS)[:, :, None], grouped, float("-inf")), (ROWS, E))


@triton.jit
def _forward(
    logits_ptr, bias_ptr, weights_ptr, experts_ptr, scale, tokens,
    SIGMOID: tl.constexpr, NORMALISE: tl.constexpr, HAS_BIAS: tl.constexpr, GROUPS: tl.constexpr,
    TOP_GROUPS: tl.constexpr, K: tl.constexpr, E: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_E: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    # 64 bits: row · E and row · K may pass 2³¹
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    col = tl.arange(0, BLOCK_E)[None, :]
    mask = (row < tokens)[:, None] & (col < E)
    # -inf past the last expert alone: a row past the last token holds zeros and makes no NaN
    logits = tl.load(logits_ptr + row[:, None] * E + col, mask, other=0).to(tl.float32)
    logits = tl.where(col < E, logits, float("-inf"))
    # softmax is taken of the chosen logits once they are known
    score = tl.sigmoid(logits) if SIGMOID else logits
    choice = score
    if HAS_BIAS:
        choice += tl.load(bias_ptr + col, col < E, other=0).to(tl.float32)
    # from here on -inf is what may not be chosen: past the last expert, outside the groups, chosen before
    choice = tl.where(col < E, tl.maximum(choice, LOWEST), float("-inf"))
    if GROUPS > 1:
        choice = _kept(choice, GROUPS, TOP_GROUPS, ROWS, BLOCK_E)
    place = tl.arange(0, BLOCK_K)[None, :]
    experts = tl.zeros((ROWS, BLOCK_K), tl.int32)
    chosen = tl.full((ROWS, BLOCK_K), 0.0 if SIGMOID else float("-inf"), tl.float32)
    for i in tl.static_range(K):
        _, best = tl.max(choice, 1, return_indices=True, return_indices_tie_break_left=True)
        # NaN compares with nothing: whatever it makes of the choice, no token may leave the experts
        best = tl.minimum(best, E - 1)[:, None]
        picked = tl.sum(tl.where(col == best, score, 0.0), 1)[:, None]
        experts = tl.where(place == i, best, experts)
        chosen = tl.where(place == i, picked, chosen)
        choice = tl.where(col == best, float("-inf"), choice)
    if SIGMOID:
        weights = chosen / (tl.sum(chosen, 1)[:, None] + LEAST) if NORMALISE else chosen
    else:
        # over the chosen, or over all
        among = chosen if NORMALISE else logits
        peak = tl.max(among, 1)[:, None]
        weights = tl.exp(chosen - peak) / tl.sum(tl.exp(among - peak), 1)[:, None]
    out = row[:, None] * K + place
    mask = (row < tokens)[:, None] & (place < K)
    tl.store(weights_ptr + out, weights * scale, mask)
    tl.store(experts_ptr + out, experts, mask)


@triton.jit
def _backward(
    dweights_ptr, logits_ptr, experts_ptr, dlogits_ptr, scale, tokens,
    SIGMOID: tl.constexpr, NORMALISE: tl.constexpr, K: tl.constexpr, E: tl.constexpr, BLOCK_E: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    # 64 bits: row · E and row · K may pass 2³¹
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    col = tl.arange(0, BLOCK_E)[None, :]
    mask = (row < tokens)[:, None] & (col < E)
    logits = tl.load(logits_ptr + row[:, None] * E + col, mask, other=0).to(tl.float32)
    logits = tl.where(col < E, logits, float("-inf"))
    # the k gradients laid out over the experts: no scatter, and zeros for the rest are written with them
    g = tl.zeros((ROWS, BLOCK_E), tl.float32)
    chosen = tl.zeros((ROWS, BLOCK_E), tl.int1)
    for i in tl.static_range(K):
        expert = tl.load(experts_ptr + row * K + i, row < tokens, other=0)[:, None]
        dweight = tl.load(dweights_ptr + row * K + i, row < tokens, other=0)[:, None]
        g = tl.where(col == expert, dweight * scale, g)
        chosen = chosen | (col == expert)
    if SIGMOID:
        p = tl.sigmoid(logits)
        if NORMALISE:
            total = tl.sum(tl.where(chosen, p, 0.0), 1)[:, None] + LEAST
            g = tl.where(chosen, g - tl.sum(g * p, 1)[:, None] / total, 0.0) / total
        dlogits = g * p * (1 - p)
    else:
        # normalised: a softmax over the chosen
        among = tl.where(chosen, logits, float("-inf")) if NORMALISE else logits
        p = tl.exp(among - tl.max(among, 1)[:, None])
        p = p / tl.sum(p, 1)[:, None]
        dlogits = p * (g - tl.sum(p * g, 1)[:, None])
    tl.store(dlogits_ptr + row[:, None] * E + col, dlogits.to(dlogits_ptr.dtype.element_ty), mask)


def _config(kernel: str, tokens: int, experts: int, device: torch.device) -> dict[str, Any]:
    """Rows of one program: 8 elements a thread of 4 warps, one 16-byte load of a 2-byte type."""
    block = triton.next_power_of_2(experts)
    default = {"ROWS": max(1, 1024 // block), "num_warps": 4}
    return {"E": experts, "BLOCK_E": block, **tuned(f"router.{kernel}", (tokens, experts), default, device)}


class _Router(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, bias: Any, scale: float, top_k: int, flags: Any, groups: Any) -> Any:
        tokens, experts = logits.shape
        config = _config("forward", tokens, experts, logits.device)
        weights = torch.empty((tokens, top_k), dtype=torch.float32, device=logits.device)
        chosen = torch.empty((tokens, top_k), dtype=torch.int32, device=logits.device)
        _forward[(triton.cdiv(tokens, config["ROWS"]),)](
            logits, bias, weights, chosen, scale, tokens, HAS_BIAS=bias is not None, **flags, **groups, K=top_k,
            BLOCK_K=triton.next_power_of_2(top_k), **config,
        )  # fmt: skip
        ctx.save_for_backward(logits, chosen)
        ctx.scale, ctx.flags = scale, flags
        ctx.mark_non_differentiable(chosen)
        return weights, chosen

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dweights: torch.Tensor, _: Any) -> Any:
        logits, chosen = ctx.saved_tensors
        tokens, experts = logits.shape
        config = _config("backward", tokens, experts, logits.device)
        dlogits = torch.empty_like(logits)
        _backward[(triton.cdiv(tokens, config["ROWS"]),)](
            dweights.contiguous(), logits, chosen, dlogits, ctx.scale, tokens, K=chosen.shape[1], **ctx.flags, **config
        )
        return dlogits, None, None, None, None, None


def router(
    logits: torch.Tensor, top_k: int, *, scoring: str = "softmax", normalise: bool = True, scale: float = 1.0,
    bias: torch.Tensor | None = None, groups: int = 1, top_groups: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """As `reference`; weights in fp32. Logits must be numbers: a row with NaN gets some experts, weights unknown."""
    if logits.dtype not in DTYPES or logits.dim() != 2 or logits.numel() == 0 or not logits.is_contiguous():
        raise ValueError(f"router: want contiguous logits (T, E) of float32/16 or bfloat16, got {logits.dtype}")
    experts = logits.shape[1]
    if not 0 < top_groups <= groups:
        raise ValueError(f"router: {top_groups} of {groups} groups")
    if experts > MAX_EXPERTS or not 0 < top_k <= min(MAX_TOP_K, experts * top_groups // groups):
        raise ValueError(f"router: at most {MAX_EXPERTS} experts and {MAX_TOP_K} of them chosen: {experts}, {top_k}")
    if scoring not in SCORINGS or (scoring == "softmax" and (bias is not None or groups > 1)):
        raise ValueError(f"router: scoring is one of {', '.join(SCORINGS)}; bias and groups are the sigmoid's")
    if groups > 1 and (experts & (experts - 1) or groups & (groups - 1)):
        raise ValueError(f"router: groups must be powers of two of a power of two: {experts} / {groups}")
    if groups > 1 and experts // groups < 2:
        raise ValueError("router: a group needs two experts")
    if bias is not None and (bias.shape != (experts,) or bias.dtype not in DTYPES or not bias.is_contiguous()):
        raise ValueError(f"router: bias must be a dense ({experts},) vector, got {bias.shape} {bias.dtype}")
    if bias is not None and bias.device != logits.device:
        raise ValueError("router: bias must be on the device of the logits")
    flags = {"SIGMOID": scoring == "sigmoid", "NORMALISE": normalise}
    return _Router.apply(logits, bias, scale, top_k, flags, {"GROUPS": groups, "TOP_GROUPS": top_groups})


def inputs(shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> dict[str, Any]:
    """Random logits; for the sigmoid a bias, and logits whose choice fp32 cannot decide otherwise than float64."""
    tokens, experts = shape["T"], shape["E"]
    options = {"scoring": SCORINGS[shape.get("sigmoid", 0)], "normalise": bool(shape.get("normalise", 1))}
    options |= {"scale": shape.get("scale", 100) / 100, "bias": None}
    options |= {"groups": shape.get("groups", 1), "top_groups": shape.get("top_groups", 1)}

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(size, device=device, generator=generator)

    logits = draw(tokens, experts).to(dtype)
    if shape.get("sigmoid"):
        options["bias"] = bias = 0.1 * draw(experts)
        # sigmoids are rounded before they are compared: rows with a near tie are drawn again
        for _ in range(6):
            choice = logits.double().sigmoid() + bias
            totals = choice.unflatten(-1, (options["groups"], -1)).topk(2, -1).values.sum(-1)
            gaps = torch.cat([x.sort(-1).values.diff(dim=-1) for x in (choice, totals)], -1)
            close = (gaps < 2e-6).any(-1, keepdim=True)
            logits = torch.where(close, draw(tokens, experts).to(dtype), logits)
    return {"logits": logits, "top_k": shape["k"], **options}


def flops(shape: Shape) -> int:
    """An exponential and a comparison a logit for each expert chosen."""
    return shape["T"] * shape["E"] * (1 + shape["k"])


def least_bytes(shape: Shape, element: int) -> int:
    """Read the logits, write an fp32 weight and an int32 expert for each choice."""
    return shape["T"] * (shape["E"] * element + 8 * shape["k"])


DEEPSEEK = {"sigmoid": 1, "scale": 250}
OP = Op(
    reference=reference,
    triton=router,
    inputs=inputs,
    shapes={
        "qwen3_30b_a3b_train": {"T": 8192, "E": 128, "k": 8},
        "qwen3_30b_a3b_decode": {"T": 64, "E": 128, "k": 8},
        "gpt_oss_20b_train": {"T": 8192, "E": 32, "k": 4},
        "mixtral_8x7b_train": {"T": 8192, "E": 8, "k": 2},
        "olmoe_1b_7b_train": {"T": 8192, "E": 64, "k": 8, "normalise": 0},
        "deepseek_v3_train": {"T": 8192, "E": 256, "k": 8, "groups": 8, "top_groups": 4, **DEEPSEEK},
    },
    test_shapes={
        "softmax": {"T": 13, "E": 16, "k": 4},
        "not_normalised": {"T": 9, "E": 8, "k": 2, "normalise": 0, "scale": 150},
        "groups": {"T": 37, "E": 32, "k": 4, "groups": 4, "top_groups": 2, **DEEPSEEK},
        "sigmoid": {"T": 11, "E": 24, "k": 3, "sigmoid": 1, "normalise": 0},
        "odd": {"T": 7, "E": 41, "k": 5, **DEEPSEEK},
    },
    flops=flops,
    bytes=least_bytes,
    differentiable=("logits",),
    backward_flops=lambda shape: 6 * shape["T"] * shape["E"],
    # read the logits, the weights' gradients and the experts, write dlogits
    backward_bytes=lambda shape, element: shape["T"] * (2 * shape["E"] * element + 8 * shape["k"]),
    candidates={
        name: ({"ROWS": 1, "num_warps": 1}, {"ROWS": 2, "num_warps": 1}, {"ROWS": 4}, {"ROWS": 16}, {"ROWS": 32})
        for name in ("router.forward", "router.backward")
    },
)
