"""What this machine is, and what works on it: device, backends, ops, extras; for what does not, why and what to do."""

from __future__ import annotations

import importlib.util
import platform
import sys

from rich.console import Console

from bench.install import missing_parts

REPORT_NEEDS = ("pandas", "scipy", "altair", "vl_convert", "jinja2", "SALib")
EXTRAS = {"dev": ("pytest", "hypothesis", "pytest_benchmark"), "peers": ("transformers",)}


def missing(modules: tuple[str, ...]) -> list[str]:
    """Those of the modules that cannot be found."""
    return [name for name in modules if importlib.util.find_spec(name) is None]


def lines() -> list[tuple[str, str, str]]:
    """(mark, what, detail) for each thing looked at; mark is ok, -- or !!."""
    found = [("ok", "python", f"{platform.python_version()} at {sys.executable}")]
    found += [("!!", "system", f"missing {part}") for part in missing_parts()]
    if missing(("torch",)):
        found.append(("!!", "torch", "not installed: run `make setup`"))
    else:
        found += machine() + backends()
    for name, needs in {"report": REPORT_NEEDS, **{f"extra {key}": value for key, value in EXTRAS.items()}}.items():
        lacking = missing(needs)
        help_text = f"missing {', '.join(lacking)}: " + (
            "run `make report` on a laptop" if name == "report" else f"make setup EXTRAS=dev,{name.split()[-1]}"
        )
        found.append(("--", name, help_text) if lacking else ("ok", name, "complete"))
    return found


def machine() -> list[tuple[str, str, str]]:
    """The device this machine would be measured as."""
    from bench import plan
    from bench.measure import device, energy

    cuda = device.has_cuda()
    facts = device.describe("cuda" if cuda else "cpu")
    rows = [("ok", "torch", f"{facts['torch']}, triton {facts['triton'] or 'not installed'}")]
    rows.append(("ok", "cpu", f"{facts['cpu_name']}, {facts['cpu_count']} cores, {facts['memory_bytes'] / 1e9:.0f} GB"))
    if not cuda:
        return [*rows, ("--", "gpu", "torch finds no CUDA device: suite smoke runs, on the CPU")]
    key = plan.gpu_key(facts["device_name"])
    name = f"{facts['device_name']}, {facts['device_memory_bytes'] / 1e9:.0f} GB"
    known = ("ok", "gpu", f"{name} = {key}") if key else (
        "--", "gpu", f"{name}: no file in configs/gpus names it: measured, but no MFU and no price"
    )  # fmt: skip
    board = energy.open_board()
    return [*rows, known, ("--", "nvml", board) if isinstance(board, str) else ("ok", "nvml", "energy, clocks, heat")]


def backends() -> list[tuple[str, str, str]]:
    """Which backends run here, and the ops each has."""
    from bench.kernels import op

    ops = ", ".join(op.names())
    rows = []
    for backend in op.BACKENDS:
        reason = op.why_not(backend)
        rows.append(("--", f"backend {backend}", reason) if reason else ("ok", f"backend {backend}", ops))
    return rows


def show() -> None:
    """Print it all."""
    console = Console(highlight=False, soft_wrap=True)
    for mark, what, detail in lines():
        colour = {"ok": "green", "--": "yellow", "!!": "red"}[mark]
        console.print(f"[{colour}]{mark}[/] {what:<20}", end=" ")
        console.print(detail, markup=False)
