"""Every prior behind the claims, its source and whether it rests on judgement; how many do behind each verdict."""

from __future__ import annotations

from bench.claim.priors import Prior
from bench.claim.spec import Claim
from bench.report.material import Material, Rows
from bench.report.numbers import BLANK, bare
from bench.report.page import Row, Section, Table, text
from bench.report.words import definition, phrase, prose


def uncertain(claim: Claim) -> dict[str, Prior]:
    """What is drawn: parameters that are not one number."""
    return {name: prior for name, prior in claim.parameters.items() if prior.distribution != "fixed"}


def prior_rows(material: Material) -> tuple[Row, ...]:
    """A row a prior; the same prior of two claims once."""
    claims: dict[tuple[str, Prior], list[str]] = {}
    for key, claim in material.files.items():
        for name, prior in uncertain(claim).items():
            claims.setdefault((name, prior), []).append(key)
    return tuple(
        Row(
            (
                phrase(name),
                f"{bare(prior.numbers[0], prior.unit)} to {bare(prior.numbers[-1], prior.unit)}",
                bare(prior.numbers[1], prior.unit) if len(prior.numbers) == 3 else BLANK,
                prior.unit,
                "judgement" if prior.judgement else "",
                prior.source,
                ", ".join(phrase(key) for key in keys),
            )
        )
        for (name, prior), keys in claims.items()
    )


def verdict_rows(material: Material) -> tuple[Row, ...]:
    """A row a claim and definition whose verdicts are drawn: priors behind it, and those that are judgement."""
    found: dict[tuple[str, str | None], Rows] = {}
    for row in material.of_kind("verdict"):
        if row["priors"]:
            found.setdefault((row["claim"], row["definition"]), []).append(row)
    return tuple(
        Row((prose(claim), definition(key), span([r["priors"] for r in rows]), span([r["judged"] for r in rows])))
        for (claim, key), rows in found.items()
    )


def span(counts: list[int]) -> str:
    """12, or 12–13 where verdicts of one definition rest on different numbers (by kernel type: one more)."""
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low}–{high}"


def section(material: Material) -> Section:
    """The two tables."""
    rows = prior_rows(material)
    judged = sum(row.cells[4] == "judgement" for row in rows)
    pairs = [pair for claim in material.files.values() for pair in claim.correlation]
    said = f"{judged} of {len(rows)} priors, and {sum(pair.judgement for pair in pairs)} of {len(pairs)} correlations"
    columns = (">p10 to p90, or ends", ">median or peak", "unit", "flag", "source", "claims")
    return Section(
        id="priors",
        title="Priors",
        text=(text(f"{said}, rest on judgement in some of their numbers; each source says in which."),),
        tables=(
            Table(
                "Judgement behind the verdicts",
                ("claim", "definition", ">priors", ">of them judgement"),
                verdict_rows(material),
                empty="No verdict was drawn.",
            ),
            Table("Every prior", ("prior", *columns), rows, empty="No prior is drawn."),
        ),
    )
