"""Portfolios: what several sellers cost beside one, and what fails of either, from the findings of blend claims.

Spare capacity and a manager are paid every hour; outages are lost now and then. The chart shows both on one row a
portfolio: what an hour needed costs, part by part, and how many hours of serving are lost.
"""

from __future__ import annotations

from typing import Any

from bench.claim.spec import Claim
from bench.report.first_screen import sentence_case
from bench.report.material import Material, Rows, claim_id
from bench.report.numbers import BLANK, chance, interval_in, number, percent_tenths, usd
from bench.report.page import Cell, Figure, Layout, Link, Row, Section, Table, Text, text
from bench.report.theme import BLACK, BLUE, GREEN, ORANGE, PURPLE, VERMILION
from bench.report.words import BLENDED, phrase, statement

PARTS = {
    "capacity": ("capacity", BLUE),
    "spare": ("spare", ORANGE),
    "manager": ("multi-cloud manager", PURPLE),
    "stranded": ("committed, not used", BLACK),
    "loss": ("expected loss", VERMILION),
}
LOST = {"serving lost": ("serving lost", BLUE, "circle"), "blackouts": ("blackouts", GREEN, "square")}


def claims_of(material: Material) -> list[Claim]:
    """Claims about portfolios, in the order of their files."""
    return [claim for claim in material.files.values() if claim.kind == "blend"]


def compared(claim: Claim, material: Material) -> dict[str, dict[str, dict[str, Any]]]:
    """Findings of the year compared: portfolio -> subject -> row, in the order of the claim's comparisons."""
    keys = dict.fromkeys(key for item in claim.blend for key in (item.right, item.left))
    years = {key: item.year for item in claim.blend for key in (item.left, item.right)}
    found: dict[str, dict[str, dict[str, Any]]] = {key: {} for key in keys}
    for row in of(claim, material, "blend"):
        if row["definition"] in keys and row["year"] == years[row["definition"]]:
            found[row["definition"]][row["subject"]] = row
    return {key: rows for key, rows in found.items() if rows}


def of(claim: Claim, material: Material, kind: str) -> Rows:
    """The claim's findings of one kind."""
    return [row for row in material.of_kind(kind) if row["claim"] == claim.key]


def median(row: dict[str, Any] | None, show: Any) -> str:
    """A finding's median."""
    return str(show(row["p50"])) if row else BLANK


def spanned(row: dict[str, Any] | None, show: Any) -> Cell:
    """Median with its 80% interval."""
    return text(Link(show(row["p50"]), f"#{claim_id(row)}"), f" ({interval_in(row)})") if row else BLANK


def table(claim: Claim, material: Material) -> Table:
    """A row a portfolio."""
    rows = []
    for key, found in compared(claim, material).items():
        get = found.get
        rows.append(
            Row(
                (
                    phrase(key),
                    median(get("price of a provisioned hour"), usd),
                    median(get("spare capacity"), percent_tenths),
                    median(get("cost of a served hour"), usd),
                    median(get("stranded"), usd),
                    median(get("loss"), usd),
                    spanned(get("total"), usd),
                    spanned(get("serving lost"), number),
                    spanned(get("blackouts"), number),
                    median(get("other work delayed"), number),
                )
            )
        )
    columns = (
        *("portfolio", ">a provisioned hour", ">spare", ">a served hour", ">committed, not used", ">expected loss"),
        *(">all of it", ">serving lost, h a year", ">blackouts, h a year", ">other work delayed, h a year"),
    )
    note = "USD per GPU-hour; medians, with 80% intervals. All of it: bill and expected loss, per GPU-hour needed."
    return Table(f"Portfolios in {year_of(claim)}", columns, tuple(rows), note=text(note), id="portfolio-costs")


def year_of(claim: Claim) -> str:
    """The years compared."""
    return ", ".join(str(year) for year in sorted({item.year for item in claim.blend}))


def verdict_table(claim: Claim, material: Material) -> Table:
    """A row a question asked of two portfolios, and what a lost hour would have to be worth."""
    rows = []
    for item in claim.blend:
        found = {row["subject"]: row for row in of(claim, material, "verdict")}
        for tail in BLENDED:
            row = found.get(f"{item.name}{tail}")
            if row is None:
                continue
            cells: tuple[Cell, ...] = (
                sentence_case(statement(row, material.files)),
                Link(row["verdict"] or BLANK, f"#{claim_id(row)}"),
                chance(row["probability"]),
                spanned(row, usd if row["unit"].startswith("USD") else number),
                "difference, USD" if row["unit"].startswith("USD") else "first / second",
            )
            rows.append(Row(cells, tone=row["verdict"] or ""))
    columns = ("statement", "verdict", ">P", ">value, 80% interval", "of")
    return Table("Several sellers against one", columns, tuple(rows), id="portfolio-verdicts")


def worth(claim: Claim, material: Material) -> tuple[Text, ...]:
    """What an hour of serving would have to be worth, one line a comparison."""
    found = []
    for item in claim.blend:
        subject = f"{item.name}: value of a lost serving hour"
        row = next((row for row in of(claim, material, "blend") if row["subject"] == subject), None)
        if row is None or row["p50"] is None:
            continue
        found.append(
            text(
                f"{sentence_case(item.text)}: both cost the same where a lost serving GPU-hour is worth ",
                Link(usd(row["p50"]), f"#{claim_id(row)}"),
                f" (80% interval {interval_in(row)}); assumed here {usd(row['threshold'])}.",
            )
        )
    return tuple(found)


def path_table(claim: Claim, material: Material) -> Table:
    """Cost and lost serving by year, where a portfolio changes over the years."""
    years = sorted({row["year"] for row in of(claim, material, "blend") if row["year"]})
    rows = []
    for key in compared(claim, material):
        cells: list[Cell] = [phrase(key)]
        for subject, show in (("total", usd), ("serving lost", number)):
            for year in years:
                wanted = (key, subject, year)
                row = next(
                    (r for r in of(claim, material, "blend") if (r["definition"], r["subject"], r["year"]) == wanted),
                    None,
                )
                cells.append(median(row, show))
        rows.append(Row(tuple(cells)))
    heads = [f">{head} {year}" for head in ("cost", "h lost") for year in years]
    return Table(
        "Over the years: USD per needed GPU-hour, and hours of serving lost", ("portfolio", *heads), tuple(rows)
    )


def chart(claim: Claim, material: Material, layout: Layout) -> Any:
    """Left: the parts of a needed hour's cost. Right: hours a year of serving lost and of blackout, on a log axis."""
    import altair as alt

    found = compared(claim, material)
    names = [phrase(key) for key in found]
    wide = layout.columns > 1
    extent = 150 if wide else 105
    left, right = (430, layout.width - 430 - extent - 40) if wide else (layout.width - extent,) * 2
    height = 38 * len(names)
    parts = [
        {"portfolio": phrase(key), "part": said, "order": place, "usd": rows[part]["p50"]}
        for key, rows in found.items()
        for place, (part, (said, _)) in enumerate(PARTS.items())
        if part in rows
    ]
    hours = [
        {"portfolio": phrase(key), "what": said, **{end: rows[name][end] for end in ("p10", "p50", "p90")}}
        for key, rows in found.items()
        for name, (said, *_) in LOST.items()
        if name in rows
    ]
    y = alt.Y("portfolio:N", title=None, sort=names).axis(labelLimit=extent - 8, minExtent=extent, maxExtent=extent)
    money = (
        alt.Chart(alt.Data(values=parts))
        .mark_bar(height=20)
        .encode(
            y=y,
            x=alt.X("usd:Q", title="USD per needed GPU-hour, medians").stack("zero"),
            order=alt.Order("order:Q"),
            color=alt.Color("part:N", title=None).scale(
                domain=[said for said, _ in PARTS.values()], range=[colour for _, colour in PARTS.values()]
            ),
            tooltip=["portfolio:N", "part:N", alt.Tooltip("usd:Q", format="$.3g")],
        )
        .properties(width=left, height=height)
    )
    other = alt.Y("portfolio:N", title=None, sort=names).axis(labels=not wide, ticks=not wide, labelLimit=extent - 8)
    x = alt.X("p10:Q", title="hours a year, 80% interval").scale(type="log").axis(format="~g", tickCount=5)
    base = alt.Chart(alt.Data(values=hours)).encode(
        y=other,
        yOffset=alt.YOffset("what:N", sort=[said for said, *_ in LOST.values()]),
        color=alt.Color("what:N", title=None).scale(
            domain=[said for said, *_ in LOST.values()], range=[colour for _, colour, _ in LOST.values()]
        ),
    )
    shape = alt.Shape("what:N", title=None).scale(
        domain=[said for said, *_ in LOST.values()], range=[mark for *_, mark in LOST.values()]
    )
    tips = ["portfolio:N", "what:N", *(alt.Tooltip(f"{end}:Q", format=".3g") for end in ("p10", "p50", "p90"))]
    failed = alt.layer(
        base.mark_rule(strokeWidth=2).encode(x=x, x2="p90:Q"),
        base.mark_point(filled=True, size=70, opacity=1).encode(x=alt.X("p50:Q"), shape=shape, tooltip=tips),
    ).properties(width=right, height=height)
    joined = alt.hconcat(money, failed, spacing=24) if wide else alt.vconcat(money, failed, spacing=16)
    return joined.resolve_scale(color="independent", shape="independent")


def section(material: Material) -> Section | None:
    """The claim's chart and tables; None where no claim is about portfolios."""
    claims = [claim for claim in claims_of(material) if compared(claim, material)]
    if not claims:
        return None
    claim = claims[0]
    figure = Figure(
        "one_or_several",
        f"One seller or several in {year_of(claim)}: what a needed GPU-hour costs, and what is lost",
        "A row a portfolio. Left, bars of capacity, spare, manager, unused commitments and expected loss; right, hours"
        " a year of serving lost and of blackout with their 80% intervals.",
        lambda layout: chart(claim, material, layout),
    )
    return Section(
        id="portfolios",
        title="One cloud or several",
        text=(
            text(
                "A portfolio (configs/portfolios) buys shares from several sellers, and enough spare that serving"
                " survives what it says it must; training and research make room first. Outages are ranges from"
                " service agreements and public incidents (configs/reliability), partly common to a seller's sites and"
                " to all sellers; for the time a failover takes, what stood on the failed part is lost. Prices are"
                " contract prices of one GPU, hyperscalers' by proxy. A blackout leaves less than half of serving."
            ),
        ),
        bullets=worth(claim, material),
        figures=(figure,),
        tables=tuple(
            made
            for each in claims
            for made in (verdict_table(each, material), table(each, material), path_table(each, material))
        ),
    )
