"""A claim as a file: configs/claims/<key>.toml, read strictly into one frozen dataclass.

A claim says what is asserted (statements), by which accounting (definitions), over which years,
with which uncertain inputs (parameters: a prior, a unit and a source each) and how a probability
becomes a verdict (decision). Seven kinds share the format: `share` (serving / (serving + X) a year), `table` (rows
somebody printed), `price` (two prices per GPU-hour, at one level), `history` (did a price fall), `blend` (two
portfolios of configs/portfolios; `assumptions` names the parameter behind each of blend.ASSUMPTIONS), `growth` (does
one thing grow faster than another) and `routes` (one spending, told twice). docs/claims.md has them key by key.

Nothing here computes. A name that leads nowhere, a prior out of order or an evidence id nobody can
look up is one line naming file, key and expectation. Another claim is another TOML, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from bench import config
from bench.claim import evidence as evidence_table
from bench.claim.coverage import require_covered
from bench.claim.definitions import Definition, require_name
from bench.claim.domains import require_domains
from bench.claim.priors import Correlation, Prior
from bench.claim.route_sections import Compared, Served, require_independent
from bench.claim.sections import (
    Blend,
    Cached,
    Check,
    Comparison,
    Decision,
    Delivery,
    Growth,
    Headline,
    Period,
    Printed,
    Side,
    Statement,
    Unanswered,
    WorkloadClass,
)
from bench.config import ConfigError, require
from bench.price.blend import ASSUMPTIONS

KINDS = {  # kind -> the sections it must have
    "share": ("statement", "definitions", "headline"),
    "table": ("printed", "share_claim", "organisation"),
    "price": ("side", "comparison"),
    "history": ("period",),
    "blend": ("blend", "assumptions"),
    "growth": ("growth", "years"),
    "routes": ("compared", "served", "share_claim"),
}
MOST = 10_000_000  # draws: 80 MB a parameter


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One falsifiable claim."""

    FOLDER: ClassVar[str] = "claims"
    key: str = ""
    kind: str
    question: str
    source: str
    evidence: tuple[str, ...] = ()
    years: tuple[int, ...] = ()
    draws: int = 100_000
    seed: int
    decision: Decision
    parameters: dict[str, Prior]
    correlation: tuple[Correlation, ...] = ()
    statement: tuple[Statement, ...] = ()
    definitions: dict[str, Definition] = field(default_factory=dict)
    headline: Headline | None = None
    check: tuple[Check, ...] = ()
    unanswered: tuple[Unanswered, ...] = ()
    workload_class: tuple[WorkloadClass, ...] = ()
    cached: tuple[Cached, ...] = ()
    share_claim: str | None = None  # table: whose draws its words are held against; routes: whose rates it reads
    organisation: str | None = None  # table: whose figures the dollars are looked for in
    printed: tuple[Printed, ...] = ()
    side: tuple[Side, ...] = ()
    comparison: tuple[Comparison, ...] = ()
    delivery: tuple[Delivery, ...] = ()
    period: tuple[Period, ...] = ()
    blend: tuple[Blend, ...] = ()
    assumptions: dict[str, str] = field(default_factory=dict)  # blend: assumption -> parameter
    growth: tuple[Growth, ...] = ()
    served: Served | None = None
    compared: tuple[Compared, ...] = ()

    def __post_init__(self) -> None:
        require_name(self.kind, KINDS, "kind", "kind")
        for section in KINDS[self.kind]:
            require(bool(getattr(self, section)), section, f"present in a claim of kind {self.kind}")
        require(1000 <= self.draws <= MOST, "draws", f"1000 to {MOST}, got {self.draws}")
        require(list(self.years) == sorted(set(self.years)), "years", f"in order, each once, got {list(self.years)}")
        require(self.seed >= 0, "seed", f"0 or more, got {self.seed}")
        evidence_table.require_known(self.evidence)
        self._check_assumptions()
        self._check_parameters()
        self._check_shares()
        self._check_prices()
        require_covered(self.definitions, self.unanswered, self.years)
        require_independent(self.compared, self.parameters, self.correlation)
        require_domains(self)

    def _check_assumptions(self) -> None:
        """Each assumption of a blend names a parameter; nothing else is assumed."""
        for name in self.assumptions:
            require_name(name, ASSUMPTIONS, "assumptions", "portfolio assumption")
        missing = [name for name in ASSUMPTIONS if self.blend and name not in self.assumptions]
        require(not missing, "assumptions", f"a parameter for each of {', '.join(ASSUMPTIONS)}; no {missing}")

    def _check_parameters(self) -> None:
        """Every name that is read exists; every parameter is read by something."""
        read = list(self._reads())
        for key, name in read:
            require_name(name, self.parameters, key, "parameter")
        unread = sorted(set(self.parameters) - {name for _, name in read})
        require(not unread, "parameters", f"each to be read somewhere; nothing reads {unread}")
        pairs = [frozenset((pair.a, pair.b)) for pair in self.correlation]
        twice = len(set(pairs)) < len(pairs) or any(len(pair) < 2 for pair in pairs)
        require(not twice, "correlation", "two parameters, and each pair once")
        for pair in self.correlation:
            require(
                pair.low is None or bool(self.growth), "correlation", "low and high in a claim of kind growth alone"
            )
            for name in (pair.a, pair.b):
                require_name(name, self.parameters, "correlation", "parameter")

    def _reads(self) -> list[tuple[str, str]]:
        """(key in the file, parameter) for everything that reads a parameter."""
        read = [
            (f"definitions.{key}", name)
            for key, definition in self.definitions.items()
            for name in (*definition.parameters, definition.inference_work)
            if name
        ]
        for mix in self.workload_class:
            read += [("workload_class", n) for n in (mix.input_output_ratio, mix.cache_hit_share)]
        read += [("printed.compute_usd", row.compute_usd) for row in self.printed if row.compute_usd]
        for side in self.side:
            read += [(f"side.{side.name}", name) for name in (*side.multiply, *side.divide)]
        read += [("comparison.moved", comparison.moved) for comparison in self.comparison]
        for item in self.delivery:
            read += [(f"delivery.{item.name}", n) for n in (item.planned, item.delivered)]
            read += [(f"delivery.{item.name}", n) for n in (item.other, item.share)]
        for growth in self.growth:
            names = [*growth.parameters, *growth.beside.values()]
            read += [(f"growth.{growth.name}", name) for name in names]
        for route in self.compared:
            names = [*route.top_down, *route.bottom_up, route.other]
            read += [(f"compared.{route.organisation}.{route.year}", name) for name in names]
        return read + [(f"assumptions.{role}", name) for role, name in self.assumptions.items()]

    def _check_shares(self) -> None:
        items: tuple[Statement | Printed, ...] = (*self.statement, *self.printed)
        for item in items:
            section = "statement" if isinstance(item, Statement) else "printed"
            if item.test not in ("rises", ""):
                require_name(item.threshold, self.decision.thresholds, section, "threshold")
                limit = self.decision.thresholds[item.threshold]
                require(0 < limit < 1, f"decision.thresholds.{item.threshold}", f"a part of one, got {limit:g}")
            if self.definitions:
                before = item.year - 1 if item.test == "rises" else item.year
                inside = {item.year, before} <= set(self.years)
                require(inside, f"{section}.year", f"a year of the claim, got {item.year}")
        if any(row.usd is not None for row in self.printed):
            within = self.decision.thresholds.get("tolerance", 0.0)
            require(within > 0, "decision.thresholds.tolerance", "above 0, wherever dollars are printed")
        for statement in self.statement:
            for name in statement.definitions:
                require_name(name, self.definitions, "statement.definitions", "definition")
        names = [statement.name for statement in self.statement]
        require(len(set(names)) == len(names), "statement.name", f"each once, got {names}")
        for check in self.check:
            require_name(check.definition, self.definitions, "check.definition", "definition")
            require(check.year in self.years, "check.year", f"a year of the claim, got {check.year}")
        if self.definitions:
            limits = [*self.decision.thresholds.values(), *self.decision.also_thresholds]
            wrong = [limit for limit in limits if not 0 < limit < 1]
            require(not wrong, "decision.thresholds", f"parts of one, such as 0.5, got {wrong}")
        if self.headline:
            statements = [statement.name for statement in self.statement]
            require_name(self.headline.statement, statements, "headline.statement", "statement")
            require_name(self.headline.definition, self.definitions, "headline", "definition")

    def _check_prices(self) -> None:
        sides = {side.name: side.level for side in self.side}
        units = {side.name: side.unit for side in self.side}
        for comparison in self.comparison:
            for name in (comparison.left, comparison.right):
                require_name(name, sides, f"comparison.{comparison.name}", "side")
            levels = {sides[name] for name in (comparison.left, comparison.right)}
            one = f"prices of one level, never {' against '.join(sorted(levels))}"
            require(len(levels) == 1, f"comparison.{comparison.name}", one)
            alike = units[comparison.left] == units[comparison.right]
            require(alike, f"comparison.{comparison.name}", "sides of one unit")


def claims(own: Iterable[Path] = ()) -> dict[str, Claim]:
    """Every claim by key: the listing of configs/claims, then the user's `own` files. Raises ConfigError."""
    found = config.load_all(Claim)
    for path in own:
        if path.stem in found:
            raise ConfigError(f"{path}: {path.stem} is a claim already; rename the file: its stem is the key")
        found[path.stem] = config.read(Claim, path)
    return found
