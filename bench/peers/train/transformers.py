"""Hugging Face transformers as its users train it (Apache-2.0, tested with 5.23): its classes, eager, in bf16.

Attention is what its users would choose: on Hopper FlashAttention-3 where that package is installed, else torch's
scaled_dot_product_attention. Packed documents need FlashAttention-2 if installed, else torch's flex_attention (compiled
by transformers itself), else a mask; sinks (gpt-oss) need flex_attention. Documents are told by positions that start
again, to a flash-attention package by their ends, as its packing collator gives them, and to gpt-oss by masks, for its
class makes its own without a look at the positions.

Experts are grouped products (its default). Activation checkpointing is its own, of whole layers. The loss is its own,
over logits widened to fp32. The optimiser is the workload's, so that a cell differs from ours by the model alone.

Where a workload draws its routing this peer does not run mixtures: transformers' routers take no drawn choice, and left
to themselves, with random weights, they send the busiest expert of Qwen3-30B-A3B 6 to 14 times the mean (measured on a
CPU, layers 1 to 3), which is no uniform routing. Nor does it run Llama 4: there transformers computes every expert for
every token, which nobody would train with.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bench.architecture import Model
from bench.peers.train.families import Family, classes, configured, family_of, features, package
from bench.peers.train.found import Given
from bench.workload import Workload

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SEED = 1


def why_not(model: Model, workload: Workload, device: torch.device) -> str | None:
    """None where it can run this model and workload here, else one line. Raises what transformers' import raises."""
    if importlib.util.find_spec("transformers") is None:
        return "transformers is not installed"
    family = family_of(model)
    if family is None:
        return f"transformers has no architecture with exactly {', '.join(sorted(features(model))) or 'these parts'}"
    refused = {
        f"no {workload.precision} in transformers' training": workload.precision not in DTYPES,
        "no selective checkpointing in transformers: none or full": workload.checkpointing == "selective",
        "adapters belong to another package (peft)": bool(workload.lora_rank),
        "its routers take no drawn routing": workload.routing_zipf is not None and bool(model.experts),
        f"its {family.name} computes every expert for every token": model.experts > model.top_k and not family.routed,
        "one GPU only": workload.tensor_parallel > 1,
        f"a peer takes training steps, no {workload.phase}": workload.phase != "train_step",
    }
    reason = next((reason for reason, holds in refused.items() if holds), None)
    if reason is None:
        classes(family)  # imported here, so that an import that fails is a reason too
    return reason


def build(model: Model, workload: Workload, device: torch.device, layers: int) -> Network:
    """The first `layers` layers with random weights, ready to train."""
    family = known(model)
    attention = attention_for(family, workload, device)
    module = module_of(model.sliced(layers), workload, device, attention)
    if workload.checkpointing == "full":
        new = getattr(module, "activation_checkpointing_enable", None)  # 5.23's name
        (new or module.gradient_checkpointing_enable)({"use_reentrant": False})
    return Network(module, family, attention)


def truth(model: Model, workload: Workload, device: torch.device, layers: int) -> Network:
    """The same weights in float64, with attention as plain as the family allows and a loop over the experts."""
    attention = "sdpa" if known(model).sdpa else "eager"
    module = module_of(model.sliced(layers), workload, device, attention, experts="eager")
    return Network(module.double(), known(model), attention)


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
    family, dtype = known(model), DTYPES[workload.precision]
    config = configured(family, model)
    options = {"attn_implementation": attention} | ({"experts_implementation": experts} if experts else {})
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(SEED)
        module = classes(family)._from_config(config, dtype=dtype, **options)
    for parameter in module.parameters():  # DeepSeek's router alone is made in fp32
        parameter.data = parameter.data.to(dtype)
    return module.train()


def attention_for(family: Family, workload: Workload, device: torch.device) -> str:
    """The fastest attention a user of this family would choose here, by transformers' name for it."""
    packed, cuda = workload.document_tokens_median is not None, device.type == "cuda"
    if cuda and family.flash and workload.precision != "fp32":
        utils, hopper = package().utils, torch.cuda.get_device_capability(device)[0] == 9
        if hopper and utils.is_flash_attn_3_available():
            return "flash_attention_3"
        if packed and utils.is_flash_attn_2_available():
            return "flash_attention_2"
    if cuda and family.flex and (packed or not family.sdpa):
        return "flex_attention"
    return "sdpa" if family.sdpa else "eager"


class Network:
    """What a training step needs of a peer's model."""

    def __init__(self, module: Any, family: Family, attention: str):
        self.module, self.family, self.attention = module, family, attention
        self.longest: dict[Tensor, int] = {}  # of each packing: a collator knows it on the host

    def parameters(self) -> Iterator[nn.Parameter]:
        """Every weight, once."""
        found: Iterator[nn.Parameter] = self.module.parameters()
        return found

    def loss(self, tokens: Tensor, targets: Tensor, given: Given | None = None) -> Tensor:
        """Mean cross-entropy in nats of targets (B, T) given tokens (B, T); target -100 is left out."""
        options: dict[str, Any] = {}
        documents = None if given is None else given.documents
        if given is not None and documents is not None:
            options["position_ids"] = given.positions
            if not self.family.masks:
                options["attention_mask"] = self._masks(given.positions)
        if self.attention.startswith("flash"):
            options |= self._ends(tokens, documents)
        targets = targets.contiguous()  # shifted already; `labels` says that a loss is wanted
        output = self.module(input_ids=tokens, labels=targets, shift_labels=targets, use_cache=False, **options)
        loss: Tensor = output.loss
        return loss

    def _masks(self, positions: Tensor) -> dict[str, Any]:
        """Masks of packed documents (B, T) by the kind of layer, for a class that would let them see each other."""
        masking = importlib.import_module("transformers.masking_utils")
        like = torch.empty(*positions.shape, 0, dtype=self.module.dtype, device=positions.device)
        told = {"config": self.module.config, "inputs_embeds": like, "attention_mask": None, "past_key_values": None}
        makers = {
            "full_attention": masking.create_causal_mask,
            "sliding_attention": masking.create_sliding_window_causal_mask,
        }
        return {kind: maker(**told, position_ids=positions) for kind, maker in makers.items()}

    def _ends(self, tokens: Tensor, documents: Tensor | None) -> dict[str, Any]:
        """What a flash-attention package is told: without it transformers looks at the positions in every layer."""
        if documents is None:
            batch, longest = tokens.shape
            documents = longest * torch.arange(batch + 1, dtype=torch.int32, device=tokens.device)
        else:
            if documents not in self.longest:
                self.longest[documents] = int(documents.diff().max())
            longest = self.longest[documents]
        sides = {f"cu_seq_lens_{side}": documents for side in "qk"}
        return sides | {f"max_length_{side}": longest for side in "qk"}

    def experts(self) -> str | None:
        """How mixtures of experts are multiplied, or None where there are none."""
        mixtures = any(name.endswith(".experts") for name, _ in self.module.named_modules())
        return str(self.module.config._experts_implementation) if mixtures else None

    def described(self) -> str:
        """Version and settings, for the row."""
        experts = self.experts()
        version = f"transformers={importlib.metadata.version('transformers')} attention={self.attention}"
        return f"{version} experts={experts}" if experts else version
