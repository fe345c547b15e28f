"""Hugging Face transformers as its users train it (Apache-2.0, written against 5.24): its classes, eager, in bf16.

Attention is torch's scaled_dot_product_attention; where documents are packed, a flash-attention package if one is
installed, else torch's flex_attention (compiled by transformers itself), else a mask. Documents are told by positions
that start again, and to a flash-attention package also by their ends, as its packing collator gives them. Experts are
grouped products (its default). Activation checkpointing is its own, of whole layers. The loss is its own, over logits
widened to fp32. The optimiser is the workload's, so that a cell differs from ours by the model alone.

Where a workload draws its routing with a Zipf exponent this peer does not run: transformers' routers take no drawn
choice. With random weights they are nearly balanced, which stands for exponent 0.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bench.architecture import Model
from bench.peers.train.families import Family, configured, family_of, features
from bench.peers.train.found import Given
from bench.workload import Workload

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SEED = 1


def why_not(model: Model, workload: Workload, device: torch.device) -> str | None:
    """None where it can run this model and workload here, else one line."""
    if importlib.util.find_spec("transformers") is None:
        return "transformers is not installed"
    if family_of(model) is None:
        return f"transformers has no architecture with exactly {', '.join(sorted(features(model))) or 'these parts'}"
    refused = {
        "no fp8 in transformers' training": workload.precision not in DTYPES,
        "no selective checkpointing in transformers: none or full": workload.checkpointing == "selective",
        "adapters belong to another package (peft)": bool(workload.lora_rank),
        "its routers take no drawn routing": bool(workload.routing_zipf) and bool(model.experts),
        "one GPU only": workload.tensor_parallel > 1,
    }
    return next((reason for reason, holds in refused.items() if holds), None)


def build(model: Model, workload: Workload, device: torch.device, layers: int) -> Network:
    """The first `layers` layers with random weights, ready to train."""
    family = known(model)
    attention = attention_for(family, workload, device)
    module = module_of(model.sliced(layers), workload, device, attention)
    if workload.checkpointing == "full":
        module.gradient_checkpointing_enable({"use_reentrant": False})
    return Network(module, attention)


def truth(model: Model, workload: Workload, device: torch.device, layers: int) -> Network:
    """The same weights in float64, with attention as plain as the family allows and a loop over the experts."""
    attention = "sdpa" if known(model).sdpa else "eager"
    module = module_of(model.sliced(layers), workload, device, attention, experts="eager")
    return Network(module.double(), attention)


def known(model: Model) -> Family:
    """Its family. Raises ValueError where there is none: see why_not."""
    family = family_of(model)
    if family is None:
        raise ValueError(f"transformers has no architecture for {model.key}")
    return family


def module_of(
    model: Model, workload: Workload, device: torch.device, attention: str, experts: str | None = None
) -> Any:
    """transformers' own module on the device, every parameter in the workload's precision; the same every time."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported: nothing here comes from a hub
    transformers = importlib.import_module("transformers")
    family, dtype = known(model), DTYPES[workload.precision]
    config = configured(family, model)
    options = {"attn_implementation": attention} | ({"experts_implementation": experts} if experts else {})
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(SEED)
        module = getattr(transformers, family.classes)._from_config(config, dtype=dtype, **options)
    for parameter in module.parameters():  # DeepSeek's router alone is made in fp32
        parameter.data = parameter.data.to(dtype)
    return module.train()


def attention_for(family: Family, workload: Workload, device: torch.device) -> str:
    """The fastest attention a user of this family would choose here, by transformers' name for it."""
    packed, cuda = workload.document_tokens_median is not None, device.type == "cuda"
    if packed and cuda and family.flash and workload.precision != "fp32":
        utils = importlib.import_module("transformers.utils")
        hopper = torch.cuda.get_device_capability(device)[0] == 9
        if hopper and utils.is_flash_attn_3_available():
            return "flash_attention_3"
        if utils.is_flash_attn_2_available():
            return "flash_attention_2"
    if cuda and family.flex and (packed or not family.sdpa):
        return "flex_attention"
    return "sdpa" if family.sdpa else "eager"


class Network:
    """What a training step needs of a peer's model."""

    def __init__(self, module: Any, attention: str):
        self.module, self.attention = module, attention
        self.longest: dict[Tensor, int] = {}  # of each packing: a collator knows it on the host

    def parameters(self) -> Iterator[nn.Parameter]:
        """Every weight, once."""
        found: Iterator[nn.Parameter] = self.module.parameters()
        return found

    def loss(self, tokens: Tensor, targets: Tensor, given: Given | None = None) -> Tensor:
        """Mean cross-entropy in nats of targets (B, T) given tokens (B, T); target -100 is left out."""
        options: dict[str, Any] = {}
        if given is not None and given.documents is not None:
            options["position_ids"] = given.positions
            if self.attention.startswith("flash"):
                tokens, targets, options["position_ids"] = (x.reshape(1, -1) for x in (tokens, targets, given.positions))
                options |= self._ends(given.documents)
        targets = targets.contiguous()  # shifted already; `labels` says that a loss is wanted
        output = self.module(input_ids=tokens, labels=targets, shift_labels=targets, use_cache=False, **options)
        loss: Tensor = output.loss
        return loss

    def _ends(self, documents: Tensor) -> dict[str, Any]:
        if documents not in self.longest:
            self.longest[documents] = int(documents.diff().max())
        longest = self.longest[documents]
        sides = {f"cu_seq_lens_{side}": documents for side in "qk"}
        return sides | {f"max_length_{side}": longest for side in "qk"}

    def described(self) -> str:
        """Version and settings, for the row."""
        experts = f" experts={self.module.config._experts_implementation}" if "experts" in str(self.module) else ""
        return f"transformers={importlib.metadata.version('transformers')} attention={self.attention}{experts}"
