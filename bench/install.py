"""Set up the virtual environment: `make setup` runs this with the system's Python, standard library only.

torch comes first and alone, so that nothing else pulls gigabytes of CUDA wheels onto a machine without a GPU:
the CPU build from where pip already looks, else from TORCH_INDEX (an index address or a folder of wheels); with
an NVIDIA driver, the CUDA build. Then everything in pyproject.toml, held to the constraints file.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TORCH = "2.13.0"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


class SetupError(Exception):
    """One line: what is missing and how to get it."""


def has_nvidia_driver() -> bool:
    """Whether an NVIDIA driver is loaded."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def missing_parts() -> list[str]:
    """What this system lacks, each with the Debian package that brings it. Only the first stops the set-up."""
    lacking = []
    if importlib.util.find_spec("ensurepip") is None:
        lacking.append("python3-venv (Debian, Ubuntu: apt install python3-venv): no virtual environment without it")
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        lacking.append("a C++ compiler (apt install g++): backend compile will be unavailable on a CPU")
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        lacking.append("Python headers (apt install python3-dev): backends compile and triton will be unavailable")
    return lacking


def requirements(extras: list[str]) -> list[str]:
    """Dependencies and the named extras of pyproject.toml, torch left out."""
    import tomllib  # here, so that an older Python gets its one line from main() and not a traceback

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = project["optional-dependencies"]
    for extra in extras:
        if extra not in known:
            raise SetupError(f"EXTRAS: no extra named {extra!r} in pyproject.toml; known: {', '.join(known)}")
    wanted = [*project["dependencies"], *(need for extra in extras for need in known[extra])]
    return [need for need in wanted if not need.startswith("torch")]


def fingerprint(extras: list[str], gpu: bool) -> str:
    """What the environment was made from: when it changes, set-up runs again."""
    parts = [(ROOT / name).read_text() for name in ("pyproject.toml", "constraints.txt", "constraints-cpu.txt")]
    return hashlib.sha256(repr((parts, sorted(extras), gpu, sys.version_info[:2])).encode()).hexdigest()


def torch_commands(pip: list[str], gpu: bool, index: str) -> list[list[str]]:
    """The ways to get torch, in the order they are tried."""
    if gpu:
        return [[*pip, f"torch=={TORCH}"]]
    pinned = f"torch=={TORCH}+cpu"
    elsewhere = ["--no-index", "--find-links", index] if Path(index).is_dir() else ["--index-url", index]
    return [[*pip, pinned], [*pip, "--retries", "1", "--timeout", "20", *elsewhere, pinned]]


def install_torch(pip: list[str], gpu: bool, index: str) -> None:
    """Raises SetupError where no source has it."""
    for command in torch_commands(pip, gpu, index):
        print(f"installing {command[-1]}, a minute or more", flush=True)
        if subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0:
            return
        print(f"not found by: {' '.join(command[command.index('install') + 1 :])}", flush=True)
    where = "pip's own index" if gpu else f"neither pip's own index nor TORCH_INDEX={index}"
    build = "" if gpu else "+cpu"
    raise SetupError(
        f"torch=={TORCH}{build} was not found: {where} has it; set TORCH_INDEX to an index address or a folder of "
        f"wheels that does (make setup TORCH_INDEX=...)"
    )


def setup(venv: Path, extras: list[str], index: str) -> None:
    """Make or renew the environment at `venv`. Raises SetupError."""
    gpu = has_nvidia_driver()
    mark = venv / ".ready"
    wanted = fingerprint(extras, gpu)
    if mark.exists() and mark.read_text() == wanted:
        return
    lacking = missing_parts()
    for part in lacking:
        print(f"missing: {part}", file=sys.stderr)
    if lacking and lacking[0].startswith("python3-venv"):
        raise SetupError(f"missing: {lacking[0]}")
    print(f"setting up {venv} ({'NVIDIA driver found' if gpu else 'no NVIDIA driver: CPU build'})", flush=True)
    mark.unlink(missing_ok=True)
    if not (venv / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    pip = [str(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    constraints = str(ROOT / ("constraints.txt" if gpu else "constraints-cpu.txt"))
    install_torch(pip, gpu, index)
    command = [*pip, "--constraint", constraints, *requirements(extras)]
    print("installing the other packages", flush=True)
    answer = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if answer.returncode != 0:
        print(answer.stderr, file=sys.stderr)
        raise SetupError("pip could not install the packages of pyproject.toml (its message stands above)")
    mark.write_text(wanted)


def main() -> int:
    """Arguments: the environment's folder, then extras. TORCH_INDEX comes from the environment (Makefile)."""
    try:
        extras = [name for argument in sys.argv[2:] for name in argument.split(",") if name]
        setup(Path(sys.argv[1]).absolute(), extras, os.environ.get("TORCH_INDEX") or CPU_INDEX)
    except (SetupError, subprocess.CalledProcessError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
