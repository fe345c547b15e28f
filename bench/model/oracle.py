"""Is a backend right? Its logits and gradients against the same weights in float64 on the reference ops.

Runs at a stated smaller shape (two layers, one sequence, at most 128 tokens; widths and vocabulary are the
model's own), because float64 at full size would cost more than the measurement. The number compared is
|| value - truth || / || truth || over all entries.
"""

from __future__ import annotations

import copy

import torch

from bench.config import Model
from bench.kernels.op import compiled, load, relative_error
from bench.model.transformer import KVCache, Transformer

# About twice the rounding error the reference ops themselves show at these shapes (fp32 2e-6, with room for
# another order of summation; fp16 1.8e-3; bf16 1.4e-2, on three models).
TOLERANCE = {"fp32": 2e-5, "fp16": 4e-3, "bf16": 3e-2}
LAYERS, TOKENS, DECODED = 2, 128, 4


def small(model: Model, backend: str, precision: str, device: torch.device, tokens: int) -> tuple[Transformer, str]:
    """The model under test at the check's shape, and that shape in words."""
    layers, length = min(LAYERS, model.layers), min(TOKENS, tokens)
    network = Transformer(
        model, load(backend), precision=precision, device=device, max_tokens=length + DECODED, layers=layers, seed=1
    )
    return network, f"layers={layers} batch=1 tokens={length}"


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
    return torch.randint(network.model.vocab, (1, count), generator=generator).to(device)


def gradient_error(model: Model, backend: str, precision: str, device: torch.device, tokens: int) -> tuple[float, str]:
    """The larger of the loss's and the gradients' relative error (all parameters as one vector)."""
    network, shape = small(model, backend, precision, device, tokens)
    truth = twin(network)
    data = _tokens(network, min(TOKENS, tokens) + 1)
    loss = compiled(backend, network.loss)(data[:, :-1], data[:, 1:])
    loss.backward()
    exact = truth.loss(data[:, :-1], data[:, 1:])
    exact.backward()
    wrong = right = 0.0
    for ours, theirs in zip(network.parameters(), truth.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        wrong += float((ours.grad.double() - theirs.grad).square().sum())
        right += float(theirs.grad.square().sum())
    return max(relative_error(loss, exact), (wrong / right) ** 0.5), shape


@torch.no_grad()
def prefill_error(model: Model, backend: str, precision: str, device: torch.device, tokens: int) -> tuple[float, str]:
    """Error of the last position's logits after a prefill."""
    network, shape = small(model, backend, precision, device, tokens)
    data = _tokens(network, min(TOKENS, tokens))
    cache = KVCache(model, len(network.layers), 1, data.shape[1], network.embedding.dtype, device)
    logits = compiled(backend, network.prefill)(data, cache)
    return relative_error(logits, twin(network)(data)[:, -1]), shape


@torch.no_grad()
def decode_error(model: Model, backend: str, precision: str, device: torch.device, tokens: int) -> tuple[float, str]:
    """Error of the logits of four tokens decoded one by one after a prefill, against one full forward."""
    network, shape = small(model, backend, precision, device, tokens)
    data = _tokens(network, min(TOKENS, tokens) + DECODED)
    start = data.shape[1] - DECODED
    cache = KVCache(model, len(network.layers), 1, data.shape[1], network.embedding.dtype, device)
    network.prefill(data[:, :start], cache)
    step = compiled(backend, network.decode)
    logits = torch.stack([step(data[:, i], cache) for i in range(start, data.shape[1])], dim=1)
    return relative_error(logits, twin(network)(data)[:, start:]), f"{shape} decoded={DECODED}"
