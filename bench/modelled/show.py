"""The model in a terminal: how wrong it is about GPUs left out, and one prediction with that error beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bench import config
from bench.config import Gpu
from bench.modelled.accuracy import GOAL, Checked, Modelled, Summary
from bench.modelled.points import point
from bench.modelled.roofline import GENERATIONS
from bench.modelled.rows import LEAST_SEQUENCES, precision_of
from bench.modelled.work import PHASES, Cell


def line(name: str, checked: Sequence[Checked]) -> list[str]:
    """One line of errors, or none for no points."""
    found = Summary.of(checked)
    if found is None:
        return []
    verdict = "goal met" if found.met else "goal missed"
    return [f"{name:<28}{found.count:>5} points  median {found.median:>6.1%}  p90 {found.p90:>6.1%}  {verdict}"]


def errors(modelled: Modelled) -> list[str]:
    """Errors on GPUs left out: by phase and by GPU on one node, then on clusters and fleets."""
    node = [one for one in modelled.checked if one.point.tier == "node"]
    goal = f"goal: median {GOAL['median']:.0%}, p90 {GOAL['p90']:.0%} on one node; a fleet {GOAL['fleet']:.0%}"
    lines = [f"Absolute error on published rates of a GPU left out of the fit ({goal})", *line("one node", node)]
    for phase in PHASES:
        lines += line(f"  {phase}", [one for one in node if one.point.cell.phase == phase])
    for key in sorted({one.point.cell.gpu for one in node}):
        lines += line(f"  {key}", [one for one in node if one.point.cell.gpu == key])
    lines += line("only checked, never fitted", [one for one in node if one.point.use == "check"])
    lines += line("clusters", [one for one in modelled.checked if one.point.tier == "cluster"])
    for one in modelled.checked:
        if one.point.tier == "fleet":
            inside = "within" if abs(one.error) <= GOAL["fleet"] else "outside"
            lines.append(f"{one.point.row:<40} {one.error:+.0%}  {inside} {GOAL['fleet']:.0%}")
        elif one.point.tier == "hours":
            factor = one.left_out / one.point.tokens_per_s
            lines.append(f"{one.point.row:<40} GPU-hours are {factor:.2f} times what the steps alone would take")
    return lines


def brief(modelled: Modelled, rows: int) -> str:
    """One line: what stands beside every modelled number."""
    node = [one for one in modelled.checked if one.point.tier == "node"]
    parts = []
    for phase, said in (("train_step", "training"), ("serve", "serving")):
        found = Summary.of(one for one in node if one.point.cell.phase == phase)
        parts += [f"{said} {found.median:.1%} (p90 {found.p90:.1%})"] if found else []
    return f"{rows} modelled rates; error on one node of a GPU left out: {', '.join(parts)}; none enters a claim"


DEFAULTS = {"model": "llama_3_1_8b", "phase": "serve", "n_gpus": "1", "input_tokens": "1000"}
READ: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("model", "gpu", "precision", "phase", "software"), str),
    **dict.fromkeys(("n_gpus", "tensor_parallel", "lora_rank"), int),
    **dict.fromkeys(("input_tokens", "output_tokens", "batch"), float),
    "recompute": lambda word: {"yes": True, "no": False}[word],
}


def cell_of(words: Sequence[str]) -> Cell:
    """A cell from "gpu=h100_sxm_80gb" "phase=train_step" ...: fields of Cell. Raises ConfigError."""
    told = dict(DEFAULTS)
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in READ:
            raise config.ConfigError(f"{word}: expected NAME=VALUE, NAME one of {', '.join(READ)}")
        told[name] = value
    if "gpu" not in told:
        raise config.ConfigError("gpu=...: missing; a key of `bench list gpus`")
    told = {"precision": precision_of(config.load(Gpu, told["gpu"])), **told}
    if told["phase"] not in PHASES:
        raise config.ConfigError(f"phase={told['phase']}: expected one of {', '.join(PHASES)}")
    if told["phase"] in ("serve", "decode"):
        told = {"output_tokens": "1000", **told}
    try:
        read: dict[str, Any] = {name: READ[name](value) for name, value in told.items()}
    except (KeyError, ValueError):
        raise config.ConfigError(f"{' '.join(words)}: expected numbers for counts, yes or no for recompute") from None
    if not all(value > 0 for value in read.values() if isinstance(value, int | float) and not isinstance(value, bool)):
        raise config.ConfigError(f"{' '.join(words)}: expected positive numbers")
    return Cell(**read)


def prediction(modelled: Modelled, cell: Cell) -> str:
    """The rate of a cell, its interval, and the error of such predictions. Raises ConfigError."""
    generation = config.load(Gpu, cell.gpu).architecture
    if generation not in GENERATIONS:
        raise config.ConfigError(f"gpu={cell.gpu}: expected a generation of {', '.join(GENERATIONS)}, got {generation}")
    asked = point("asked", "node", "check", cell, 1.0, "")
    if not asked.plans:
        size = config.load(Gpu, cell.gpu).memory_bytes * cell.n_gpus / 1e9
        raise config.ConfigError(
            f"n_gpus={cell.n_gpus}: {cell.model} in {cell.precision} does not fit {size:.0f} GB; give more"
        )
    if not modelled.checked:
        raise config.ConfigError("configs/validation/points.csv: expected published rates; there are none to fit")
    (found,) = modelled.predict([asked])
    kinds = {"train_step": "trained", "prefill": "input"}
    spread = f"95% interval {found.low / cell.n_gpus:,.0f} to {found.high / cell.n_gpus:,.0f}"
    lines = [
        f"{cell.model}, {cell.phase} in {cell.precision}, {cell.input_tokens:,.0f} tokens in"
        + (f" and {cell.output_tokens:,.0f} out" if cell.output_tokens else ""),
        f"{found.tokens_per_s:,.0f} {kinds.get(cell.phase, 'output')} tokens/s on {cell.n_gpus} {cell.gpu}: "
        f"{found.tokens_per_s / cell.n_gpus:,.0f} a GPU, {spread}",
        f"error of {found.error.count} such predictions for a GPU left out: median {found.error.median:.1%}, "
        f"p90 {found.error.p90:.1%}",
    ]
    if cell.phase != "train_step":
        lines.append(f"replicas of {found.tensor_parallel} GPUs, {found.batch:,.0f} sequences each at once")
        if cell.phase == "serve" and found.batch < LEAST_SEQUENCES:
            lines.append(f"the weights leave room for {found.batch:,.0f} sequences: try n_gpus={2 * cell.n_gpus}")
    if found.unseen_generation:
        lines.append("nobody published a rate of this generation: errors are those of whole generations left out")
    return "\n".join(lines)
