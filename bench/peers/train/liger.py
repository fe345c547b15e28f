"""transformers with Liger's Triton kernels (BSD-2-Clause, written against liger-kernel 0.8.5), as its trainers switch
them on: fused linear cross-entropy (training never makes the logits), RMSNorm, rotary positions, SwiGLU and experts,
each where Liger has it for the family.

Liger is applied to the instance, and so are norms, MLPs and the forward pass; the rotary function and the class names
of the family's module in transformers stay replaced in this process. Cells of another backend get another worker, and
`untouched` puts the originals back for the float64 truth.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

from bench.architecture import Model
from bench.peers.found import lacking
from bench.peers.train import transformers as eager
from bench.workload import Workload

FAMILIES = ("llama", "qwen3", "qwen3_moe", "mixtral", "gpt_oss", "deepseek_v3")  # not Llama 4: Liger patches its class
_originals: dict[str, dict[str, Any]] = {}  # modelling module -> what its names meant before Liger


def why_not(model: Model, workload: Workload, device: torch.device) -> str | None:
    """None where it can run, else one line."""
    reason = eager.why_not(model, workload, device)
    if reason:
        return reason
    family = eager.known(model)
    if family.module not in FAMILIES:
        return f"Liger has no kernels for one instance of {family.name}"
    reason = lacking("liger_kernel") or ("needs a CUDA device" if device.type != "cuda" else None)
    if reason is None:
        importlib.import_module("liger_kernel.transformers")  # an import that fails is a reason too
    return reason


def modelling(model: Model) -> ModuleType:
    """The module of transformers that holds the family's classes."""
    family = eager.known(model).module
    return importlib.import_module(f"transformers.models.{family}.modeling_{family}")


@contextmanager
def untouched(model: Model) -> Iterator[None]:
    """Inside the block the family's module is transformers' own."""
    names = vars(modelling(model))
    patched = {name: names[name] for name in _originals.get(modelling(model).__name__, {})}
    names.update(_originals.get(modelling(model).__name__, {}))
    try:
        yield
    finally:
        names.update(patched)


def build(model: Model, workload: Workload, device: torch.device, layers: int) -> eager.Network:
    """As transformers.py, with Liger's kernels."""
    with untouched(model):
        network = eager.build(model, workload, device, layers)
    names = vars(modelling(model))
    before = dict(names)
    apply_to(network.module)
    changed = {name: before[name] for name in before if names[name] is not before[name]}
    _originals.setdefault(modelling(model).__name__, changed)
    return Network(network.module, network.family, network.attention)


def apply_to(module: Any) -> None:
    """Liger's kernels into an instance, with Liger's own choice of which."""
    importlib.import_module("liger_kernel.transformers")._apply_liger_kernel_to_instance(model=module)


class Network(eager.Network):
    """transformers' module, patched."""

    def experts(self) -> str | None:
        """Liger's where it has replaced them: it binds another forward, and the name that goes with it."""
        names = {part._get_name() for part in self.module.modules()}
        return "liger" if "LigerExperts" in names else super().experts()

    def described(self) -> str:
        """Version and settings, for the row."""
        return f"liger_kernel={importlib.metadata.version('liger-kernel')} {super().described()}"
