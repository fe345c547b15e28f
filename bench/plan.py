"""Suite -> cells: what one run measures, in which order, how long it should take, and under which identity.

A cell is model x workload x backend, and for a model too large for the device one slice of it. The order is
the suite's: what the verdict needs most stands first, so that a budget cuts from the end.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import config
from bench.architecture import Model
from bench.config import Gpu, Group, Suite
from bench.mix import Mix
from bench.model import accounting, memory
from bench.workload import Workload

ROOT = Path(__file__).resolve().parent.parent
MEASURING_HALF = (
    *("bench/*.py", "bench/measure/*.py", "bench/model/*.py", "bench/workloads/*.py"),
    *("bench/traffic/*.py", "bench/points/*.py", "bench/client/*.py", "bench/serving/*.py"),
    *("kernels/*.py", "bench/peers/train/*.py", "bench/peers/serve/*.py"),
)
CHOICES = ("configs/tuning/*.csv", "configs/best.csv", "results/local/tuning.csv", "results/local/best.csv")


@dataclass(frozen=True)
class Cell:
    """One thing to measure. `unavailable`: why it cannot be, known before anything runs."""

    key: str
    workload: Workload
    backend: str
    model: Model | None
    layers: int | None  # depth to measure
    seconds: float
    setup_s: float
    limit_s: float
    unavailable: str | None = None
    n_gpus: int = 1  # processes that run it together

    @property
    def estimate_s(self) -> float:
        """Expected time, for the plan."""
        return 0.0 if self.unavailable else self.setup_s + self.seconds

    @property
    def is_part(self) -> bool:
        """Whether fewer layers or experts run than the model has."""
        fewer = bool(self.model and self.layers and self.layers < self.model.layers)
        return fewer or self.workload.expert_parallel > 1

    def request(self) -> dict[str, Any]:
        """What the worker needs to build it: the configs travel whole, so a drop-in config works too."""
        arguments: dict[str, Any] = {"workload": dataclasses.asdict(self.workload), "backend": self.backend}
        if self.model:
            arguments |= {"model": dataclasses.asdict(self.model), "layers": self.layers}
        return {
            "build": f"bench.workloads.{self.workload.phase}:build",
            "arguments": arguments,
            "seconds": self.seconds,
        }

    def possible(self, device: str) -> tuple[str, dict[str, Any]]:
        """What to call for why this cell cannot run, and with what: the answer is a reason or None."""
        if not self.backend.startswith("peer:"):
            return "bench.kernels.op:why_not", {"backend": self.backend}
        asked = self.request()["arguments"]
        asked.pop("layers")
        folder = "serve" if self.workload.phase == "serve" else "train"
        return f"bench.peers.{folder}.found:why_not", asked | {"device": device}

    def columns(self) -> dict[str, Any]:
        """The columns of cells.csv known before measuring."""
        w = self.workload
        kernel = w.phase in ("kernel", "ceiling", "serve")
        return {
            "cell": self.key,
            "phase": w.phase,
            "model": self.model.key if self.model else None,
            "workload": w.key,
            "backend": self.backend,
            "precision": w.precision,
            "n_gpus": self.n_gpus,
            "batch_size": None if kernel else w.batch_size * w.gradient_accumulation,
            "input_tokens": None if kernel else w.input_tokens,
            "output_tokens": None if kernel else w.output_tokens,
            "layers": self.model.layers if self.model else None,
            "layers_measured": self.layers,
            "expert_parallel": w.expert_parallel if w.expert_parallel > 1 else None,
            "tensor_parallel": w.tensor_parallel if self.n_gpus > 1 else None,
            "lora_rank": w.lora_rank,
            "routing_zipf": w.routing_zipf if self.model and self.model.experts else None,
        }


def _depths(
    model: Model, workload: Workload, backends: set[str], memory_bytes: float, ranks: int
) -> dict[str, list[int]]:
    """The layers to measure with each backend: all where they fit, else slices that every other backend fits too.

    So slices compare, memory included. None for a backend whose least slice does not fit. Raises ValueError.
    """
    found = {name: memory.depths(model, workload, memory_bytes, ranks, backend=name) for name in sorted(backends)}
    slices = [depths for depths in found.values() if depths and depths != [model.layers]]
    common = min(slices, key=lambda depths: depths[-1], default=[])
    return {name: depths if depths in ([], [model.layers]) else common for name, depths in found.items()}


def _cells_of(
    group: Group,
    model: Model | None,
    workload: Workload,
    backend: str,
    memory_bytes: float,
    ranks: int,
    others: set[str],
) -> list[Cell]:
    """`others`: the backends that the suite names for this model and such a workload, this one among them."""
    shared = ranks > 1 and workload.phase == "train_step"

    def cell(layers: int | None, unavailable: str | None) -> Cell:
        parts = [model.key] if model else []
        parts += [workload.key, backend]
        if model and layers and layers < model.layers:
            parts.append(f"layers={layers}")
        if workload.tensor_parallel > 1:
            parts.append(f"tensor={workload.tensor_parallel}")
        key = "/".join(parts)
        gpus = ranks if shared else 1
        times = (group.seconds, group.setup_s, group.limit_s)
        return Cell(key, workload, backend, model, layers, *times, unavailable, gpus)

    if model is None:
        return [cell(None, None)]
    if reason := _alone(model, workload, backend, ranks):
        return [cell(None, reason)]
    try:
        depths = _depths(model, workload, others | {backend}, memory_bytes, ranks if shared else 1)[backend]
    except ValueError as error:  # its experts do not divide
        return [cell(None, f"{workload.key} with {model.key}: {error}")]
    if not depths:
        need = memory.needed_bytes(model, workload, backend=backend) / 1e9
        return [cell(None, f"needs about {need:.0f} GB, and not even a slice fits in {memory_bytes / 1e9:.0f} GB")]
    return [cell(depth, None) for depth in depths]


def _alone(model: Model, workload: Workload, backend: str, ranks: int) -> str | None:
    """Why `ranks` GPUs cannot run this together, or None."""
    parts = workload.tensor_parallel
    if ranks == 1:
        how = f"make bench NPROC={parts} ARGS='--tensor-parallel {parts}'"
        return None if parts == 1 else f"tensor_parallel = {parts} needs {parts} GPUs or a multiple: {how}"
    more = model.experts or model.qk_norm or model.attention_bias or model.mlp_bias or workload.lora_rank
    plain = model.attention == "gqa" and not more
    return next(
        (
            reason
            for reason, holds in (
                (f"phase {workload.phase} runs on one GPU: not under torchrun", workload.phase != "train_step"),
                ("a share of the experts stands for one GPU of many: not under torchrun", workload.expert_parallel > 1),
                (f"{backend} runs on one GPU: not under torchrun", backend.startswith("peer:")),
                (f"tensor_parallel = {parts} does not divide {ranks} GPUs", ranks % parts > 0),
                ("tensor_parallel needs a dense model without QK-norm, biases, adapters", parts > 1 and not plain),
            )
            if holds
        ),
        None,
    )


def cells(suite: Suite, memory_bytes: float, ranks: int = 1, *, bf16: bool = True) -> list[Cell]:
    """Every cell of the suite on `ranks` devices of that memory, in fp32 for bf16 where they have none.

    Raises ConfigError for a name that does not exist.
    """
    planned: list[Cell] = []
    named: dict[tuple[str, Workload], set[str]] = defaultdict(set)
    for group in suite.groups:
        for model_key, workload_key in itertools.product(group.models, group.workloads):
            if workload_key in config.keys(Workload):
                named[model_key, _compared(config.load(Workload, workload_key))] |= set(group.backends)
    for number, group in enumerate(suite.groups):
        where = f"configs/suites/{suite.key}.toml: groups[{number}]"
        models = [_named(Model, key, f"{where}.models") for key in group.models] or [None]
        for model in filter(None, models):
            _counted(model)
        workloads = [_named(Workload, key, f"{where}.workloads") for key in group.workloads]
        workloads = workloads if bf16 else [workload.without_bf16() for workload in workloads]
        workloads = [_shared_by(suite.tensor_parallel, workload) for workload in workloads]
        for model in models:
            for workload in workloads:
                if (model is None) != (workload.phase in ("kernel", "ceiling")):
                    raise config.ConfigError(
                        f"{where}: {workload.key} is of phase {workload.phase}, which "
                        + ("needs models" if model is None else "takes no models")
                    )
                others = named[model.key, _compared(workload)] if model else set()
                for backend in group.backends:
                    planned += _cells_of(group, model, workload, backend, memory_bytes, ranks, others)
    doubled = {cell.key for cell in planned if sum(other.key == cell.key for other in planned) > 1}
    if doubled:
        raise config.ConfigError(f"configs/suites/{suite.key}.toml: groups: cell named twice: {min(doubled)}")
    return planned


def _compared(workload: Workload) -> Workload:
    """What workloads held against each other share: the same step but for routing (skew) and fp8."""
    same: dict[str, Any] = {"key": "", "source": "", "routing_zipf": None, "precision": "fp32", "tensor_parallel": 1}
    return dataclasses.replace(workload, fp8_scaling="rowwise", fp8_around="bf16", **same)


def _shared_by(ranks: int, workload: Workload) -> Workload:
    """The training step with its matrices shared over so many ranks; anything else as it is."""
    shares = ranks > 1 and workload.phase == "train_step"
    return dataclasses.replace(workload, tensor_parallel=ranks) if shares else workload


def _counted(model: Model) -> None:
    """Refuse a model whose stated size is not what its own numbers give."""
    counted = accounting.total_params(model)
    if counted != model.total_params:
        raise config.ConfigError(
            f"configs/models/{model.key}.toml: total_params: expected {counted}, which its sizes give, "
            f"got {model.total_params}"
        )


def _named(kind: Any, key: str, where: str) -> Any:
    if key not in config.keys(kind):
        known = ", ".join(config.keys(kind))
        raise config.ConfigError(f"{where}: no {kind.FOLDER[:-1]} named {key!r}; known: {known}")
    return config.load(kind, key)


def gpu_key(device_name: str) -> str | None:
    """The GPU config that names this device exactly, or None: never matched by part."""
    for key, gpu in config.load_all(Gpu).items():
        if device_name in gpu.device_names:
            return key
    return None


def source_hash(suite: str, planned: list[Cell]) -> str:
    """Hash of what decides a measurement: the measuring half's code, the kernels, their tuning and the configs used."""
    digest = hashlib.sha256()
    files = sorted(path for pattern in MEASURING_HALF + CHOICES for path in ROOT.glob(pattern))
    keys = {config.CONFIGS / "suites" / f"{suite}.toml"}
    for cell in planned:
        keys.add(config.CONFIGS / "workloads" / f"{cell.workload.key}.toml")
        if cell.model:
            keys.add(config.CONFIGS / "models" / f"{cell.model.key}.toml")
        if cell.workload.serving:
            keys |= _traffic(cell.workload.serving.traffic)
    for path in files + sorted(key for key in keys if key.is_file()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:8]


def _traffic(key: str) -> set[Path]:
    """The files of a class, or of a mix and its classes."""
    mixed = config.load(Mix, key).shares if key in config.keys(Mix) else ()
    folder = config.CONFIGS / "traffic"
    return {
        config.CONFIGS / "mixes" / f"{key}.toml",
        folder / f"{key}.toml",
        *(folder / f"{one}.toml" for one in mixed),
    }
