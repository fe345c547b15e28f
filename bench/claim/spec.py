"""A claim as a file: configs/claims/<key>.toml, read strictly into one frozen dataclass.

A claim says what is asserted (statements), by which accounting (definitions), over which years,
with which uncertain inputs (parameters: a prior, a unit and a source each) and how a probability
becomes a verdict (decision). Five kinds share the format: `share` (serving / (serving + X) a year), `table` (rows
somebody printed), `price` (two prices per GPU-hour, at one level), `history` (did a price fall) and `blend` (two
portfolios of configs/portfolios; `assumptions` names the parameter behind each of blend.ASSUMPTIONS).

Nothing here computes. A name that leads nowhere, a prior out of order or an evidence id nobody can
look up is one line naming file, key and expectation. Another claim is another TOML, nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from bench.claim import evidence as evidence_table
from bench.claim.definitions import Definition, require_name
from bench.claim.priors import Correlation, Prior
from bench.claim.sections import (
    Blend,
    Cached,
    Check,
    Comparison,
    Decision,
    Delivery,
    Headline,
    Period,
    Printed,
    Side,
    Statement,
    WorkloadClass,
)
from bench.config import require
from bench.price.blend import ASSUMPTIONS

KINDS = {  # kind -> the sections it must have
    "share": ("statement", "definitions", "headline"),
    "table": ("printed", "share_claim", "organisation"),
    "price": ("side", "comparison"),
    "history": ("period",),
    "blend": ("blend", "assumptions"),
}


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
    workload_class: tuple[WorkloadClass, ...] = ()
    cached: tuple[Cached, ...] = ()
    share_claim: str | None = None  # table: the share claim its words are held against
    organisation: str | None = None  # table: whose figures the dollars are looked for in
    printed: tuple[Printed, ...] = ()
    side: tuple[Side, ...] = ()
    comparison: tuple[Comparison, ...] = ()
    delivery: tuple[Delivery, ...] = ()
    period: tuple[Period, ...] = ()
    blend: tuple[Blend, ...] = ()
    assumptions: dict[str, str] = field(default_factory=dict)  # blend: assumption -> parameter

    def __post_init__(self) -> None:
        require_name(self.kind, KINDS, "kind", "kind")
        for section in KINDS[self.kind]:
            require(bool(getattr(self, section)), section, f"present in a claim of kind {self.kind}")
        require(self.draws >= 1000, "draws", f"at least 1000, got {self.draws}")
        require(self.seed >= 0, "seed", f"0 or more, got {self.seed}")
        evidence_table.require_known(self.evidence)
        self._check_assumptions()
        self._check_parameters()
        self._check_shares()
        self._check_prices()

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
        for pair in self.correlation:
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
        return read + [(f"assumptions.{role}", name) for role, name in self.assumptions.items()]

    def _check_shares(self) -> None:
        items: tuple[Statement | Printed, ...] = (*self.statement, *self.printed)
        for item in items:
            section = "statement" if isinstance(item, Statement) else "printed"
            if item.test not in ("rises", ""):
                require_name(item.threshold, self.decision.thresholds, section, "threshold")
            if self.definitions:
                before = item.year - 1 if item.test == "rises" else item.year
                inside = {item.year, before} <= set(self.years)
                require(inside, f"{section}.year", f"a year of the claim, got {item.year}")
        for statement in self.statement:
            for name in statement.definitions:
                require_name(name, self.definitions, "statement.definitions", "definition")
        for check in self.check:
            require_name(check.definition, self.definitions, "check.definition", "definition")
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
