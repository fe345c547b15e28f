"""Which machine this is: the device as its driver names it, memory, versions, and what a run must record.

Facts only. A GPU is matched to a config by its exact name elsewhere (bench/run.py); here nothing is guessed.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
from pathlib import Path
from typing import Any


def cpu_name() -> str:
    """The processor's model name as the kernel reports it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for entry in info.read_text(errors="replace").splitlines():
            if entry.startswith("model name"):
                return " ".join(entry.split(":", 1)[1].split())
    return platform.processor() or platform.machine()


def cpu_count() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_memory_bytes() -> int:
    """Physical memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _machine_id() -> str:
    """A short name for this machine that no other has: CPUs carry no serial number one may read."""
    path = Path("/etc/machine-id")
    known = path.read_text().strip() if path.is_file() else ""
    return hashlib.sha256(f"{known or platform.node()} {cpu_name()}".encode()).hexdigest()[:12]


def has_cuda() -> bool:
    """Whether torch finds a CUDA device."""
    import torch

    return bool(torch.cuda.is_available())


def describe(device: str) -> dict[str, Any]:
    """The facts of `device` (cpu or cuda), for environment.json. Imports torch.

    Raises RuntimeError where cuda is asked for and torch finds no CUDA device.
    """
    import torch

    facts: dict[str, Any] = {
        "device": device,
        "cpu_name": cpu_name(),
        "cpu_count": cpu_count(),
        "memory_bytes": cpu_memory_bytes(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "numpy": _version("numpy"),
        "platform": platform.platform(),
        "compiler": compiler(),
        "threads": torch.get_num_threads(),
    }
    if device == "cpu":
        named = {"device_name": facts["cpu_name"], "device_uuid": f"cpu:{cpu_count()}:{_machine_id()}"}
        return facts | named | {"cpu_bf16": bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())}
    if not torch.cuda.is_available():
        raise RuntimeError("torch finds no CUDA device, which this suite needs; on a CPU: --suite smoke")
    properties = torch.cuda.get_device_properties(0)
    return facts | {
        "device_name": properties.name,
        "device_uuid": f"gpu:{getattr(properties, 'uuid', properties.name)}",
        "device_memory_bytes": properties.total_memory,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": getattr(properties, "L2_cache_size", None),
        "cuda": torch.version.cuda,
    }


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def compiler() -> str | None:
    """The C++ compiler torch.compile would use on a CPU, or None."""
    return shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")


def own_cpu_s() -> float:
    """CPU seconds this process has used so far."""
    ours = os.times()
    return ours.user + ours.system


def busy_cpu_s() -> float | None:
    """CPU seconds of all cores so far, stolen ones too; None where /proc/stat is not there."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    user, nice, system, _idle, _wait, irq, soft, steal = map(int, stat.read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def reset_peak_memory(device: str) -> None:
    """Give back what is cached and start counting the peak again: a worker process outlives its cells."""
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): 5 resets the resident-set high-water mark


def peak_memory_bytes(device: str) -> int | None:
    """Peak since the last reset: device allocations on CUDA, resident set on a CPU. None where neither is told."""
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    for entry in status.read_text().splitlines():
        if entry.startswith("VmHWM:"):
            return int(entry.split()[1]) * 1024  # KiB
    return None
