"""Where every outside number came from: price by price, published rate by rate, public figure by figure.

Only what this report uses is listed; configs/ holds the rest. A row no table shows is named in words, never linked.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from bench.price.history import PREFIX, name_of
from bench.report.material import Material, address, evidence_id, history_id, row_id
from bench.report.numbers import BLANK, bare, interval, number, usd, value_of
from bench.report.page import Inline, Link, Row, Section, Table, Text, listed, slug, text
from bench.report.words import TERMS, phrase

PUBLISHED = "published:"


def names(joined: str | None) -> list[str]:
    """The names in a field joined by ";"."""
    return [name.strip() for name in (joined or "").split(";") if name.strip()]


def row_links(joined: str | None, material: Material) -> Text:
    """Throughput rows, and prices over time, as links to where this page shows them."""
    measured = {f"{cell['run']}/{cell['cell']}" for cell in material.cells}
    measured |= {row["row"] for row in material.throughput if row["basis"] == "measured"}
    found: list[Inline] = []
    for name in names(joined):
        if name.startswith(PREFIX):
            series = name.removeprefix(PREFIX)
            found.append(Link(f"price of {name_of(series.split('/')[0])}", f"#{history_id(series)}"))
            continue
        shown = name.removeprefix(PUBLISHED) if name.startswith(PUBLISHED) else name.partition("/")[2] or name
        on_page = name in measured or name.removeprefix(PUBLISHED) in material.published
        found.append(Link(shown, f"#{row_id(name)}") if on_page else shown)
    return listed(found)


def few(links: Text, more: str, most: int = 4) -> Text:
    """The links where they are few; else the first ones and a link to all."""
    shown = [part for part in links if isinstance(part, Link)]
    if len(shown) <= most:
        return links
    return text(listed(list(shown[: most - 1])), " and ", Link(f"{len(shown) - most + 1} more", more))


def evidence_links(joined: str | None, material: Material) -> Text:
    """Public figures as links to their rows."""
    return listed(
        [Link(name, f"#{evidence_id(name)}") if name in material.evidence else name for name in names(joined)]
    )


def used_rows(material: Material) -> list[str]:
    """Every throughput row a cost or a finding stands on."""
    cited = [name for row in material.claims for name in names(row["rests_on"])]
    return sorted({*cited, *(row["x_row"] for row in material.costs if row["x_row"])})


def published_table(material: Material) -> Table:
    """Other people's measurements that enter a cost or a finding."""
    rows = []
    for name in used_rows(material):
        row = material.published.get(name.removeprefix(PUBLISHED))
        if row is None:
            continue
        rows.append(
            Row(
                (
                    row["id"],
                    phrase(row["phase"]),
                    phrase(row["model"]),
                    f"{row['n_gpus']} × {phrase(row['gpu'])}",
                    row["precision"],
                    f"{number(float(row['system_tokens_per_s']))} {row['token_kind']}",
                    row["as_of"] or BLANK,
                    address(row["source"]),
                    row["software"] or BLANK,
                    row["note"] or BLANK,
                ),
                id=row_id(name),
            )
        )
    columns = ("id", "phase", "model", "GPUs", "precision", ">tokens/s", ">as of", "source", "software", "note")
    return Table(
        "Imported throughput: measured by others", columns, tuple(rows), empty="No imported row is used.", id="imported"
    )


def price_id(row: Mapping[str, Any]) -> str:
    """The anchor of a price: provider, GPU, level and term, all regions and SKUs together."""
    return slug("p", row["x_provider"], row["x_gpu"], row["x_level"], row["x_term"])


def price_table(material: Material) -> Table:
    """Prices by provider, GPU and term: range over regions, date, SKUs, address."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in material.costs:
        groups.setdefault(price_id(row), []).append(row)
    rows = []
    for where, group in sorted(groups.items()):
        first = group[0]
        prices = [row["x_usd_per_gpu_hour"] for row in group if row["x_usd_per_gpu_hour"] is not None]
        unit = "vCPU" if first["PricingUnit"] == "vCPU-Hours" else phrase(first["x_gpu"])
        rows.append(
            Row(
                (
                    first["ProviderName"],
                    unit,
                    TERMS.get(first["x_term"], phrase(first["x_term"])),
                    first["x_level"] or BLANK,
                    interval(min(prices, default=None), max(prices, default=None), usd),
                    dates(row["x_price_as_of"] for row in group),
                    addresses(row["x_price_source"] for row in group),
                    some(row["RegionId"] for row in group),
                    some(row["SkuId"] for row in group),
                ),
                id=where,
            )
        )
    columns = (
        "provider",
        "an hour of",
        "term",
        "level",
        ">USD",
        ">as of",
        "source",
        "regions",
        "SKU",
    )
    return Table("Prices", columns, tuple(rows), empty="No price was applied.", id="prices")


def some(values: Iterable[str | None], most: int = 3) -> str:
    """Distinct values, the first few by name and the others counted."""
    found = sorted({value for value in values if value})
    rest = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + rest or BLANK


def dates(values: Iterable[str | None]) -> str:
    """First and last of some ISO dates."""
    found = sorted({value for value in values if value})
    return BLANK if not found else found[0] if len(found) == 1 else f"{found[0]} to {found[-1]}"


def dated(material: Material) -> str:
    """How old the prices are: oldest and newest date, and how many the price book calls stale."""
    found = sorted({row["x_price_as_of"] for row in material.costs if row["x_price_as_of"]})
    if not found:
        return ""
    first, last = (f"{datetime.date.fromisoformat(day):%-d %B %Y}" for day in (found[0], found[-1]))
    said = re.compile(r"(\d+ of \d+) prices are (older than \d+ days(?: \([^)]*\))?)")
    stale = next((m for line in material.warnings if (m := said.search(line))), None)
    return f"Prices dated {first} to {last}" + (f", {stale[1]} {stale[2]}." if stale else ".")


def addresses(values: Iterable[str | None]) -> Text:
    """Distinct sources as links."""
    return listed([address(value) for value in sorted({value for value in values if value})], "; ") or (BLANK,)


def evidence_table(material: Material) -> Table:
    """Public figures a finding cites."""
    cited = {name for row in material.claims for name in names(row["evidence"])}
    cited |= {name for row in material.claims for name in re.findall(r"\bE\d{3}\b", row["note"] or "")}
    rows = []
    for name in sorted(cited & set(material.evidence)):
        row = material.evidence[name]
        unit = row["unit"]
        low, high = number_of(row["value_low"]), number_of(row["value_high"])
        span = interval(low, high, partial(bare, unit=unit))
        rows.append(
            Row(
                (
                    name,
                    text(row["organisation"], ": ", row["metric"]),
                    value_of(number_of(row["value"]), unit),
                    span,
                    period(row["period_start"], row["period_end"]) or BLANK,
                    address(row["source_url"]),
                    row["kind"] or BLANK,
                    row["confidence"] or BLANK,
                    row["publisher"] or BLANK,
                ),
                id=evidence_id(name),
            )
        )
    columns = ("id", "figure", ">value", ">range", ">period", "source", "kind", "confidence", "publisher")
    return Table("Public figures cited", columns, tuple(rows), empty="No public figure is cited.", id="evidence")


def period(start: str, end: str) -> str:
    """The period a figure is about: 2024; 2025-01 to 2025-09."""
    if (start[4:], end[4:]) == ("-01", "-12") and start[:4] == end[:4]:
        return start[:4]
    return f"{start} to {end}" if end not in ("", start) else start


def number_of(field: str | None) -> float | None:
    """A CSV field as a number, blank as None."""
    return float(field) if field else None


def imports_said(material: Material) -> tuple[Text, ...]:
    """How many rates were imported, and which of them stand below."""
    if not material.imports:
        return ()
    cited = sum(row["id"] in material.published for row in material.imports)
    files = len({row["sha256"] for row in material.imports})
    priced = len({row["x_row"] for row in material.costs} & {row["id"] for row in material.imports})
    said = f"{len(material.imports)} rates were imported from {files} files of other tools, {priced} are priced in"
    return (text(f"{said} costs.csv; the {cited} that a claim rests on stand below."),)


def section(material: Material) -> Section:
    """Warnings first, then the three tables."""
    fresh = () if material.warnings else (text("No warning: every price is fresh."),)
    return Section(
        id="sources",
        title="Sources and warnings",
        text=(*fresh, *imports_said(material)),
        bullets=tuple(text(line) for line in material.warnings),
        tables=(price_table(material), published_table(material), evidence_table(material)),
    )
