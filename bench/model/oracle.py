"""Is a backend right? Its logits and gradients against the same weights in float64 on the reference ops.

Runs at a stated smaller shape (two layers, or one of each kind the model has; two sequences, at most 320 tokens, a
cache of 640 slots; widths and vocabulary are the model's own, giants apart), because float64 at full size would cost
more than the measurement. It is large enough that every loop of a kernel runs: tiles off the diagonal, several splits
of a cache, more than one sequence. Where there are experts the routing is drawn (routing.py): rounding may tie what
float64 tells apart, and one token sent elsewhere is no error of the arithmetic.

    error = || value - truth || / || truth ||     over all logits; of gradients, the worst parameter's
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import torch

from bench.architecture import Model
from bench.kernels.op import compiled, load, relative_error
from bench.model import accounting
from bench.model.cache import KVCache
from bench.model.parts import Linear
from bench.model.routing import drawn
from bench.model.transformer import Transformer

# About twice the rounding error the reference ops themselves show at these shapes, on three models: of logits
# (fp32 2e-6, fp16 1.4e-3, bf16 1.1e-2) and of the worst parameter's gradient (3e-6, 6.2e-3, 2.5e-2, and 0.18 in fp8:
# e4m3 keeps three bits, and every gradient inherits the forward's rounding).
TOLERANCE = {"fp32": 2e-5, "fp16": 3e-3, "bf16": 2.5e-2}
GRADIENT_TOLERANCE = {"fp32": 2e-5, "fp16": 1.2e-2, "bf16": 5e-2, "fp8": 0.35}
LAYERS, BATCH, TOKENS, SLOTS, DECODED = 2, 2, 320, 640, 4
MOST_PARAMS = 3.5e9  # in float64 with gradients 56 GB


def small(model: Model, backend: str, precision: str, device: torch.device, tokens: int) -> tuple[Transformer, str]:
    """The model under test at the check's shape, and that shape in words."""
    checked, numbers = reduced(model)
    network = Transformer(
        checked, load(backend), precision=precision, device=device, max_tokens=SLOTS, layers=numbers, seed=1
    )
    layers = "+".join(str(n) for n in numbers) if len(model.distinct_layers) > 1 else len(numbers)
    cut = [f"{name}={getattr(checked, name)}" for name in ("experts", "vocab") if checked != model]
    shape = [f"layers={layers}", *cut, f"batch={BATCH}", f"tokens={min(TOKENS, tokens)}"]
    return network, " ".join(shape)


def reduced(model: Model) -> tuple[Model, tuple[int, ...]]:
    """The architecture and the numbers of the layers to check; fewer experts, words, layers where it is too large."""
    numbers = model.distinct_layers if len(model.distinct_layers) > 1 else tuple(range(min(LAYERS, model.layers)))

    def too_large() -> bool:
        tables = (1 if model.tie_embeddings else 2) * model.vocab * model.hidden
        share = len(numbers) / model.layers
        return tables + share * (accounting.total_params(model) - tables) > MOST_PARAMS

    if too_large() and model.experts:
        left = next((n for n in (16, 32, 64) if model.experts % n == 0 and n >= model.top_k), model.experts)
        model = model.expert_slice(model.experts // left)
    if too_large():
        model = dataclasses.replace(model, vocab=min(model.vocab, 16384))
    if too_large() and len(model.distinct_layers) == 1:
        numbers = numbers[:1]
    return model, numbers


def twin(network: Transformer) -> Transformer:
    """The same weights in float64 on the reference ops."""
    other = copy.deepcopy(network).double()
    ops = load("reference")
    for module in other.modules():
        if hasattr(module, "ops"):
            setattr(module, "ops", ops)  # noqa: B010  every module of ours has one, nn.Module does not say so
        if isinstance(module, Linear):
            module.multiply = None
    return other


def routed(network: Transformer, tokens: int, zipf: float = 0.0) -> torch.Tensor | None:
    """Drawn routing of that many tokens, where the model has experts."""
    m = network.model
    return drawn(m, tokens, zipf, network.embedding.device)[0] if m.experts else None


def _tokens(network: Transformer, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    device = network.embedding.device
    return torch.randint(network.model.vocab, (BATCH, count), generator=generator).to(device)


def _cache(network: Transformer, slots: int) -> KVCache:
    weight = network.embedding
    return KVCache(network.model, len(network.stack), BATCH, slots, weight.dtype, weight.device)


def gradient_error(
    model: Model,
    backend: str,
    precision: str,
    device: torch.device,
    tokens: int,
    *,
    adjust: Callable[[torch.nn.Module], None] = lambda network: None,
    lengths: Callable[[int, int], list[list[int]] | None] = lambda batch, length: None,
    zipf: float = 0.0,
) -> tuple[float, str]:
    """The largest of the loss's relative error and that of the gradient of each parameter that is trained.

    `adjust` changes the network as its workload wants it (adapters, fp8, which its twin drops, checkpointing);
    `lengths` gives the documents packed into `batch` sequences of `length` tokens.
    """
    network, shape = small(model, backend, precision, device, tokens)
    adjust(network)
    truth = twin(network)
    data = _tokens(network, min(TOKENS, tokens) + 1)
    given = network.described(
        BATCH, data.shape[1] - 1, lengths(BATCH, data.shape[1] - 1), routed(network, BATCH * (data.shape[1] - 1), zipf)
    )
    network.train()
    loss = compiled(backend, network.loss)(data[:, :-1], data[:, 1:], given)
    loss.backward()
    exact = truth.loss(data[:, :-1], data[:, 1:], given)
    exact.backward()
    errors = [relative_error(loss, exact)]
    for ours, theirs in zip(network.parameters(), truth.parameters(), strict=True):
        if not ours.requires_grad:
            continue
        assert ours.grad is not None and theirs.grad is not None
        # on the device: gradients of a large vocabulary are gigabytes
        errors.append(float((ours.grad.double() - theirs.grad).norm() / theirs.grad.norm()))
    return worst(errors), shape


def worst(errors: list[float]) -> float:
    """The largest error; NaN where one is NaN, which max() could pass over."""
    return float(torch.tensor(errors).max())


@torch.no_grad()
def prefill_error(model: Model, backend: str, precision: str, device: torch.device, tokens: int) -> tuple[float, str]:
    """Error of the last position's logits after a prefill."""
    network, shape = small(model, backend, precision, device, tokens)
    data = _tokens(network, min(TOKENS, tokens))
    given = network.described(BATCH, data.shape[1], None, routed(network, data.numel()))
    logits = compiled(backend, network.prefill)(data, _cache(network, data.shape[1]), given)
    return relative_error(logits, twin(network)(data, given)[:, -1]), shape


@torch.no_grad()
def decode_error(model: Model, backend: str, precision: str, device: torch.device, tokens: int) -> tuple[float, str]:
    """Error of the logits of four tokens a sequence, decoded one by one after a prefill, against one full forward.

    The sequences stand at different lengths (the second at half the first's), in a cache longer than either.
    """
    network, shape = small(model, backend, precision, device, tokens)
    data = _tokens(network, min(TOKENS, tokens) + DECODED)
    longest = data.shape[1] - DECODED
    starts = torch.tensor([longest, max(1, longest // 2)], device=device)
    cache = _cache(network, SLOTS)
    # one row of routing a position: what a token meets does not depend on how it came to be computed
    forced = routed(network, data.numel())
    rows_of = None if forced is None else forced.unflatten(0, data.shape)
    prompt = None if rows_of is None else rows_of[:, :longest].flatten(0, 1)
    network.prefill(data[:, :longest], cache, network.described(BATCH, longest, None, prompt))
    cache.lengths.copy_(starts)
    rows = torch.arange(BATCH, device=device)
    step = compiled(backend, network.decode)
    places = [starts + i for i in range(DECODED)]
    routes = [None if rows_of is None else rows_of[rows, at] for at in places]
    found = [step(data[rows, at], cache, route) for at, route in zip(places, routes, strict=True)]
    full = twin(network)(data, network.described(BATCH, data.shape[1], None, forced))
    exact = torch.stack([full[rows, at] for at in places], dim=1)
    return relative_error(torch.stack(found, dim=1), exact), f"{shape} slots={SLOTS} decoded={DECODED}"
