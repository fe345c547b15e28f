"""The verbs right of the wall: predict, price, claim, report, prices refresh; bench/__main__.py hangs them in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

OUT = Path(__file__).resolve().parent.parent / "results"
Out = Annotated[Path, typer.Option("--out", help="Results folder: facts under runs/, derived files beside them.")]
Configs = Annotated[Path | None, typer.Option("--configs", help="Another configs folder than the project's own.")]
Runs = Annotated[
    list[Path] | None, typer.Option("--run", help="A run folder to use; again for more. Default: all under --out/runs.")
]
AsOf = Annotated[str | None, typer.Option(help="The day to speak of: only what was known then. Default: today.")]
Prices = Annotated[
    list[Path] | None,
    typer.Option("--prices", help="Your own provider's TOML, priced beside ours; again for more."),
]
Claims = Annotated[list[Path] | None, typer.Option("--claims", help="Your own claim's TOML; again for more.")]
Tracked = Annotated[bool, typer.Option("--tracked", help="Committed runs only, as of results/as_of: the public files.")]


def predict(
    cell: Annotated[
        list[str] | None,
        typer.Argument(help="gpu=... model=... phase=... precision=... n_gpus=1 and more; none: the errors."),
    ] = None,
    out: Out = OUT,
    runs: Runs = None,
    tracked: Tracked = False,
    configs: Configs = None,
) -> None:
    """The modelled rate of a cell nobody measured, beside the error of such rates for a GPU left out of the fit."""
    from bench import derive, options

    options.use_configs(configs)
    print(derive.predict(derive.Derivation.of(out, runs, tracked), cell or []))


def price(
    out: Out = OUT,
    runs: Runs = None,
    tracked: Tracked = False,
    as_of: AsOf = None,
    prices: Prices = None,
    configs: Configs = None,
) -> None:
    """Price every throughput row at every provider: costs.csv."""
    from bench import derive, options

    options.use_configs(configs)
    print(derive.price(derive.Derivation.of(out, runs, tracked, options.day(as_of), prices)))


def claim(
    out: Out = OUT,
    runs: Runs = None,
    tracked: Tracked = False,
    as_of: AsOf = None,
    claims: Claims = None,
    configs: Configs = None,
    backtest: Annotated[
        bool, typer.Option("--backtest", help="Also as of earlier days, forecasts scored: backtest.csv.")
    ] = False,
) -> None:
    """Test the claims: claims.csv, and the verdict on standard output."""
    from bench import derive, options

    options.use_configs(configs)
    print(derive.claim(derive.Derivation.of(out, runs, tracked, options.day(as_of), claims=claims), backtest))


def report(
    out: Out = OUT,
    runs: Runs = None,
    tracked: Tracked = False,
    check: Annotated[bool, typer.Option("--check", help="Rebuild the tracked files elsewhere and compare.")] = False,
    as_of: AsOf = None,
    prices: Prices = None,
    claims: Claims = None,
    configs: Configs = None,
) -> None:
    """Price, test the claims and write the report: costs.csv, claims.csv, report/."""
    from bench import derive, options

    options.use_configs(configs)
    if check:
        derive.check(out)
    else:
        derive.report(derive.Derivation.of(out, runs, tracked, options.day(as_of), prices, claims))


def refresh(
    provider: Annotated[
        list[str] | None, typer.Option(help="A key of `bench list providers`; again for more. Default: all there are.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the snapshots.")] = OUT / "local" / "prices",
    configs: Configs = None,
) -> None:
    """Fetch today's prices through gpuhunt (extra `prices`) into a dated snapshot, which price and report then use."""
    from bench import options
    from bench.price import refresh as prices

    options.use_configs(configs)
    print(prices.refresh(provider, out))
