"""`bench import`: its options, and what it tells. bench/__main__.py hangs it into the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

OUT = Path(__file__).resolve().parent.parent.parent / "results"


def import_(
    files: Annotated[list[Path], typer.Argument(help="Result files of other tools, each told apart by its content.")],
    format_: Annotated[str | None, typer.Option("--format", help="One of `bench list formats`; else sniffed.")] = None,
    gpu: Annotated[str | None, typer.Option(help="A key of `bench list gpus`, where the file names none.")] = None,
    num_gpus: Annotated[int | None, typer.Option(help="GPUs of the whole deployment.")] = None,
    model: Annotated[str | None, typer.Option(help="A key of `bench list models`.")] = None,
    precision: Annotated[str | None, typer.Option(help="Of its weights, such as fp8; without it in no claim.")] = None,
    input_tokens: Annotated[float | None, typer.Option(help="In, a request; of a sequence in training.")] = None,
    output_tokens: Annotated[float | None, typer.Option(help="Out, a request.")] = None,
    workload: Annotated[str | None, typer.Option(help="What ran, in one phrase.")] = None,
    software: Annotated[str | None, typer.Option(help="What served or trained, and its version.")] = None,
    as_of: Annotated[str | None, typer.Option(help="Date or round of the measurement.")] = None,
    source: Annotated[str | None, typer.Option(help="Address of the figures, or whose they are.")] = None,
    commit: Annotated[str | None, typer.Option(help="Commit of the source.")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the figures.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Results folder: what lands stands in its imports/.")] = OUT,
    configs: Annotated[Path | None, typer.Option("--configs", help="Another configs folder.")] = None,
) -> None:
    """Import somebody's results into --out/imports: priced, and held against the claim, beside our own."""
    from bench import options
    from bench.importers.landing import Given, land

    options.use_configs(configs)
    given = Given(
        gpu=gpu,
        num_gpus=num_gpus,
        model=model,
        precision=precision,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        workload=workload,
        software=software,
        as_of=as_of,
        source=source,
        commit=commit,
        licence=licence,
    )
    for path in files:
        landed = land(path, format_, given, out / "imports")
        read = len(landed.rows) + sum(landed.left_out.values())
        print(f"{landed.path}: {len(landed.rows)} of {read} results of {path.name} ({landed.format})")
        print(*(f"left out: {count} {why}\n" for why, count in sorted(landed.left_out.items())), sep="", end="")
        print(*(f"{remark}\n" for remark in landed.remarks), sep="", end="", file=sys.stderr)
