"""transformers under torch.compile: each decoder layer and the loss compiled, as large-model trainers compile.

Compiling layer by layer is what accelerate calls regional compilation and what torchtitan does (its settings are full
graphs a block, a compiled cross-entropy, whole-layer or per-op selective checkpointing around the compiled block). The
mask is made outside: traced, transformers always writes one out, and the flash kernel is lost.

torchtitan itself is no peer: it follows torch's nightly builds and is a trainer, not a module, so it cannot run beside
the stable torch of a run, in the same process, on the same batches. Its published rates are held against ours instead.
"""

from __future__ import annotations

import importlib

import torch

from bench.architecture import Model
from bench.kernels import op
from bench.peers.train import transformers as eager
from bench.workload import Workload


def why_not(model: Model, workload: Workload, device: torch.device) -> str | None:
    """None where it can run, else one line."""
    return eager.why_not(model, workload, device) or op.why_not("compile")


def build(model: Model, workload: Workload, device: torch.device, layers: int) -> eager.Network:
    """As transformers.py, compiled at the first step."""
    network = eager.build(model, workload, device, layers)
    block = importlib.import_module("transformers.modeling_layers").GradientCheckpointingLayer
    for layer in network.module.modules():
        if isinstance(layer, block):
            layer.compile(dynamic=False)
    network.module.loss_function = torch.compile(network.module.loss_function, dynamic=False)
    return network
