"""What a row says beside its time: the kernels a call launched, the memory it held, the machine it ran on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from triton.runtime.jit import JITFunction

from bench.config import Gpu, load
from bench.measure import device
from bench.peers.found import Peer
from bench.plan import gpu_key

ROOT = Path(__file__).resolve().parents[2]
CUDA = torch.cuda.is_available()
PRECISION = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "fp8",
}


@contextmanager
def kernels_launched() -> Iterator[list[Any]]:
    """Inside the block, what Triton compiled for each launch: ours and peers' alike. Not what torch.compile makes."""
    made: list[Any] = []
    run = JITFunction.run

    def recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
        made.append(run(self, *args, **kwargs))
        return made[-1]

    JITFunction.run = recorded
    try:
        yield made
    finally:
        JITFunction.run = run


def largest(kernels: list[Any]) -> dict[str, Any]:
    """The columns of the kernel with most registers. Blank where none was launched."""
    known = [kernel for kernel in kernels if isinstance(getattr(kernel, "n_regs", None), int)]
    if not known:
        return {}
    kernel = max(known, key=lambda kernel: kernel.n_regs)
    return {
        "kernel": kernel.metadata.name,
        "registers": kernel.n_regs,
        "shared_bytes": kernel.metadata.shared,
        "spill_bytes": 4 * kernel.n_spills,  # the driver's local bytes, which Triton hands on in words of four
    }


def memory_held(step: Callable[[], Any]) -> int | None:
    """Most device memory one call held beyond what was there before. None on a CPU."""
    if not CUDA:
        step()
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated()) - before


def lost() -> bool:
    """Whether the device no longer answers: after an illegal access every further call of the process fails."""
    try:
        if CUDA:
            torch.cuda.synchronize()
    except Exception:
        return True
    return False


def gpu() -> Gpu | None:
    """The config that names this device exactly; None on a CPU or where there is none."""
    key = gpu_key(torch.cuda.get_device_name()) if CUDA else None
    return load(Gpu, key) if key else None


def source_hash() -> str:
    """8 hex digits of the code that decides these measurements."""
    digest = hashlib.sha256()
    for pattern in ("kernels/*.py", "bench/peers/*.py", "tests/perf/*.py"):
        for path in sorted(ROOT.glob(pattern)):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:8]


def facts(peers: dict[str, Peer]) -> dict[str, Any]:
    """For environment.json: the device and versions, the code's hash, and which peers there were."""
    known = gpu()
    return {
        **device.describe("cuda" if CUDA else "cpu"),
        "gpu": known.key if known else None if CUDA else "cpu",
        "source_hash": source_hash(),
        "peers": {name: peer.reason or peer.version or "present" for name, peer in peers.items()},
    }
