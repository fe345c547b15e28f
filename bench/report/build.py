"""Rows in, a folder of files out: index.html, report.md, and each chart as PNG and SVG.

`report` is all that `make report` calls. The page is assembled first (`sections`), checked for links that lead nowhere,
and only then written, each file whole. The Markdown is a pure function of the rows: same rows, same bytes.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.report import (
    api_prices,
    backtest,
    break_even,
    carbon,
    cost_by_provider,
    day,
    findings,
    first_screen,
    kernels,
    measured,
    modelled,
    owners,
    portfolios,
    price_history,
    priors,
    reproduce,
    roofline,
    routes,
    sensitivity,
    serving,
    share_by_year,
    sources,
    speed,
    training,
)
from bench.report.drawing import Drawn, draw, inline_svg, policy, require_drawing, script
from bench.report.material import Material, Rows, gather
from bench.report.page import Page, as_text, dangling
from bench.report.quoted import with_quotes

TITLE = "crossover: what a token costs to train and to serve"


def report(
    out: Path,
    cells: Rows,
    costs: Rows,
    claims: Rows,
    throughput: Rows,
    provenance: Mapping[str, Any],
    as_of: datetime.date,
) -> list[Path]:
    """Write the report into `out` and return the paths written, index.html first.

    Rows follow results.py (CELLS, COSTS, CLAIMS; throughput as bench.price.throughput gives it). `provenance` may hold
    `environments` (run -> environment.json), `warnings` (lines), and `evidence` and `published` (a path or rows; by
    default the tables in configs/), `kernels` (rows of kernel runs), `compiled` (tables of compiled kernels),
    `points` and `serving` (load points and what they cost), `imports` and `imported_kernels` (what others measured),
    `accuracy` and `efficiencies` (modelled rates), `break_even_api`, `day_costs`, `backtest` (rows of those CSVs).
    Raises ReportUnavailable where altair, vl-convert or jinja2 is missing.
    """
    require_drawing()
    page = assembled(gather(cells, costs, claims, throughput, provenance, as_of))
    if lost := dangling(page):
        raise ValueError(f"links to rows that are not on the page: {', '.join(lost)}")
    drawn = {figure.name: draw(figure) for section in page.sections for figure in section.figures}
    written = [write(out / "index.html", html(page, drawn)), write(out / "report.md", markdown(page))]
    for name, chart in drawn.items():
        written += [write(out / f"{name}.png", chart.png), write(out / f"{name}.svg", chart.svg)]
    return written


def assembled(material: Material) -> Page:
    """The page with what must be said of figures of MLPerf's."""
    return with_quotes(assemble(material), material)


def assemble(material: Material) -> Page:
    """The page: the verdict first, then what it stands on, then where every number came from."""
    evaluated, leads = f"Evaluated as of {material.as_of:%-d %B %Y}.", "Every number leads to the row behind it."
    return Page(
        title=TITLE,
        subtitle=" ".join(part for part in (evaluated, sources.dated(material), leads) if part),
        verdict=first_screen.sentence(material),
        sections=(
            first_screen.section(material),
            share_by_year.section(material),
            *(found for found in [routes.section(material)] if found),
            cost_by_provider.section(material),
            *(found for room in (api_prices, day, carbon) if (found := room.section(material))),
            owners.section(material),
            *(found for found in [portfolios.section(material)] if found),
            price_history.section(material),
            break_even.section(material),
            roofline.section(material),
            training.section(material),
            serving.section(material),
            kernels.section(material),
            sensitivity.section(material),
            priors.section(material),
            modelled.section(material),
            *(found for found in [backtest.section(material)] if found),
            measured.section(material),
            findings.section(material),
            sources.section(material),
            speed.section(material),
            reproduce.section(material),
        ),
    )


def html(page: Page, drawn: Mapping[str, Drawn]) -> str:
    """The page as one self-contained HTML file."""
    source = script()
    charts = {name: {"inline": inline_svg(chart), "data": chart.data} for name, chart in drawn.items()}
    return template("page.html.j2", autoescape=True).render(
        page=page, drawn=charts, script=source, policy=policy(source)
    )


def markdown(page: Page) -> str:
    """The page as Markdown; pictures are linked by name."""
    body = template("report.md.j2", autoescape=False).render(page=page)
    return re.sub(r"\n{3,}", "\n\n", body).strip() + "\n"


def template(name: str, autoescape: bool) -> Any:
    """A template of this folder, strict about missing names."""
    import jinja2

    room = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    room.filters["as_text"] = as_text
    room.filters["escaped"] = escaped
    return room.get_template(name)


def escaped(words: str) -> str:
    """Words as Markdown that shows them as they are, inside a table too."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", words.replace("\n", " "))


def write(path: Path, content: str | bytes) -> Path:
    """One file, whole: to a neighbour first, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(content.encode() if isinstance(content, str) else content)
    part.replace(path)
    return path
