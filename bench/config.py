"""The configs: strict TOML in, frozen dataclasses out.

A config is one TOML file; its stem is its key, its folder its kind, and the folder listing the registry.
`load(Model, "llama_3_1_8b")` reads `configs/models/llama_3_1_8b.toml`. An unknown key, a missing key, a wrong
type or a value that breaks a rule is a `ConfigError`: one line naming the file, the key and what was expected.

The kinds the measuring half needs stand here; `bench/price/book.py` adds providers and `bench/claim/spec.py`
claims, read by the same `read`. Standard library only: a GPU host runs this with nothing installed.
"""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import functools
import math
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
BACKENDS = ("reference", "compile", "triton", "best")  # as kernels/op.py has them
PEERS = Path(__file__).resolve().parent / "peers" / "train"  # each file that builds a model is a backend of training
SERVING_PEERS = PEERS.parent / "serve"  # and here of phase serve
PRECISIONS = ("fp32", "bf16", "fp16", "fp8", "fp4")
T = TypeVar("T")


class ConfigError(Exception):
    """Bad input: one line naming file, key and expectation. The command line exits with 2."""


# ---------------------------------------------------------------- the strict reader


def _is(value: Any, kind: Any) -> bool:
    """Whether a plain TOML value has the annotated type. An int passes for a float, a bool never for a number."""
    if kind is Any:
        return True
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is datetime.date:
        return isinstance(value, datetime.date) and not isinstance(value, datetime.datetime)
    return isinstance(value, kind)


def _name(kind: Any) -> str:
    return getattr(kind, "__name__", str(kind))


def build(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind` (dataclass, tuple[X, ...], dict[str, X], X | None or plain); `where` = "file: key"."""
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return build(next(a for a in arguments if a is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where}: expected a list, got {value!r}")
        return tuple(build(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected a table, got {value!r}")
        return {key: build(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected a table, got {value!r}")
        return _build_dataclass(kind, value, where)
    if not _is(value, kind):
        raise ConfigError(f"{where}: expected {_name(kind)}, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}: expected a finite number, got {value!r}")
    return float(value) if kind is float else value


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    """The fields' types, worked out once a class: hundreds of rows are built of the same one."""
    return typing.get_type_hints(kind)


def _build_dataclass(kind: Any, table: dict[str, Any], where: str) -> Any:
    hints = _hints(kind)
    keyed = hasattr(kind, "FOLDER")  # a whole file: its key is its stem, never a line in it
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init and not (keyed and f.name == "key")}
    dot = f"{where}." if ": " in where else f"{where}: "
    for key in table:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; known keys: {', '.join(fields)}"
            raise ConfigError(f"{dot}{key}: unknown key{hint}")
    needed = [f.name for f in fields.values() if f.default is f.default_factory is dataclasses.MISSING]
    missing = [name for name in needed if name not in table]
    if missing:
        also = f" (missing too: {', '.join(missing[1:])})" if missing[1:] else ""
        raise ConfigError(f"{dot}{missing[0]}: missing; expected {_name(hints[missing[0]])}{also}")
    values = {key: build(hints[key], value, dot + key) for key, value in table.items()}
    if keyed:
        values["key"] = Path(where.split(": ")[0]).stem
    try:
        return kind(**values)
    except ValueError as error:  # a rule of the dataclass's __post_init__: "key: expectation"
        raise ConfigError(f"{dot}{error}") from None


def read(kind: type[T], path: Path) -> T:
    """The TOML file `path` as a `kind`. Raises ConfigError."""
    shown = path.relative_to(CONFIGS.parent) if path.is_relative_to(CONFIGS.parent) else path
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{shown}: cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{shown}: not valid TOML: {error}") from None
    return typing.cast(T, build(kind, table, str(shown)))


def keys(kind: Any) -> list[str]:
    """The keys of every config of this kind, sorted: the folder listing."""
    return sorted(path.stem for path in (CONFIGS / kind.FOLDER).glob("*.toml"))


def load(kind: type[T], key: str) -> T:
    """One config by key. Raises ConfigError, with the nearest known key, where there is none."""
    folder = typing.cast(Any, kind).FOLDER
    path = CONFIGS / folder / f"{key}.toml"
    if not path.is_file():
        near = difflib.get_close_matches(key, keys(kind), 1)
        hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(keys(kind))}"
        raise ConfigError(f"configs/{folder}/{key}.toml: no such config{hint}")
    return read(kind, path)


def load_all(kind: type[T]) -> dict[str, T]:
    """Every config of a kind by key."""
    return {key: load(kind, key) for key in keys(kind)}


def training_peers() -> tuple[str, ...]:
    """Backends `peer:<file>`: the files of bench/peers/train that build a whole model. Torch is not imported."""
    return _building(PEERS)


def serving_peers() -> tuple[str, ...]:
    """The same of phase serve: the files of bench/peers/serve that build an engine."""
    return _building(SERVING_PEERS)


def _building(folder: Path) -> tuple[str, ...]:
    found = sorted(path.stem for path in folder.glob("*.py") if "\ndef build(" in path.read_text(encoding="utf-8"))
    return tuple(f"peer:{stem}" for stem in found)


def require(holds: bool, key: str, expected: str) -> None:
    """A rule of a config: raises ValueError("key: expected ...") where it does not hold."""
    if not holds:
        raise ValueError(f"{key}: expected {expected}")


# ---------------------------------------------------------------- the kinds of the measuring half


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU SKU with form factor and memory. Peaks are dense (no sparsity), at boost clock, from the datasheet."""

    FOLDER: ClassVar[str] = "gpus"
    key: str = ""
    name: str
    device_names: tuple[str, ...]  # exactly as the driver says it; never matched by part
    memory_bytes: int
    hbm_bytes_per_s: float
    peak_flops_per_s: dict[str, float]  # by precision
    tdp_w: float
    architecture: str
    link_bytes_per_s: float | None = None  # to the other GPUs of its node, both directions together
    source: str
    note: str = ""

    def __post_init__(self) -> None:
        for precision, peak in self.peak_flops_per_s.items():
            require(precision in PRECISIONS, "peak_flops_per_s", f"one of {PRECISIONS}, got {precision}")
            require(peak > 0, f"peak_flops_per_s.{precision}", "a positive rate")
        require(self.hbm_bytes_per_s > 0, "hbm_bytes_per_s", "a positive rate")
        require(self.link_bytes_per_s is None or self.link_bytes_per_s > 0, "link_bytes_per_s", "a positive rate")


@dataclass(frozen=True, kw_only=True)
class Group:
    """Cells of a suite: every model x workload x backend. No models: a cell that needs none (kernel, ceiling)."""

    workloads: tuple[str, ...]
    backends: tuple[str, ...]
    models: tuple[str, ...] = ()
    seconds: float = 5.0  # time budget of one cell's samples
    setup_s: float = 5.0  # expected build, check, warm-up and compile time of one cell, for the plan's estimate
    limit_s: float = 120.0  # a cell that runs past this is killed: status timeout

    def __post_init__(self) -> None:
        require(self.seconds > 0, "seconds", f"a positive time, got {self.seconds}")
        require(self.setup_s >= 0, "setup_s", f"a time, got {self.setup_s}")
        require(self.limit_s > 0, "limit_s", f"a positive time, got {self.limit_s}")
        require(bool(self.workloads) and bool(self.backends), "workloads", "at least one, and at least one backend")
        for backend in self.backends:
            peers = dict.fromkeys((*training_peers(), *serving_peers()))
            known = tuple(peers) if backend.startswith("peer:") else BACKENDS
            require(backend in known, "backends", f"each one of {', '.join(known)}, got {backend!r}")


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What one `make bench` measures. Groups stand in the order the verdict needs them: a budget cuts from the end."""

    FOLDER: ClassVar[str] = "suites"
    key: str = ""
    device: str  # cpu | cuda
    budget_s: float
    about: str
    on_cpu: str | None = None  # the suite that runs in this one's place where there is no CUDA device
    tensor_parallel: int = 1  # under torchrun: ranks that share each layer's matrices in training steps
    groups: tuple[Group, ...] = field(default=())

    def __post_init__(self) -> None:
        require(self.device in ("cpu", "cuda"), "device", f"cpu or cuda, got {self.device!r}")
        require(self.budget_s > 0, "budget_s", "a positive time")
        require(self.tensor_parallel >= 1, "tensor_parallel", f"at least 1, got {self.tensor_parallel}")
        require(bool(self.groups), "groups", "at least one [[groups]] table")
