"""What is timed: every op, part, shape and implementation; how each is built, and held against float64 first.

The oracle runs at the shape that is timed. Where float64 does not fit the memory there, implementations are checked
at the small shape with the same options instead, and the row's `checked_at` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bench.kernels.op import (
    ARCHITECTURES,
    Op,
    Shape,
    architecture,
    compiled,
    discover,
    owned,
    relative_error,
    tensors,
    widened,
)
from bench.kernels.op import why_not as why_no_backend
from bench.peers.found import Peer, Prepare, Unsupported, one_line
from bench.peers.found import discover as discover_peers
from tests.perf.journal import setting
from tests.perf.machine import PRECISION

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
DTYPE = torch.bfloat16 if CUDA else torch.float32
CHECK_SEED = 1000  # apart from the seeds of the timed sets
OPS = discover()
PEERS = discover_peers()


class Incorrect(Exception):
    """The implementation's error against float64 is above the op's tolerance."""


@dataclass(frozen=True)
class Case:
    """One row to come."""

    op: str
    part: str
    shape: str
    implementation: str

    @property
    def key(self) -> tuple[str, str, str, str]:
        """As `bench.kernel_results.key_of` its row."""
        return (self.op, self.part, self.shape, self.implementation)

    def __str__(self) -> str:
        return "/".join(self.key)


@dataclass(frozen=True)
class Check:
    """Worst relative error against float64, what was allowed, and where; blank where nothing could be compared."""

    error: float | None
    tolerance: float | None
    at: str


def chosen() -> list[str]:
    """PERF_OPS: the ops of this session; all where it is not set."""
    names = setting("PERF_OPS", ",".join(OPS)).split(",")
    unknown = [name for name in names if name not in OPS]
    if unknown:
        raise ValueError(f"PERF_OPS: no op {', '.join(unknown)}; known: {', '.join(OPS)}")
    return names


def with_compile() -> bool:
    """PERF_COMPILE=1: torch.compile and the peers that need it too."""
    return setting("PERF_COMPILE", "0") == "1"


def shapes(op: Op) -> Mapping[str, Shape]:
    """Real models' shapes on a GPU; on a CPU one small one, so that this machinery runs."""
    return op.shapes if CUDA else dict([next(iter(op.test_shapes.items()))])


def parts(op: Op) -> list[str]:
    """Forward; with the backward where there is one; the backward alone where the op counts its work."""
    both = ["forward_backward"] if op.differentiable else []
    return ["forward", *both, *(["backward"] if op.differentiable and op.backward_flops else [])]


def cases(chosen: list[str], with_compile: bool) -> list[Case]:
    """Shape by shape, so that one oracle serves every implementation; ours first. Peers that can run here only."""
    ours = ["triton", "reference"] if CUDA else ["reference"]
    theirs = ["compile"] if with_compile else []
    found = []
    for name in chosen:
        op = OPS[name]
        peers = [
            f"peer:{peer.name}" for peer in PEERS.values() if not left_out(peer, with_compile) and name in peer.ops
        ]
        for shape in shapes(op):
            for part in parts(op):
                found += [Case(name, part, shape, made) for made in (*ours, *peers, *theirs)]
    return found


def left_out(peer: Peer, with_compile: bool) -> tuple[str, str] | None:
    """Status and reason of a peer that no case runs, or None."""
    if peer.reason is not None:
        return "unavailable", peer.reason
    return ("skipped", "compiles at every shape: PERF_COMPILE=1") if peer.compiles and not with_compile else None


def absent(chosen: list[str], with_compile: bool) -> dict[Case, dict[str, str | None]]:
    """What to write of peers that no case runs: one row an op, or one in all for a file that does not import."""
    rows: dict[Case, dict[str, str | None]] = {}
    for peer in PEERS.values():
        why = left_out(peer, with_compile)
        for op in [name for name in chosen if name in peer.ops] if peer.ops else [""]:
            if why:
                row = {"status": why[0], "reason": why[1], "version": peer.version}
                rows[Case(op, "", "", f"peer:{peer.name}")] = row
    return rows


def counts(case: Case) -> tuple[float | None, float | None]:
    """Least FLOPs and bytes of one call of the part; None where the op does not count its backward.

    The op's own counts are of a forward that is asked for no gradient, whenever the gradient is computed.
    """
    op, size = OPS[case.op], shapes(OPS[case.op])[case.shape]
    forward = float(op.flops(size)), float(op.bytes(size, DTYPE.itemsize))
    if case.part == "forward":
        return forward
    flops = float(op.backward_flops(size)) if op.backward_flops else None
    moved = float(op.backward_bytes(size, DTYPE.itemsize)) if op.backward_bytes else None
    if case.part == "backward":
        return flops, moved
    return None if flops is None else forward[0] + flops, None if moved is None else forward[1] + moved


def traffic(case: Case) -> float:
    """Bytes that decide over how many sets a case rotates: the forward's, whatever part is timed."""
    op = OPS[case.op]
    return float(op.bytes(shapes(op)[case.shape], DTYPE.itemsize))


def inputs(case: Case, seed: int, size: Shape | None = None) -> dict[str, Any]:
    """The op's inputs; those with a gradient are leaves that ask for one, unless only forward runs."""
    op = OPS[case.op]
    generator = torch.Generator(DEVICE).manual_seed(seed)
    made = op.inputs(size or shapes(op)[case.shape], DTYPE, DEVICE, generator)
    return made if case.part == "forward" else op.trained(made)


def dtype_of(made: dict[str, Any]) -> str:
    """Precision of the activations: the first floating input's."""
    return next((PRECISION.get(x.dtype, str(x.dtype)) for x in tensors([*made.values()]) if x.is_floating_point()), "")


def implementation(case: Case) -> Prepare:
    """inputs -> thunk. Raises Unsupported where a backend cannot run here."""
    if case.implementation.startswith("peer:"):
        return PEERS[case.implementation.removeprefix("peer:")].ops[case.op]
    op, backend = OPS[case.op], case.implementation
    reason = why_no_backend(backend)
    declared = op.architectures(shapes(op)[case.shape])
    if reason is None and CUDA and architecture(DEVICE) not in declared:
        reason = f"the shape is for sm_{', sm_'.join(map(str, sorted(set(ARCHITECTURES) & set(declared))))}"
    if reason:
        raise Unsupported(reason)
    function = compiled(backend, op.triton if backend == "triton" else op.reference)
    return lambda made: lambda: function(**made)


def step(case: Case, thunk: Callable[[], Any], made: dict[str, Any]) -> Callable[[], Any]:
    """One call of the part: outputs, outputs and gradients, or the gradients of outputs made here."""
    if case.part == "forward":

        def forward() -> Any:
            with torch.no_grad():
                return thunk()

        return forward
    wanted = [made[name] for name in OPS[case.op].leaves(made)]
    first = differentiable(thunk())
    pull = _pull(first, seed=0)
    if case.part == "backward":

        def backward() -> Any:
            return torch.autograd.grad(first, wanted, pull, retain_graph=True)

        backward()
        try:
            backward()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # gradients made in forward and scaled in place are handed out once
            raise Unsupported(f"no second backward: {one_line(error)}") from error
        return backward

    def forward_backward() -> Any:
        outputs = differentiable(thunk())
        return outputs, torch.autograd.grad(outputs, wanted, pull)

    return forward_backward


def differentiable(outputs: Any) -> list[torch.Tensor]:
    """The outputs a gradient flows from. Raises Unsupported where there is none."""
    found = [x for x in tensors(outputs) if x.requires_grad]
    if not found:
        raise Unsupported("forward only")
    return found


def _pull(outputs: list[torch.Tensor], seed: int) -> list[torch.Tensor]:
    """A gradient for each output: 1 for a loss; else random, rounded to bfloat16 so that every dtype sees the same."""
    random = torch.Generator(DEVICE).manual_seed(seed)
    return [
        torch.ones_like(x)
        if x.dim() == 0
        else torch.randn(x.shape, device=DEVICE, generator=random).bfloat16().to(x.dtype)
        for x in outputs
    ]


# ---------------------------------------------------------------- the check

_truth: dict[tuple[str, str, str], list[torch.Tensor]] = {}  # the last case's only: float64 is large


def check(case: Case, prepare: Prepare) -> Check:
    """Raises Incorrect above the tolerance."""
    op = OPS[case.op]
    if case.implementation.startswith("peer:"):
        unchecked = PEERS[case.implementation.removeprefix("peer:")].unchecked
        if case.op in unchecked:
            return Check(None, None, f"not checked: {unchecked[case.op]}")
    size = shapes(op)[case.shape]
    try:
        return _check_at(case, prepare, case.shape, size)
    except torch.OutOfMemoryError:
        _truth.clear()
        torch.cuda.empty_cache()
    small = nearest(size, op.test_shapes)
    return _check_at(case, prepare, small, op.test_shapes[small])


def nearest(size: Shape, smaller: Mapping[str, Shape]) -> str:
    """The small shape with the same options: the first of those whose keys differ least."""
    return min(smaller, key=lambda name: len(size.keys() ^ smaller[name].keys()))


def _check_at(case: Case, prepare: Prepare, name: str, size: Shape) -> Check:
    op = OPS[case.op]
    made = inputs(case, CHECK_SEED, size)
    key = (case.op, "forward" if case.part == "forward" else "gradients", name)
    if key not in _truth:
        _truth.clear()
        _truth[key] = [] if op.error else _results(case, op.reference, widened(made))
    results = _results(case, lambda **own: prepare(own)(), owned(op, made))
    if op.error:
        error = op.error(tuple(results), widened(made))
    else:
        try:
            error = max(relative_error(ours, wide) for ours, wide in zip(results, _truth[key], strict=True))
        except ValueError as wrong:  # a shape, or one output more or fewer
            raise Incorrect(str(wrong)) from None
    tolerance = op.tolerance[DTYPE]
    if not error <= tolerance:  # NaN is no number below it
        raise Incorrect(f"relative error {error:.3g} against float64 at {name}, {tolerance:.3g} allowed")
    return Check(error, tolerance, name)


def _results(case: Case, function: Callable[..., Any], made: dict[str, Any]) -> list[torch.Tensor]:
    """Outputs and, unless only forward runs, gradients."""
    if case.part == "forward":
        with torch.no_grad():
            return tensors(function(**made))
    names = OPS[case.op].leaves(made)
    made = OPS[case.op].trained(made)
    outputs = tensors(function(**made))
    flowing = differentiable(outputs)
    gradients = torch.autograd.grad(flowing, [made[name] for name in names], _pull(flowing, seed=1))
    return [x.detach() for x in (*outputs, *gradients)]
