"""The first screen: the verdict in one sentence, what it rests on, what would flip it, and a table of all verdicts.

Every number here is a link to the finding it is from. Where no GPU was measured it says so before anything else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bench.claim.spec import Claim
from bench.report.material import Material, Rows, claim_id
from bench.report.numbers import BLANK, bare, chance, interval_in
from bench.report.page import Inline, Link, Row, Section, Table, Text, listed, text
from bench.report.printed_table import printed_tables
from bench.report.sources import names
from bench.report.words import BLENDED, Files, definition, definition_text, parts, phrase, prose, statement

FLIPS = 3  # said of the headline; the rest stands under Sensitivity
# A number with what belongs to it; a plain year is a name, not a number somebody computed.
NUMBER = re.compile(r"(?<![\w.–])(?!20\d\d(?![\d.,]\d))[<>]?\$?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?(?:%|x|bn|tn|m)?(?!\w)")


def linked(words: str, rows: Rows) -> Text:
    """`words` with every number a link to the first of `rows` that prints it, else to the first row."""
    run: list[Inline] = []
    at = 0
    for found in NUMBER.finditer(words):
        run += [words[at : found.start()], Link(found[0], f"#{claim_id(source_of(found[0], rows))}")]
        at = found.end()
    return tuple(part for part in (*run, words[at:]) if part)


def source_of(shown: str, rows: Rows) -> dict[str, Any]:
    """The row a printed number is from."""
    plain = shown.strip("%")
    return next((row for row in rows if plain in printed(row)), rows[0])


def printed(row: Mapping[str, Any]) -> set[str]:
    """Every way a row's numbers are printed, without their percent signs."""
    shown = [bare(row[name], row["unit"]) for name in ("p10", "p50", "p90", "threshold")]
    return {one.strip("%") for one in (*shown, chance(row["probability"]), f"{row['year']}")}


def verdicts(claims: Rows, files: Files) -> Rows:
    """Verdicts of statements by purpose, the claims' headlines first."""
    rows = [r for r in claims if r["kind"] == "verdict" and parts(r["subject"])[1] != "by kernel type"]

    def rank(row: Mapping[str, Any]) -> tuple[Any, ...]:
        first = files[row["claim"]].headline if row["claim"] in files else None
        if first is None:
            return (1000, False, False)
        return (first.order, row["subject"] != first.statement, row["definition"] != first.definition)

    return sorted(rows, key=rank)  # stable: the rest stays in the order of claims.csv


def sentence(material: Material) -> Text:
    """The verdict in one sentence, its numbers linked."""
    rows = verdicts(material.claims, material.files)
    if not rows:
        return ("No claim was tested.",)
    lead = rows[0]
    words = sentence_case(statement(lead, material.files))
    return text(
        f"{words}: {lead['verdict']}, P ",
        Link(chance(lead["probability"]), f"#{claim_id(lead)}"),
        ", serving's share ",
        Link(bare(lead["p50"], lead["unit"]), f"#{claim_id(lead)}"),
        " (80% interval ",
        Link(interval_in(lead), f"#{claim_id(lead)}"),
        ").",
    )


def sentence_case(words: str) -> str:
    """Words with a capital first letter."""
    return words[:1].upper() + words[1:]


def reading(material: Material) -> tuple[Text, ...]:
    """By which definition the sentence is true, and what the others say."""
    rows = verdicts(material.claims, material.files)
    if not rows:
        return ()
    lead = rows[0]
    by: dict[str, list[Inline]] = {}
    for row in rows:
        if row is not lead and (row["claim"], row["subject"]) == (lead["claim"], lead["subject"]):
            by.setdefault(row["verdict"], []).append(Link(definition(row["definition"]), f"#{claim_id(row)}"))
    said: list[Inline] = []
    for word, found in by.items():
        said += ["; " if said else "", f"{word} by ", *listed(found)]
    means = definition_text(lead, material.files) or definition(lead["definition"])
    first = text("Here training means ", Link(definition(lead["definition"]), f"#{claim_id(lead)}"), f": {means}. ")
    return (text(*first, "Other definitions of training: ", *said, ".") if said else first,)


def standing(material: Material) -> Text:
    """What the verdicts rest on: which definitions use throughput and on what rows; and that no GPU was measured."""
    rows = verdicts(material.claims, material.files)
    lead = rows[0] if rows else None
    priced = {row["definition"] for row in material.of_kind("break_even")}
    by: dict[bool, dict[str, Inline]] = {True: {}, False: {}}
    for row in rows:
        if lead and row["claim"] == lead["claim"]:
            name = definition(row["definition"]) + (
                " (the headline)" if row["definition"] == lead["definition"] else ""
            )
            by[row["definition"] in priced].setdefault(name, Link(name, f"#{claim_id(row)}"))
    cited = sorted({name for row in rows for name in names(row["rests_on"])})
    bases = {row["x_row"]: row["x_basis"] for row in material.costs}
    bases |= {row["row"]: row["basis"] for row in material.throughput}
    count = {basis: sum(bases.get(name) == basis for name in cited) for basis in ("measured", "imported", "modelled")}
    figures = len({name for row in material.claims for name in names(row["evidence"])})
    uses, other = (listed([*by[used].values()]) for used in (True, False))
    throughput: Text = text(
        "Throughput enters only ",
        *uses,
        ", from ",
        Link(f"{count['measured']} measured", "#measured"),
        ", ",
        Link(f"{count['imported']} imported", "#imported"),
        " and ",
        Link(f"{count['modelled']} modelled", "#findings"),
        " throughput rows. ",
    )
    public = Link(f"{figures} public figures", "#evidence")
    alone = text(*other, " rest on public evidence alone (", public, " in all) and do not depend on throughput.")
    said = text(*(throughput if uses else ()), *(alone if other else ()))
    if any(cell["device"] == "cuda" and cell["status"] == "ok" for cell in material.cells):
        return text(said, hindsight(material))
    here = "only a CPU was measured here" if material.cells else "nothing was measured here"
    return text(f"No GPU was measured: every GPU row is imported, and {here}. ", said, hindsight(material))


def hindsight(material: Material) -> str:
    """That an old day's priors are those of today, where they are."""
    late = next((line for line in material.warnings if line.endswith("hindsight")), "")
    return f" The priors are those of today: {late}; the section on earlier days rebuilds them." if late else ""


def flips(material: Material) -> tuple[Text, ...]:
    """What would flip the headline verdict, one line each: the parameters that move it most."""
    rows = verdicts(material.claims, material.files)
    if not rows:
        return ()
    lead = rows[0]
    found = [
        row
        for row in material.of_kind("flip")
        if row["claim"] == lead["claim"]
        and row["definition"] == lead["definition"]
        and parts(row["subject"])[0] in (lead["subject"], row["subject"])
    ]
    found.sort(key=lambda row: -(row["total_order"] or 0))  # stable
    return tuple(
        text("What would flip it: ", *linked(prose(with_unit(row, material.files)), [row]), ".")
        for row in found[:FLIPS]
    )


def with_unit(row: Mapping[str, Any], files: Files) -> str:
    """A flip's note with the parameter's unit behind the value at which the verdict turns."""
    unit = unit_of(row, files)
    return re.sub(r"\b(?:above|below) [^\s,;]+", lambda found: f"{found[0]} {unit}".strip(), row["note"] or "", count=1)


def unit_of(row: Mapping[str, Any], files: Files) -> str:
    """The unit of the parameter a flip or a sensitivity is about, as the claim file states it."""
    claim, name = files.get(row["claim"]), parts(row["subject"])[1]
    if claim and name in claim.parameters:
        return claim.parameters[name].unit
    stated = row["unit"] or ""
    return "" if stated in ("ratio", "probability") else stated


def verdict_cells(row: dict[str, Any], files: Files) -> tuple[Any, ...]:
    """A verdict under one definition: what training means, verdict, P, the value's quantiles, basis."""
    to = f"#{claim_id(row)}"

    def number(shown: str) -> Inline:
        return Link(shown, to) if shown != BLANK else BLANK

    means = definition_text(row, files)
    ends = tuple(number(bare(row[name], row["unit"])) for name in ("p10", "p50", "p90"))
    return (
        f"{definition(row['definition'])}: {means}" if means else definition(row["definition"]),
        row["verdict"] or BLANK,
        number(chance(row["probability"])),
        *ends,
        row["basis"] or BLANK,
    )


def tables(material: Material) -> tuple[Table, ...]:
    """One table a statement of the leading claim, a row a definition."""
    rows = verdicts(material.claims, material.files)
    groups: dict[str, Rows] = {}
    for row in rows:
        if row["claim"] == rows[0]["claim"]:
            groups.setdefault(row["subject"], []).append(row)
    columns = ("training means", "verdict", ">P(claim)", ">share p10", ">median", ">p90", "basis")
    return tuple(
        Table(
            sentence_case(statement(group[0], material.files)),
            columns,
            tuple(Row(verdict_cells(row, material.files), tone=row["verdict"] or "") for row in group),
        )
        for group in groups.values()
    ) or (Table("Verdicts", columns, (), empty="No claim was tested."),)


def lead_definition(material: Material) -> str | None:
    """The definition of the first verdict shown."""
    return next((row["definition"] for row in verdicts(material.claims, material.files)), None)


def others(material: Material) -> tuple[Text, ...]:
    """The claims beside the leading one, a line each; a printed table has a table."""
    rows = verdicts(material.claims, material.files)
    lead = rows[0]["claim"] if rows else None
    printed = {row["claim"] for row in material.of_kind("printed")}
    keys = dict.fromkeys(row["claim"] for row in material.claims if row["claim"] not in {lead, *printed})
    return tuple(line for key in keys if (line := one_line(key, material)))


def one_line(key: str, material: Material) -> Text:
    """A claim's verdicts in one line, each with what limits it."""
    rows = [r for r in material.claims if r["claim"] == key and r["kind"] == "verdict"]
    if key in material.files and material.files[key].kind == "blend":
        return blended(material.files[key], rows)
    if key in material.files and material.files[key].kind == "growth":
        return grown(material.files[key], rows)
    said: list[Inline] = []
    for row in rows:
        to = f"#{claim_id(row)}"
        span = f"P {chance(row['probability'])}; {prose(row['unit'])} {interval_in(row)}"
        limits = "".join(f"; {limit}" for limit in caveats(row["note"]))
        said += ["; " if said else "", *linked(statement(row, material.files), [row]), " "]
        said += [Link(row["verdict"] or BLANK, to), " (", Link(span, to), f"{limits})"]
    question = material.files[key].question if key in material.files else phrase(key)
    return text(linked(question, rows), " ", *said, ".") if said else ()


def grown(claim: Claim, rows: Rows) -> Text:
    """Growths in one line: what is said to outgrow what, and the verdict of each year."""
    said: list[Inline] = []
    for item in claim.growth:
        said.append(f" {sentence_case(item.text)}:")
        for row in (row for row in rows if row["subject"] == item.name):
            said += [
                f" {row['year']} ",
                Link(row["verdict"], f"#{claim_id(row)}"),
                f" (P {chance(row['probability'])}),",
            ]
        said[-1] = f"{str(said[-1]).removesuffix(',')}."
    return text(claim.question, *said)


def blended(claim: Claim, rows: Rows) -> Text:
    """Portfolios in one line: what is asked of each two, verdict and P."""
    found = {row["subject"]: row for row in rows}
    said: list[Inline] = []
    for item in claim.blend:
        asked = [(words, found[f"{item.name}{tail}"]) for tail, words in BLENDED.items() if tail and item.name in found]
        said += [f" {sentence_case(item.text)}: "] if asked else []
        for number, (words, row) in enumerate(asked):
            to, p = f"#{claim_id(row)}", chance(row["probability"])
            said += ["; " if number else "", f"{words} ", Link(row["verdict"] or BLANK, to), f" (P {p})"]
        said += ["."] if asked else []
    if not said:
        return ()
    limits = max((limit for row in rows for limit in caveats(row["note"])), key=len, default="")
    return text(claim.question, *said, f" {sentence_case(limits)}." if limits else "")


def caveats(note: str | None) -> list[str]:
    """What a comparison's note says of its limits: that one side is a proxy, that only one thing differs."""
    return re.findall(r"only the [^,;]+ differs|proxy: [^;]+", note or "")


def section(material: Material) -> Section:
    """The first screen without its sentence."""
    return Section(
        id="verdict",
        title="Verdict",
        text=(*reading(material), standing(material)),
        bullets=flips(material),
        tables=(*tables(material), *printed_tables(material, lead_definition(material))),
        after=others(material),
    )
