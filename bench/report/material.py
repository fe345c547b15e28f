"""What the report is made from: the rows it was given and the configs they point at.

Only here are configs/evidence.csv and configs/published.csv read; everything after this takes a `Material`.
"""

from __future__ import annotations

import csv
import datetime
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.claim import spec
from bench.claim.spec import Claim
from bench.config import CONFIGS, Gpu
from bench.price.history import history
from bench.price.known import known
from bench.report.page import Inline, Link, slug
from bench.report.utilisation import gpus

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Material:
    """Rows in results.py's schemas, the sources behind them by id, and the date the report is true on."""

    cells: Rows
    costs: Rows
    claims: Rows
    throughput: Rows
    environments: Mapping[str, Mapping[str, Any]]  # run -> environment.json
    evidence: Mapping[str, Mapping[str, str]]
    published: Mapping[str, Mapping[str, Any]]  # other people's rates by id: published ones, imports a claim cites
    warnings: tuple[str, ...]
    files: Mapping[str, Claim]  # configs/claims by key
    gpus: Mapping[str, Gpu]
    as_of: datetime.date
    kernels: Rows  # results/kernels/<run>/kernels.csv, all runs
    compiled: Mapping[str, Rows]  # aot_<arch>_<triton> -> its rows
    points: Rows  # load points of serving, as bench/price/serving_points.py reads them
    classes: Rows  # what each class of a mix saw of them
    serving: Rows  # what they cost: rows of serving.csv
    client_load: Rows  # results/client_load.csv
    money_speed: Rows  # results/money_speed.csv
    history: Rows  # configs/price_history.csv
    imports: Rows  # rates that `bench import` landed, all of them
    imported_kernels: Rows  # and timings of kernels
    accuracy: Rows  # results/accuracy.csv
    efficiencies: Mapping[str, float]  # of the modelled rates, by name
    break_even_api: Rows  # rows of break_even_api.csv
    day_costs: Rows  # and of day_costs.csv
    backtest: Rows  # rows of backtest.csv

    def of_kind(self, kind: str) -> Rows:
        """Findings of one kind (verdict, share, break_even ...), in the order they were given."""
        return [row for row in self.claims if row["kind"] == kind]


def gather(
    cells: Rows, costs: Rows, claims: Rows, throughput: Rows, provenance: Mapping[str, Any], as_of: datetime.date
) -> Material:
    """The rows with their sources. `provenance` may hold what `report` in build.py says. Later figures are left out."""
    evidence = by_id(provenance.get("evidence", CONFIGS / "evidence.csv"))
    published = by_id(provenance.get("published", CONFIGS / "published.csv"))
    imports = provenance.get("imports", [])
    cited = {name.strip() for row in claims for name in (row["rests_on"] or "").split(";")}
    published |= by_id([row for row in imports if row["id"] in cited])
    return Material(
        cells=cells,
        costs=costs,
        claims=claims,
        throughput=throughput,
        environments=provenance.get("environments", {}),
        evidence={key: row for key, row in evidence.items() if known(row.get("published"), as_of)},
        published={key: row for key, row in published.items() if known(row.get("as_of"), as_of)},
        warnings=tuple(provenance.get("warnings", ())),
        files=spec.claims(provenance.get("own_claims", ())),
        gpus=gpus(),
        as_of=as_of,
        kernels=provenance.get("kernels", []),
        compiled=provenance.get("compiled", {}),
        points=provenance.get("points", []),
        classes=provenance.get("classes", []),
        serving=provenance.get("serving", []),
        client_load=provenance.get("client_load", []),
        money_speed=provenance.get("money_speed", []),
        history=provenance.get("history") or history(as_of),
        imports=imports,
        imported_kernels=provenance.get("imported_kernels", []),
        accuracy=provenance.get("accuracy", []),
        efficiencies=provenance.get("efficiencies", {}),
        break_even_api=provenance.get("break_even_api", []),
        day_costs=provenance.get("day_costs", []),
        backtest=provenance.get("backtest", []),
    )


def by_id(table: Path | Rows) -> dict[str, Mapping[str, Any]]:
    """Rows of a CSV (or given rows) by their id; an absent file has none."""
    if isinstance(table, Path):
        if not table.is_file():
            return {}
        with open(table, newline="", encoding="utf-8") as file:
            return {row["id"]: row for row in csv.DictReader(file)}
    return {str(row["id"]): row for row in table}


def claim_id(row: Mapping[str, Any]) -> str:
    """The anchor of a finding: claim (by initials), kind, definition, subject, year, so it outlives a rebuild.

    Findings about single pairs of rates may share all that; a digest of the rows they rest on tells them apart.
    """
    claim = "".join(word[0] for word in row["claim"].split("_"))
    pair = row["kind"] in ("break_even", "finding") and row["rests_on"]
    rows = hashlib.sha256(row["rests_on"].encode()).hexdigest()[:6] if pair else None
    return slug(claim, row["kind"], row["definition"], row["subject"], row["year"], rows)


def row_id(name: str | None) -> str:
    """The anchor of a throughput row, measured (<run>/<cell>), published (published:<id>) or imported (import:...)."""
    return slug("r", (name or "").removeprefix("published:"))


def history_id(name: str) -> str:
    """The anchor of a price over time: <provider>/<gpu>/<term>."""
    return slug("h", name)


def evidence_id(name: str) -> str:
    """The anchor of a public figure: its own id."""
    return name


def address(source: str | None) -> Inline:
    """A source as a link where it is an address or names a file on GitHub; the words themselves otherwise."""
    shown = (source or "").strip()
    first = shown.split(" ")[0].rstrip(";,")
    if first.startswith(("https://", "http://")):
        return Link(_short(first), first)
    owner, _, path = first.removeprefix("github:").partition(":")
    repo, _, commit = owner.partition("@")
    if repo.count("/") == 1 and (path or first.startswith("github:")):
        tail = f"/blob/{commit or 'HEAD'}/{path}" if path else ""
        return Link(repo, f"https://github.com/{repo}{tail}")
    return shown or "–"


def _short(href: str) -> str:
    """An address as people say it: the repository on GitHub, the host elsewhere."""
    host, *path = href.partition("://")[2].split("/")
    if host == "github.com" and len(path) > 1:
        return "/".join(path[:2])
    return host.removeprefix("www.")
