"""The time of a step: what it has to do over what the GPU can do, times one efficiency for each kind of kernel.

    t = max(matmul FLOPs / (P e_matmul), weight bytes / (B e_memory))                    projections, in their precision
      + max(expert FLOPs / (P e_matmul e_experts), expert bytes / (B e_memory e_streams))      grouped matmuls
      + head FLOPs / (P_bf16 e_bf16) + max(attention FLOPs / (P_bf16 e_attention), cache bytes / (B e_memory))
      + (vector bytes * v + routing bytes * r) / (B e_memory) + link bytes / (L / 2 * e_link) + layers * launch

(Williams, Waterman, Patterson 2009, kernel by kernel.) P is the data sheet's dense peak in FLOP/s, B its memory's
bytes/s, L its link's, both directions. e_matmul is one number for training and one for serving by precision and GPU
generation, e_memory one by generation, the rest are one number for all. P is scaled by (w / w_best)^power, w the
watts behind a FLOP/s and w_best the most any GPU of the generation has: a card of fewer watts does not hold its clock.
A rate is multiplied by its software's number (the vendor's own, TensorRT-LLM and NeMo, has 1) and, over nodes, by the
number of its size class. PARTS is this formula as data, so its slopes need no second one; arrays: a number a plan.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bench import config
from bench.config import Gpu
from bench.modelled.work import AMOUNTS, Cell, Step

Array = Any  # numpy array of one number a plan

# Oldest first: a generation nobody measured takes the numbers of the nearest older one, else of the nearest newer.
GENERATIONS = ("sm_80", "sm_89", "sm_90", "maia_100", "sm_100", "sm_103", "maia_200")
NARROWER = {"fp4": "fp8", "fp8": "bf16", "fp16": "bf16", "fp32": "bf16"}  # whose number stands in for a precision's
FEW, MANY = 8, 512  # GPUs: one node up to FEW, few nodes up to MANY
FAMILIES = (  # software by what its name holds; all else is the vendor's own
    ("vllm", r"vllm"),
    ("sglang", r"sglang"),
    ("pytorch", r"torchtitan|llm-foundry|nanogpt"),
    ("ours", r"^(reference|compile|triton|best|peer:.*|endpoint)$"),
)

# Numbers that hold for every GPU: where the fit starts, and what stands where no row tells it.
SHARED = {
    "train attention": 0.5,
    "serve attention": 0.8,
    "train experts": 0.5,
    "serve experts": 0.7,
    "serve streams": 0.6,
    "train vector": 3.0,
    "serve vector": 2.0,
    "train routing": 3.0,
    "serve routing": 5.0,
    "link": 0.5,
    "launch_s": 1e-4,
    "power": 0.4,
    "few nodes": 0.9,
    "many nodes": 0.75,
}
EFFICIENCIES = ("matmul", "memory", "attention", "experts", "streams", "link")  # at most 1


def side(phase: str) -> str:
    """train or serve: training steps run other kernels, of larger shapes, than serving."""
    return "train" if phase == "train_step" else "serve"


def family(software: str) -> str:
    """vllm, sglang, pytorch, ours, or "" for the vendor's own."""
    return next((name for name, words in FAMILIES if re.search(words, software, re.IGNORECASE)), "")


def age(generation: str) -> int:
    """Place in GENERATIONS; one nobody listed is the newest."""
    return GENERATIONS.index(generation) if generation in GENERATIONS else len(GENERATIONS)


def roles(cell: Cell, gpu: Gpu) -> dict[str, str]:
    """Which number each part of the formula takes for a cell, by name; "" for 1."""
    train, generation = side(cell.phase), gpu.architecture
    nodes = "" if train == "serve" or cell.n_gpus <= FEW else "few nodes" if cell.n_gpus <= MANY else "many nodes"
    software = family(cell.software)
    return {
        "matmul": f"{train} matmul {cell.precision} {generation}",
        "head": f"{train} matmul bf16 {generation}",
        "memory": f"memory {generation}",
        **{name: f"{train} {name}" for name in ("attention", "experts", "vector", "routing")},
        "streams": "serve streams",
        "link": "link",
        "launch": "launch_s",
        "power": "power",
        "nodes": nodes,
        "software": f"software {software}" if software else "",
    }


def peak(gpu: Gpu, precision: str) -> float:
    """Dense FLOP/s; of bf16, half of fp8 where the data sheet has none. Raises KeyError for other gaps."""
    peaks = gpu.peak_flops_per_s
    return peaks["fp8"] / 2 if precision == "bf16" and "bf16" not in peaks else peaks[precision]


@cache
def _watts(configs: Path) -> dict[str, float]:
    """The most watts behind a bf16 FLOP/s that any GPU of a generation has, by generation."""
    most: dict[str, float] = {}
    for gpu in config.load_all(Gpu).values():
        most[gpu.architecture] = max(most.get(gpu.architecture, 0.0), gpu.tdp_w / peak(gpu, "bf16"))
    return most


@dataclass(frozen=True)
class Hardware:
    """What the formula takes from the data sheet, a plan: FLOP/s, bytes/s, and watts over the generation's most."""

    flops: Array
    bf16_flops: Array
    memory: Array
    link: Array  # one direction
    watts: Array
    one: Array

    @classmethod
    def of(cls, cells: Sequence[tuple[Cell, Gpu]]) -> Hardware:
        """One entry a cell. A GPU without a link has no plan that uses one."""
        columns = [
            (
                peak(gpu, cell.precision),
                peak(gpu, "bf16"),
                gpu.hbm_bytes_per_s,
                (gpu.link_bytes_per_s or 1.0) / 2,
                gpu.tdp_w / peak(gpu, "bf16") / _watts(config.CONFIGS)[gpu.architecture],
                1.0,
            )
            for cell, gpu in cells
        ]
        return cls(*np.array(columns, dtype=float).T)


# What each amount of a step is divided by, and the numbers it is multiplied with: amount -> (hardware, role: exponent).
PARTS: dict[str, tuple[str, dict[str, int]]] = {
    "matmul_flops": ("flops", {"matmul": -1, "clock": -1}),
    "weight_bytes": ("memory", {"memory": -1}),
    "expert_flops": ("flops", {"matmul": -1, "experts": -1, "clock": -1}),
    "expert_bytes": ("memory", {"memory": -1, "streams": -1}),
    "head_flops": ("bf16_flops", {"head": -1, "clock": -1}),
    "attention_flops": ("bf16_flops", {"attention": -1, "clock": -1}),
    "cache_bytes": ("memory", {"memory": -1}),
    "vector_bytes": ("memory", {"vector": 1, "memory": -1}),
    "route_bytes": ("memory", {"routing": 1, "memory": -1}),
    "link_bytes": ("link", {"link": -1}),
    "layers": ("one", {"launch": 1}),
}
OVERLAPS = (  # of each pair the longer counts
    ("matmul_flops", "weight_bytes"),
    ("expert_flops", "expert_bytes"),
    ("attention_flops", "cache_bytes"),
)


def seconds(a: Mapping[str, Array], hw: Hardware, e: Mapping[str, Array]) -> dict[str, Array]:
    """Seconds of each part of a step with amounts `a` (of Step) under numbers `e` (by role); they sum to the step's."""
    numbers = {**e, "clock": hw.watts ** e["power"]}
    found: dict[str, Array] = {}
    for name, (by, exponents) in PARTS.items():
        found[name] = a[name] / getattr(hw, by)
        for role, exponent in exponents.items():
            found[name] = found[name] * numbers[role] ** exponent
    for one, other in OVERLAPS:
        longer = found[one] >= found[other]
        found[one], found[other] = np.where(longer, found[one], 0.0), np.where(longer, 0.0, found[other])
    return found


def slopes(parts: Mapping[str, Array], hw: Hardware, e: Mapping[str, Array]) -> dict[str, Array]:
    """d ln(rate) / d ln(number) of each role, from the parts of all the time spent: minus the share it decides."""
    spent = sum(parts.values())
    found: dict[str, Array] = {"nodes": np.ones_like(spent), "software": np.ones_like(spent)}
    for name, (_, exponents) in PARTS.items():
        for role, exponent in exponents.items():
            found[role] = found.get(role, 0.0) - exponent * parts[name] / spent
    found["power"] = found.pop("clock") * e["power"] * np.log(hw.watts)
    return found


def amounts(steps: Sequence[Step]) -> dict[str, Array]:
    """Steps as arrays by the name of the amount."""
    return {name: np.array([getattr(step, name) for step in steps], dtype=float) for name in AMOUNTS}
