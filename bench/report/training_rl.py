"""An RL step by part: its rollouts and its scoring are inference booked as training, so the claim's two views differ.

By purpose the whole step is training; by kernel type only its update is. The claim draws how much of all R&D compute is
such inference (`inference_work_share_of_rd`); what is measured here is the share within one step, which bounds nothing
by itself: what part of R&D is spent in such steps nobody publishes.
"""

from __future__ import annotations

from bench.report.material import Material
from bench.report.numbers import percent, scaled
from bench.report.page import Inline, Row, Table, Text, listed, text
from bench.report.training_cells import Cell, Cells, depth, linked, standing, what, where

PRIOR = "inference_work_share_of_rd"  # the claim's parameter that the split of a step speaks to


def rl_cells(timed: Cells) -> Cells:
    """RL steps whose parts were timed."""
    return standing(c for c in timed if c["phase"] == "rl_step" and c["rollout_s_median"] and c["scoring_s_median"])


def inference_share(cell: Cell) -> float:
    """Rollout and scoring as a share of an RL step's time; medians of the same samples."""
    return float((cell["rollout_s_median"] + cell["scoring_s_median"]) / cell["step_s_median"])


def rl_table(cells: Cells) -> Table:
    """An RL step's time by part: what is inference work booked as training."""
    rows = [
        Row(
            (
                linked(cell),
                str(cell["backend"]),
                depth(cell),
                where(cell),
                scaled(cell["step_s_median"], "s"),
                percent(cell["rollout_s_median"] / cell["step_s_median"]),
                percent(cell["rollout_idle_share"]),
                percent(cell["scoring_s_median"] / cell["step_s_median"]),
                percent(max(0.0, 1 - inference_share(cell))),
                percent(inference_share(cell)),
            )
        )
        for cell in cells
    ]
    columns = ("workload", "backend", "depth", "GPUs", ">step", ">rollout", ">idle places", ">scoring", ">update")
    return Table(
        "A reinforcement-learning step by part",
        (*columns, ">inference: rollout and scoring"),
        tuple(rows),
        note=(
            "Answers are generated as one static batch; idle places are those decoded after an answer's end. A serving"
            " engine fills them, so it would spend a smaller share on rollouts.",
        ),
    )


def booking(cells: Cells, material: Material) -> Text:
    """What an RL step's split says to the claim's two views, beside the prior it can only be a part of."""
    measured: list[Inline] = [
        f"{percent(inference_share(c))} of its time on {where(c)} ({what(c)}"
        + (", a tiny model that says nothing about GPUs)" if c["device"] == "cpu" else ")")
        for c in cells
    ]
    prior = next((file.parameters[PRIOR] for file in material.files.values() if PRIOR in file.parameters), None)
    drawn = (
        f" The claim draws the inference work inside R&D compute from {percent(prior.p10)} to {percent(prior.p90)},"
        f" median {percent(prior.p50)}: of all R&D, in which RL steps are one part, so the two shares are not the same"
        " quantity."
        if prior
        else ""
    )
    return text(
        "An RL step is training by purpose; by kernel type its rollouts and its scoring are inference: ",
        *(listed(measured) if measured else ("not measured yet",)),
        f".{drawn}",
    )
