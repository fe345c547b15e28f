"""Everything there is to measure, price and test: the folder listings, read and shown."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from rich import box
from rich.console import Console
from rich.table import Table

from bench import config
from bench.architecture import Model
from bench.config import ConfigError, Gpu, Suite
from bench.mix import Mix
from bench.workload import Workload

Line = tuple[str, ...]


def models() -> tuple[Line, list[Line]]:
    """Models, and what their layers are."""
    return ("key", "name", "parameters", "per token", "layers"), [
        (key, m.name, size(m.total_params), size(m.active_matmul_params), layers(m))
        for key, m in config.load_all(Model).items()
    ]


def layers(m: Model) -> str:
    """61: 3 dense, 58 of 256 experts (top 8)."""
    dense = m.layers - m.moe_layers
    parts = [f"{dense} dense"] * bool(dense)
    parts += [f"{m.moe_layers} of {m.experts} experts (top {m.top_k})"] * bool(m.moe_layers)
    return ", ".join(parts)


def size(count: int) -> str:
    """A parameter count for people."""
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6)):
        if count >= scale:
            return f"{count / scale:.3g}{unit}"
    return str(count)


def gpus() -> tuple[Line, list[Line]]:
    """GPUs with their data-sheet peaks."""
    lines: list[Line] = []
    for key, g in config.load_all(Gpu).items():
        peak = g.peak_flops_per_s.get("bf16", 0) / 1e12
        lines.append(
            (key, g.name, f"{g.memory_bytes / 1e9:.0f} GB", f"{g.hbm_bytes_per_s / 1e12:.3g} TB/s", f"{peak:.4g}")
        )
    return ("key", "name", "memory", "bandwidth", "bf16 TFLOP/s"), lines


def providers() -> tuple[Line, list[Line]]:
    """Providers with what they sell."""
    from bench.price.book import providers as load_providers

    lines: list[Line] = []
    for key, p in load_providers().items():
        sold = {price.gpu for price in p.price} | {owned.gpu for owned in p.owned}
        dates = [price.as_of for price in p.price] + [price.as_of for price in p.cpu_price]
        newest = max(dates).isoformat() if dates else "–"
        lines.append(
            (key, p.name, p.kind, str(len(p.price) + len(p.cpu_price) + len(p.owned)), newest, " ".join(sorted(sold)))
        )
    return ("key", "name", "kind", "prices", "newest", "GPUs"), lines


def portfolios() -> tuple[Line, list[Line]]:
    """Portfolios of sellers, with the shares of their last year."""
    from bench.price.portfolio import Portfolio

    lines: list[Line] = []
    for key, p in config.load_all(Portfolio).items():
        last = p.year[-1]
        shares = ", ".join(f"{name} {share:.0%}" for name, share in last.held.items())
        lines.append((key, p.name, p.survive, f"{last.year}: {shares}"))
    return ("key", "name", "survives", "shares"), lines


def load_curves() -> tuple[Line, list[Line]]:
    """Days of load, by the hour."""
    from bench.price.load_curve import LoadCurve

    return ("key", "name", "peak / mean"), [
        (key, one.name, f"{one.peak_over_mean:.2f}") for key, one in config.load_all(LoadCurve).items()
    ]


def workloads() -> tuple[Line, list[Line]]:
    """Workloads by phase."""
    lines: list[Line] = []
    for key, w in config.load_all(Workload).items():
        size = (
            f"{w.op} {w.shape}"
            if w.op
            else f"{w.batch_size} x {w.input_tokens}" + (f" + {w.output_tokens}" if w.output_tokens else "")
        )
        lines.append((key, w.phase, w.precision, size))
    return ("key", "phase", "precision", "size"), sorted(lines, key=lambda line: (line[1], line[0]))


def traffic() -> tuple[Line, list[Line]]:
    """Classes of requests that serving is measured under."""
    from bench.traffic.traffic import Traffic

    return ("key", "what"), [(key, t.about) for key, t in config.load_all(Traffic).items()]


def mixes() -> tuple[Line, list[Line]]:
    """Mixes of those classes, by shares of the requests."""
    return ("key", "what"), [(key, m.about) for key, m in config.load_all(Mix).items()]


def suites() -> tuple[Line, list[Line]]:
    """Suites: what one run measures."""
    lines: list[Line] = [(key, s.device, f"{s.budget_s:.0f} s", s.about) for key, s in config.load_all(Suite).items()]
    return ("key", "device", "budget", "about"), lines


def claims() -> tuple[Line, list[Line]]:
    """Claims under test."""
    from bench.claim.spec import Claim

    return ("key", "question"), [(key, c.question) for key, c in config.load_all(Claim).items()]


def ops() -> tuple[Line, list[Line]]:
    """Ops in kernels/, read from the folder without importing torch."""
    from pathlib import Path

    folder = Path(__file__).parent / "kernels"
    files = sorted(path for path in folder.glob("*.py") if "\nOP = Op(" in path.read_text())
    return ("op", "what"), [(path.stem, path.read_text().split('"""')[1].splitlines()[0]) for path in files]


def formats() -> tuple[Line, list[Line]]:
    """Other tools' files that `bench import` reads."""
    from bench.importers import landing

    return ("format", "file", "gives"), [(key, m.ABOUT, m.GIVES) for key, m in landing.formats().items()]


KINDS: dict[str, Callable[[], tuple[Line, list[Line]]]] = {
    "models": models,
    "gpus": gpus,
    "providers": providers,
    "portfolios": portfolios,
    "load_curves": load_curves,
    "workloads": workloads,
    "traffic": traffic,
    "mixes": mixes,
    "suites": suites,
    "claims": claims,
    "ops": ops,
    "formats": formats,
}


def show(kind: str | None) -> None:
    """Print one kind, or all. Raises ConfigError for a kind there is not."""
    if kind is not None and kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"list: expected one of {', '.join(KINDS)}, got {kind!r}{hint}")
    console = Console(highlight=False, width=None if Console().is_terminal else 200)
    for name in [kind] if kind else KINDS:
        header, lines = KINDS[name]()
        table = Table(title=name, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
        for number, column in enumerate(header):
            table.add_column(column, overflow="fold", no_wrap=number == 0)
        for line in lines:
            table.add_row(*line)
        console.print(table)
