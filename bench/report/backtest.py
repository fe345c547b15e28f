"""The back-test: what the claim's own machinery would have said on earlier days, and how that fared.

One line a cut-off, and the forecasts of the newest one over what came true. The articles' own figures for the same
years stand in the table of printed rows; nothing here repeats them.
"""

from __future__ import annotations

import datetime
import math
import re
from typing import Any

from bench.price.history import name_of
from bench.report.material import Material, Rows
from bench.report.numbers import BLANK, chance, count, interval, number, percent
from bench.report.page import Figure, Inline, Layout, Link, Row, Section, Table, Text, listed, text
from bench.report.theme import BLUE, GREY, VERMILION
from bench.report.words import TERMS, phrase

ROW_PX = 13
LEVEL = 0.8  # of the intervals
KEPT = {"api": "API", "zai": "Z.ai", "google": "Google", "bytedance": "ByteDance", "openrouter": "OpenRouter"}
KEPT |= {"databricks": "Databricks", "minimax": "MiniMax", "h1": "H1", "q3": "Q3"}
TICKS = [0.01, 0.1, 0.5, 1, 2, 10, 100]


def of_kind(rows: Rows, cutoff: str, kind: str) -> Rows:
    """Rows of one cut-off and kind."""
    return [row for row in rows if row["cutoff"] == cutoff and row["kind"] == kind]


def cutoffs(rows: Rows) -> list[str]:
    """The days asked about, oldest first."""
    return sorted({row["cutoff"] for row in rows})


def day(cutoff: str) -> str:
    """1 January 2026."""
    return f"{datetime.date.fromisoformat(cutoff):%-d %B %Y}"


def named(subject: str) -> str:
    """A target in words: a price series by seller, GPU and term."""
    parts = subject.split("/")
    if len(parts) != 3:
        words = " ".join(KEPT.get(word, word) for word in phrase(subject).split(" "))
        return re.sub(r"(20\d\d) (\d\d)$", r"\1-\2", words[0].upper() + words[1:])
    return f"{name_of(parts[0])} {phrase(parts[1])}, {TERMS.get(parts[2], parts[2])}"


def odds(value: float, scale: str) -> float:
    """A value as it is compared: a share by its odds."""
    return value / (1 - value) if scale == "logit" else value


def ratios(row: dict[str, Any]) -> dict[str, Any]:
    """A forecast over its outcome (odds over odds where it is a share): 1 is a hit."""
    told = {end: odds(row[end], row["scale"]) / odds(row["outcome"], row["scale"]) for end in ("p10", "p50", "p90")}
    held = "inside" if row["inside"] == "yes" else "outside"
    return {"target": named(row["subject"]), "outcome": held, **told}


def chart(rows: Rows, layout: Layout) -> Any:
    """A line a target: the 80% interval and the median over the outcome, on a logarithmic axis."""
    import altair as alt

    values = [ratios(row) for row in rows]
    least = min(math.log10(value["p10"]) for value in values)
    most = max(math.log10(value["p90"]) for value in values)
    x = alt.X("p10:Q", title="forecast / outcome (shares: odds)").scale(
        type="log", domain=[10 ** (least - 0.05), 10 ** (most + 0.05)], nice=False
    )
    held = alt.Color("outcome:N", title="outcome").scale(domain=["inside", "outside"], range=[BLUE, VERMILION])
    shape = alt.Shape("outcome:N", title="outcome").scale(domain=["inside", "outside"], range=["circle", "diamond"])
    base = alt.Chart().encode(y=alt.Y("target:N", title=None, sort=None).axis(labelLimit=170, grid=False), color=held)
    bars = base.mark_rule(strokeWidth=2).encode(x=x.axis(format="~g", values=TICKS), x2="p90:Q")
    dots = base.mark_point(filled=True, size=34, opacity=1).encode(x="p50:Q", shape=shape)
    one = alt.Chart().mark_rule(color=GREY, strokeDash=[4, 3]).encode(x=alt.datum(1))
    chart = alt.layer(one, bars, dots, data=alt.Data(values=values))
    return chart.properties(width=layout.width - 240, height=ROW_PX * len(values))


def table(rows: Rows, material: Material) -> Table:
    """A line a cut-off."""
    first = (
        "as of",
        ">figures out",
        "priors",
        ">scored",
        ">held by the 80% interval",
        ">without naive priors",
        ">CRPS",
    )
    columns = (*first, "skill against no change", "against last growth", "leading statement, then and today")
    lines = [line(cutoff, rows, material) for cutoff in cutoffs(rows)]
    note = (
        "Held: the 95% interval counts clusters, for figures of one organisation are no independent evidence. CRPS in"
        " logarithms or log-odds: 0.1 is about a tenth of the value. Skill: 1 less our CRPS over that of the naive"
        " answer with the same spread, 95% by resampling clusters."
    )
    return Table("The claim on earlier days", columns, tuple(lines), note=text(note))


def line(cutoff: str, rows: Rows, material: Material) -> Row:
    """One cut-off."""
    known = of_kind(rows, cutoff, "known")[0]
    priors = of_kind(rows, cutoff, "parameter")
    naive = sum(row["basis"] == "naive" for row in priors)
    held, firm, crps, _, *skills = of_kind(rows, cutoff, "score") if scored(rows, cutoff) else [None] * 4
    return Row(
        (
            cutoff,
            count(known["p50"]),
            f"{naive} of {len(priors)} naive",
            many(rows, cutoff),
            f"{percent(held['p50'])} ({interval(held['p10'], held['p90'], percent)})" if held else BLANK,
            percent(firm["p50"]) if firm else BLANK,
            number(crps["p50"]) if crps else BLANK,
            *(earned(row) for row in skills or (None, None)),
            leading(cutoff, rows, material),
        )
    )


def scored(rows: Rows, cutoff: str) -> bool:
    """Whether anything came true yet."""
    return bool(of_kind(rows, cutoff, "target"))


def many(rows: Rows, cutoff: str) -> str:
    """21 in 10 clusters."""
    first = of_kind(rows, cutoff, "score")[0]
    return f"{first['targets']} in {first['clusters']} clusters"


def earned(row: dict[str, Any] | None) -> str:
    """Skill with its interval; the reason where none is claimed."""
    if row is None:
        return BLANK
    stands = f"{row['targets']} in {row['clusters']}"
    if row["p50"] is None:
        return f"no skill claimed ({stands})"
    return f"{row['p50']:.2f} ({row['p10']:.2f} to {row['p90']:.2f}; {stands}): {row['note'].partition(':')[0]}"


def leading(cutoff: str, rows: Rows, material: Material) -> Text:
    """The leading statement's verdict then, beside today's."""
    row = headline(of_kind(rows, cutoff, "verdict"), material)
    if row is None:
        return (BLANK,)
    then = f"{row['verdict']}, P {chance(row['probability'])}" if row["verdict"] else "could not be asked"
    now = f"{row['today_verdict']}, P {chance(row['today_probability'])}" if row["today_verdict"] else BLANK
    return (f"{then}; today {now}",)


def headline(rows: Rows, material: Material) -> dict[str, Any] | None:
    """The row of the claims' leading statement by its definition; the first there is where that was not asked."""
    places = sorted((c.headline.order, key) for key, c in material.files.items() if c.headline)
    leads = [material.files[key].headline for _, key in places]
    wanted = [f"{one.definition}: {one.statement}" for one in leads if one]
    return next((row for name in wanted for row in rows if row["subject"] == name), rows[0] if rows else None)


def meaning(rows: Rows) -> Text:
    """One sentence on the newest cut-off that has scores."""
    done = [cutoff for cutoff in cutoffs(rows) if scored(rows, cutoff)]
    if not done:
        return text("Nothing has come true yet that could be scored.")
    targets, scores = (of_kind(rows, done[-1], kind) for kind in ("target", "score"))
    inside = sum(row["inside"] == "yes" for row in targets)
    low, high = scores[0]["p10"], scores[0]["p90"]
    better = [row["subject"].removeprefix("skill against ") for row in scores if row["note"] == "better"]
    middles = f"did better than {' and '.join(better)}" if better else "were not shown to do better than naive answers"
    width = "too narrow" if high < LEVEL else "too wide" if low > LEVEL else "not shown to be too narrow or too wide"
    return text(
        f"As of {day(done[-1])} the 80% intervals held {inside} of {len(targets)} outcomes (95% interval of that share"
        f" {interval(low, high, percent)}): they are {width}; their middles {middles}."
    )


def misses(rows: Rows) -> tuple[Text, ...]:
    """The outcomes outside their interval at the newest cut-off, each with what resolved it."""
    done = [cutoff for cutoff in cutoffs(rows) if scored(rows, cutoff)]
    found = [row for row in of_kind(rows, done[-1], "target") if row["inside"] == "no"] if done else []
    said: list[Inline] = [f"{named(row['subject'])} ({side(row)})" for row in found]
    return (text("Missed: ", *listed(said, "; "), "."),) if said else ()


def side(row: dict[str, Any]) -> str:
    """came out above or below."""
    return "came out above" if row["outcome"] > row["p90"] else "came out below"


def section(material: Material) -> Section | None:
    """The table, one sentence, the newest forecasts against their outcomes."""
    rows = material.backtest
    if not rows:
        return None
    done = [cutoff for cutoff in cutoffs(rows) if scored(rows, cutoff)]
    drawn = [row for row in of_kind(rows, done[-1], "target") if "/" not in row["subject"]] if done else []
    figure = Figure(
        "backtest_over_outcome",
        f"Forecasts made as of {day(done[-1])} over what came true; GPU prices left out" if done else "",
        "A line for each target but GPU prices: the 80% interval and the median divided by the outcome, on a"
        " logarithmic axis; the dashed line at one is a hit.",
        lambda layout: chart(drawn, layout),
    )
    return Section(
        id="backtest",
        title="The claim on earlier days",
        text=(
            text(
                "Each prior is rebuilt by rule from figures surely published before the day; what no such figure tells"
                " takes a naive prior stated in configs/backtest.toml. A forecast is scored where a figure that is no"
                " projection came out later. Every row stands in results/backtest.csv."
            ),
            meaning(rows),
            text(
                "Two limits: priors by rule are scored here, not today's, which hold what is known now; and the figures"
                " were collected in 2026: which quantities stand here was chosen by people who knew how they came out."
            ),
        ),
        bullets=misses(rows),
        figures=(figure,) if drawn else (),
        tables=(table(rows, material),),
        after=(
            text(
                "What the articles forecast for the same years is judged with the ",
                Link("printed table", "#verdict"),
                ": their dollars were cash burn, so no score of theirs is computed here.",
            ),
        ),
    )
