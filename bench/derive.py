"""From facts to findings: throughput rows -> costs.csv, claims.csv, accuracy.csv -> report; load points -> serving.csv.

Two places hold derived files. `make bench` writes this machine's own to results/local (not tracked), from every
run folder, as of today. `make report` writes the public ones beside results/runs from the committed runs
alone, as of the date in results/as_of, so that the same commit always gives the same files; `check` proves it.
"""

from __future__ import annotations

import csv
import filecmp
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import results
from bench import runs as run_folders
from bench.derivation import Derivation as Derivation
from bench.kernel_results import read_kernels
from bench.money_results import MONEY_SPEED
from bench.price import imports, market
from bench.serving_results import CLIENT_LOAD

if TYPE_CHECKING:
    from bench.modelled.accuracy import Modelled

COMPARED = ("costs.csv", "serving.csv", "claims.csv", "accuracy.csv", "backtest.csv", *market.FILES, "report/report.md")
Row = dict[str, Any]


class DerivedDiffer(Exception):
    """The tracked derived files are not what the tracked facts and configs give. Exit code 1."""


@dataclass(frozen=True)
class Derived:
    """Everything derived, in memory."""

    cells: list[Row]
    throughput: list[Row]  # measured, imported, modelled
    costs: list[Row]
    claims: list[Row]
    modelled: Modelled
    warnings: list[str]


def throughput_of(job: Derivation, warnings: list[str]) -> list[Row]:
    """Measured and imported rates; what could not be used is said in `warnings`."""
    from bench.price.throughput import throughput

    if not job.runs:
        warnings.append("no run folder was found: nothing measured stands behind this, only imported rows")
    return throughput(job.runs, warnings, job.as_of, job.imports)


def book_of(job: Derivation) -> list[Any]:
    """Who sells, for this derivation: ours, the user's own, and what was refreshed on this machine.

    The public files rest on what is committed alone.
    """
    from bench.price.book import providers
    from bench.price.snapshot import refreshed

    book = providers(job.prices)
    return list((book if job.tracked else refreshed(book, job.target / "prices", job.as_of)).values())


def with_modelled(job: Derivation, known: list[Row], warnings: list[str]) -> tuple[list[Row], Modelled]:
    """Rates somebody measured, then modelled ones of cells nobody did; and the model."""
    from bench.modelled.accuracy import build
    from bench.modelled.points import newest
    from bench.modelled.rows import modelled

    model = build(known)
    if job.as_of < (day := newest()):
        warnings.append(f"no modelled rates: some of what they are fitted on came on {day} or bears no date")
        return known, model
    return known + modelled(known, book_of(job), model), model


def costs_of(job: Derivation, rows: list[Row], warnings: list[str]) -> list[Row]:
    """Every rate at every price."""
    from bench.price.book import staleness
    from bench.price.cost import costs

    book = book_of(job)
    stale = staleness(book, job.as_of)
    warnings += [stale] if stale else []
    return market.finished(costs(rows, job.as_of, book), rows, job.as_of)


def claims_of(job: Derivation, rows: list[Row], modelled: list[Row]) -> list[Row]:
    """Every finding, with what must be said of the rows it rests on."""
    from bench.claim.table import claims
    from bench.price.quoted import claims_quoted

    return claims_quoted(claims(rows, job.as_of, job.claims, modelled), rows)


def derive(job: Derivation) -> Derived:
    """All of it, written nowhere."""
    from bench.claim.evidence import hindsight

    warnings: list[str] = []
    cells = [row for run in job.runs for row in run_folders.read_cells(run)]
    known = throughput_of(job, warnings)
    rows, model = with_modelled(job, known, warnings)
    found = claims_of(job, known, rows[len(known) :])  # modelled rows enter no verdict (bench/modelled/rows.py)
    late = hindsight((key for row in found for key in (row["evidence"] or "").split(";") if key), job.as_of)
    priced = costs_of(job, rows, warnings)
    return Derived(cells, rows, priced, found, model, [*warnings, *([late] if late else [])])


def kernel_facts(tracked: bool) -> dict[str, Any]:
    """Rows of the runs in results/kernels (committed ones alone for the public files), and the compiler's tables."""
    folder = results.ROOT / "results" / "kernels"
    names = run_folders.tracked_runs(folder) if tracked and folder.is_dir() else None
    found = sorted(path.parent for path in folder.glob("*/kernels.csv"))
    rows = [row for run in found if names is None or run.name in names for row in read_kernels(run)]
    compiled = {}
    for path in sorted(folder.glob("aot_*.csv")):
        with open(path, newline="", encoding="utf-8") as file:
            compiled[path.stem] = list(csv.DictReader(file))
    return {"kernels": rows, "compiled": compiled}


def serving_facts(job: Derivation) -> dict[str, Any]:
    """Load points of the runs, what they cost, and how late the client was."""
    from bench.price.serving_cost import serving_costs
    from bench.price.serving_points import load_classes, load_points

    points = [point for run in job.runs for point in load_points(run)]
    classes = [row for run in job.runs for row in load_classes(run)]
    client, speed = (
        results.read_rows(path, schema) if (path := results.ROOT / "results" / name).is_file() else []
        for name, schema in (("client_load.csv", CLIENT_LOAD), ("money_speed.csv", MONEY_SPEED))
    )
    return {
        "points": points,
        "classes": classes,
        "serving": serving_costs(job.runs, job.as_of, book_of(job)),
        "client_load": client,
        "money_speed": speed,
    }


def write_serving(job: Derivation, made: list[Row]) -> Path:
    """Write serving.csv."""
    from bench.price.serving_cost import COLUMNS

    path = job.target / "serving.csv"
    results.write(path, COLUMNS, made)
    return path


def write_accuracy(job: Derivation, model: Modelled) -> Path:
    """Write accuracy.csv."""
    from bench.modelled.accuracy import rows_of
    from bench.modelled_results import ACCURACY

    path = job.target / "accuracy.csv"
    results.write(path, ACCURACY, rows_of(model))
    return path


def price(job: Derivation) -> str:
    """Write costs.csv, serving.csv and accuracy.csv; one line about each."""
    from bench.modelled.show import brief
    from bench.price.serving_cost import serving_costs

    warnings: list[str] = []
    known = throughput_of(job, warnings)
    rows, model = with_modelled(job, known, warnings)
    made, more = costs_of(job, rows, warnings), market.market(known, job.as_of, book_of(job))
    path = job.target / "costs.csv"
    results.write(path, results.COSTS, made)
    served = serving_costs(job.runs, job.as_of, book_of(job))
    lines = [f"{path}: {len(made)} rows", f"{write_serving(job, served)}: {len(served)} rows"]
    lines += [f"{path}: {len(more[path.stem])} rows" for path in market.write(job.target, more)]
    lines.append(f"{write_accuracy(job, model)}: {brief(model, len(rows) - len(known))}")
    return "\n".join([*(f"warning: {line}" for line in warnings), *lines])


def predict(job: Derivation, asked: list[str]) -> str:
    """A modelled rate with its error, or the errors on GPUs left out. Raises ConfigError."""
    from bench.modelled.accuracy import build
    from bench.modelled.show import cell_of, errors, prediction

    cell = cell_of(asked) if asked else None
    model = build(throughput_of(job, []))
    return prediction(model, cell) if cell else "\n".join(errors(model))


def claim(job: Derivation, backtest: bool = False) -> str:
    """Write claims.csv, and backtest.csv where asked; the verdict in one sentence."""
    from bench.claim.table import own_lines, verdict_line
    from bench.price.quoted import quotes

    known = throughput_of(job, [])
    rows, _ = with_modelled(job, known, [])
    found = claims_of(job, known, rows[len(known) :])
    path = job.target / "claims.csv"
    results.write(path, results.CLAIMS, found)
    said = [verdict_line(found), *own_lines(found, job.claims), quotes(row["quotes"] for row in found)]
    lines = [*filter(None, said), f"{path}: {len(found)} rows"]
    if backtest:
        from bench.claim.backtest.answer import told

        rows = write_backtest(job, found)
        lines += [told(rows), f"{job.target / 'backtest.csv'}: {len(rows)} rows"]
    return "\n".join(lines)


def write_backtest(job: Derivation, found: list[Row]) -> list[Row]:
    """Write backtest.csv: the claim as of earlier days; `found`: the claims' answers of today."""
    from bench.claim.backtest.answer import backtest

    rows = backtest(found, job.as_of)
    results.write(job.target / "backtest.csv", results.BACKTEST, rows)
    return rows


def report(job: Derivation, scratch: bool = False) -> None:
    """Write the CSVs and report/; show the verdict. Without altair: the CSVs, and one line why.

    `scratch`: only to compare: the README stays as it is and nothing is shown.
    """
    from bench.modelled.accuracy import rows_of
    from bench.modelled.show import brief
    from bench.report import readme
    from bench.report.build import report as write_report
    from bench.report.drawing import ReportUnavailable
    from bench.report.terminal import show

    environments = {run.name: run_folders.read_environment(run) for run in job.runs}
    made = derive(job)
    paths = [job.target / "costs.csv", job.target / "claims.csv", write_accuracy(job, made.modelled)]
    results.write(paths[0], results.COSTS, made.costs)
    results.write(paths[1], results.CLAIMS, made.claims)
    said = brief(made.modelled, sum(row["basis"] == "modelled" for row in made.throughput))
    served = serving_facts(job)
    write_serving(job, served["serving"])
    somebodys = [row for row in made.throughput if row["basis"] != "modelled"]
    more = market.market(somebodys, job.as_of, book_of(job))
    market.write(job.target, more)
    more["backtest"] = write_backtest(job, made.claims)
    if job.tracked and not scratch:
        (job.target / "as_of").write_text(f"{job.as_of}\n")
        readme.update(results.ROOT / "README.md", made.claims)
    provenance: dict[str, Any] = {"environments": environments, "warnings": made.warnings, "own_claims": job.claims}
    provenance |= kernel_facts(job.tracked) | served | imports.facts(job.imports) | more
    provenance |= {"accuracy": rows_of(made.modelled), "efficiencies": made.modelled.efficiencies.values}
    try:
        paths += write_report(
            job.target / "report", made.cells, made.costs, made.claims, made.throughput, provenance, job.as_of
        )[:2]
    except ReportUnavailable as error:
        if not scratch:
            show(made.claims, made.costs, paths, job.claims)
            print(said)
            print(f"no report here: {error}")
        return
    if not scratch:
        show(made.claims, made.costs, paths, job.claims)
        print(said)


def check(out: Path) -> None:
    """Rebuild the public files in a scratch folder. Raises DerivedDiffer naming each file that is not the same."""
    job = Derivation.of(out, None, tracked=True)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        report(replace(job, target=scratch), scratch=True)
        different = [name for name in COMPARED if not same(out / name, scratch / name)]
        unopened = [
            str(path.relative_to(scratch)) for path in scratch.rglob("*") if path.is_file() and not path.stat().st_size
        ]
    if different or unopened:
        what = ", ".join([*(f"{out / name} differs" for name in different), *(f"{name} is empty" for name in unopened)])
        raise DerivedDiffer(f"{what}; `make report` rebuilds them from the tracked runs")
    print(f"{', '.join(str(out / name) for name in COMPARED)}: as the tracked runs and configs give them")


def same(left: Path, right: Path) -> bool:
    """Whether both files are there with the same bytes."""
    return left.is_file() and right.is_file() and filecmp.cmp(left, right, shallow=False)
