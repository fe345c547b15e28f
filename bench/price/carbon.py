"""Energy and carbon of a million tokens, beside their price: columns of costs.csv filled in from finished rows.

    kWh per million tokens   = W * 1e6 / (tokens/s * 3.6e6)
    gCO2e per million tokens = kWh * PUE * gCO2e per kWh of the grid

W is what the deployment draws while it works: its row's joules a token times its rate where somebody metered them
(measured here, or imported: of the GPU boards, or at the wall); else boards at their rated power (TDP) the whole time,
`modelled`: an upper bound of the boards alone. Host, network and time paid for while nothing runs are in neither.

The grid's factor is location-based: the mean of what the region's grid emitted in a year (configs/grids.csv), whatever
certificates its buyers hold. A region nobody publishes a factor for has none, and no carbon. What building the machines
emitted (embodied carbon) is left out.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bench import config, results
from bench.config import ConfigError, Gpu
from bench.price.known import first_day

Row = dict[str, Any]
JOULES_PER_KWH = 3.6e6
TOKENS = 1e6
COLUMNS: dict[str, tuple[str, str]] = {
    "provider": ("s", "provider key"),
    "region": ("s", "as in the provider's prices"),
    "g_co2e_per_kwh": ("f", "mean of the grid over the year, location-based"),
    "year": ("i", "the year it is of"),
    "published": ("s", "when it was known: YYYY, or a day"),
    "source": ("s", "full address of the factor"),
    "pue": ("f", "facility over IT energy, of the region or its owner"),
    "pue_source": ("s", "full address"),
    "note": ("s", "which grid, caveats"),
}


@dataclass(frozen=True)
class Grid:
    """One region's grid and building."""

    provider: str
    region: str
    g_co2e_per_kwh: float
    year: int
    published: str
    source: str
    pue: float


def listed() -> list[Grid]:
    """configs/grids.csv. Raises ConfigError or ResultsError, naming file and line."""
    path = config.CONFIGS / "grids.csv"
    rows = results.read_rows(path, COLUMNS) if path.is_file() else []
    sellers = {item.stem for item in (config.CONFIGS / "providers").glob("*.toml")}
    found, seen = [], set()
    for number, row in enumerate(rows, start=2):
        where = f"configs/grids.csv line {number}"
        for name in COLUMNS:
            if row[name] is None and name != "note":
                raise ConfigError(f"{where}: {name}: blank; every grid has one")
        if row["provider"] not in sellers:
            raise ConfigError(f"{where}: provider: expected a key of configs/providers, got {row['provider']!r}")
        if row["g_co2e_per_kwh"] <= 0:
            raise ConfigError(f"{where}: g_co2e_per_kwh: expected a positive factor, got {row['g_co2e_per_kwh']}")
        if row["pue"] < 1:
            raise ConfigError(f"{where}: pue: expected at least 1, got {row['pue']}")
        if first_day(row["published"]) is None:
            raise ConfigError(f"{where}: published: expected a year or a day, got {row['published']!r}")
        for name in ("source", "pue_source"):
            if not row[name].startswith("https://"):
                raise ConfigError(f"{where}: {name}: expected the full address of the figure")
        if (key := (row["provider"], row["region"], row["year"])) in seen:
            raise ConfigError(f"{where}: expected one factor a region and year; twice: {', '.join(map(str, key))}")
        seen.add(key)
        found.append(Grid(**{name: row[name] for name in Grid.__dataclass_fields__}))
    return found


def grids(as_of: datetime.date) -> dict[tuple[str, str], Grid]:
    """By provider and region the factor of the latest year known at `as_of`."""
    found: dict[tuple[str, str], Grid] = {}
    for grid in sorted(listed(), key=lambda one: one.year):
        day = first_day(grid.published)
        if day and day <= as_of:
            found[grid.provider, grid.region] = grid
    return found


def with_carbon(costs: Iterable[Row], rows: Iterable[Mapping[str, Any]], as_of: datetime.date) -> list[Row]:
    """Cost rows with energy and, where their region has a factor, carbon. `rows`: the throughput rows behind them."""
    behind = {row["row"]: row for row in rows}
    known, boards = grids(as_of), config.load_all(Gpu)
    return [cost | _of(cost, behind.get(cost["x_row"]), known, boards) for cost in costs]


def _of(
    cost: Row, row: Mapping[str, Any] | None, known: Mapping[tuple[str, str], Grid], boards: Mapping[str, Gpu]
) -> Row:
    basis, boundary, watts = power(row, boards) if row else (None, None, None)
    grid = known.get((cost["x_provider"], cost["RegionId"]))
    kwh = watts * TOKENS / (cost["x_system_tokens_per_s"] * JOULES_PER_KWH) if watts else None
    carbon = grid.g_co2e_per_kwh * grid.pue * kwh if grid and kwh else None
    return {
        "x_energy_basis": basis,
        "x_energy_boundary": boundary,
        "x_energy_kwh_per_million_tokens": kwh,
        "x_pue": grid.pue if grid and kwh else None,
        "x_grid_g_co2e_per_kwh": grid.g_co2e_per_kwh if grid and kwh else None,
        "x_grid_year": grid.year if grid and kwh else None,
        "x_grid_source": grid.source if grid and kwh else None,
        "x_g_co2e_per_million_tokens": carbon,
    }


def power(row: Mapping[str, Any], boards: Mapping[str, Gpu]) -> tuple[str | None, str | None, float | None]:
    """Basis, boundary and watts of a throughput row's deployment at work; blank on a CPU and a GPU without a key."""
    if joules := row.get("energy_joules_per_token"):
        return row["basis"], row["energy_boundary"], joules * row["system_tokens_per_s"]
    board = boards.get(row["gpu"] or "")
    if board is None:
        return None, None, None
    return "modelled", "gpu", board.tdp_w * row["n_gpus"]
