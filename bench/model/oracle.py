"""Is a backend right? Its logits and gradients against the same weights in float64 on the reference ops.

Runs at a stated smaller shape (two layers, two sequences, at most 320 tokens, a cache of 640 slots; widths and
vocabulary are the model's own), because float64 at full size would cost more than the measurement. It is large enough
that every loop of a kernel runs: tiles off the diagonal, several splits of a cache, more than one sequence.

    error = || value - truth || / || truth ||     over all logits; of gradients, the worst parameter's
"""

from __future__ import annotations

import copy

import torch

from bench.config import Model
from bench.kernels.op import compiled, load, relative_error
from bench.model.transformer import KVCache, Transformer

# About twice the rounding error the reference ops themselves show at these shapes, on three models: of logits
# (fp32 2e-6, fp16 1.4e-3, bf16 1.1e-2) and of the worst parameter's gradient (3e-6, 6.2e-3, 2.5e-2).
TOLERANCE = {"fp32": 2e-5, "fp16": 3e-3, "bf16": 2.5e-2}
GRADIENT_TOLERANCE = {"fp32": 2e-5, "fp16": 1.2e-2, "bf16": 5e-2}
LAYERS, BATCH, TOKENS, SLOTS, DECODED = 2, 2, 320, 640, 4


def small(model: Model, backend: str, precision: str, device: torch.device, tokens: int) -> tuple[Transformer, str]:
    """The model under test at the check's shape, and that shape in words."""
    layers, length = min(LAYERS, model.layers), min(TOKENS, tokens)
    network = Transformer(
        model, load(backend), precision=precision, device=device, max_tokens=SLOTS, layers=layers, seed=1
    )
    return network, f"layers={layers} batch={BATCH} tokens={length}"


def twin(network: Transformer) -> Transformer:
    """The same weights in float64 on the reference ops."""
    other = copy.deepcopy(network).double()
    other.ops = load("reference")
    for layer in other.stack:
        layer.ops = other.ops
    return other


def _tokens(network: Transformer, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    device = network.embedding.device
    return torch.randint(network.model.vocab, (BATCH, count), generator=generator).to(device)


def _cache(network: Transformer, slots: int) -> KVCache:
    weight = network.embedding
    return KVCache(network.model, len(network.stack), BATCH, slots, weight.dtype, weight.device)


def gradient_error(model: Model, backend: str, precision: str, device: torch.device, tokens: int) -> tuple[float, str]:
    """The largest of the loss's relative error and each parameter's gradient's."""
    network, shape = small(model, backend, precision, device, tokens)
    truth = twin(network)
    data = _tokens(network, min(TOKENS, tokens) + 1)
    loss = compiled(backend, network.loss)(data[:, :-1], data[:, 1:])
    loss.backward()
    exact = truth.loss(data[:, :-1], data[:, 1:])
    exact.backward()
    errors = [relative_error(loss, exact)]
    for ours, theirs in zip(network.parameters(), truth.parameters(), strict=True):
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
    logits = compiled(backend, network.prefill)(data, _cache(network, data.shape[1]))
    return relative_error(logits, twin(network)(data)[:, -1]), shape


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
    network.prefill(data[:, :longest], cache)
    cache.lengths.copy_(starts)
    rows = torch.arange(BATCH, device=device)
    step = compiled(backend, network.decode)
    logits = torch.stack([step(data[rows, starts + i], cache) for i in range(DECODED)], dim=1)
    full = twin(network)(data)
    exact = torch.stack([full[rows, starts + i] for i in range(DECODED)], dim=1)
    return relative_error(logits, exact), f"{shape} slots={SLOTS} decoded={DECODED}"
