"""Charts on paper: an Altair chart as SVG, as PNG, and as a live chart in a page that may not touch the network.

The page carries each chart twice. First as plain SVG, which needs no script and prints; then one script (Vega,
Vega-Lite and vega-embed, bundled by vl-convert) redraws it with tooltips, in a narrow layout on a phone. The policy of
the page is `default-src 'none'` and the SHA-256 of that one script, so nothing else can run and nothing can be fetched.
Vega's own expression compiler uses `Function`, which such a policy forbids; `ast: true` makes it interpret instead.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from bench.report.page import Figure, Layout
from bench.report.theme import CONFIG, NARROW, WIDE

PHONE_PX = 700  # narrower windows get the narrow layout
PNG_SCALE = 1.5  # sharp on screens and slides, below 200 kB each
SCRIPT = """
const narrow = window.innerWidth < PHONE_PX;
for (const data of document.querySelectorAll("script[data-chart]")) {
  const charts = JSON.parse(data.textContent);
  const place = document.querySelector(`#${data.dataset.chart} .chart`);
  const options = {ast: true, renderer: "svg", actions: false, mode: "vega-lite"};
  vegaEmbed(place, {...(narrow ? charts.narrow : charts.wide), datasets: charts.datasets}, options)
    .then(() => place.setAttribute("data-live", "true"))
    .catch(console.error);
}
""".replace("PHONE_PX", str(PHONE_PX))


class ReportUnavailable(Exception):
    """The report needs a package this machine lacks; one line names it. Exit code 2."""


def require_drawing() -> None:
    """Raises ReportUnavailable, naming what is missing, unless altair, vl-convert and jinja2 import."""
    missing = []
    for module, package in (("altair", "altair"), ("vl_convert", "vl-convert-python"), ("jinja2", "jinja2")):
        try:
            __import__(module)
        except ImportError:
            missing.append(package)
    if missing:
        raise ReportUnavailable(
            f"the report needs {', '.join(missing)}: pip install {' '.join(missing)}, "
            "or copy results/runs/ to a laptop and run `make report` there"
        )


@dataclass(frozen=True)
class Drawn:
    """One chart in every form: `svg` text, `png` bytes, `data` the JSON the page's script reads."""

    figure: Figure
    svg: str
    png: bytes
    data: str


def specification(figure: Figure, layout: Layout) -> dict[str, Any]:
    """The Vega-Lite specification of a figure at a layout, with our theme."""
    spec: dict[str, Any] = figure.draw(layout).to_dict()
    spec.pop("usermeta", None)
    legend = {**CONFIG["legend"], "columns": layout.columns + 1} if layout == NARROW else CONFIG["legend"]
    return {**spec, "config": {**CONFIG, "legend": legend}}


def version() -> str:
    """The Vega-Lite version Altair writes, as vl-convert names it."""
    import altair

    return ".".join(altair.SCHEMA_VERSION.split(".")[:2])


def draw(figure: Figure) -> Drawn:
    """A figure as SVG, PNG and page data."""
    import vl_convert

    wide = specification(figure, WIDE)
    svg = vl_convert.vegalite_to_svg(wide, vl_version=version())
    png = repacked(vl_convert.svg_to_png(svg, scale=PNG_SCALE))
    datasets: dict[str, Any] = {}
    data = {"wide": shared(wide, datasets), "narrow": shared(specification(figure, NARROW), datasets)}
    return Drawn(figure, svg, png, json_safe({**data, "datasets": datasets}))


def shared(spec: Any, datasets: dict[str, Any]) -> Any:
    """A specification with its rows moved into `datasets`, each set once, numbers to five digits."""
    if isinstance(spec, list):
        return [shared(item, datasets) for item in spec]
    if not isinstance(spec, dict):
        return float(f"{spec:.5g}") if isinstance(spec, float) else spec
    if isinstance(values := spec.get("values"), list) and values and isinstance(values[0], dict):
        rows = shared(values, {})
        name = hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:8]
        datasets[name] = rows
        return {"name": name}
    return {key: shared(value, datasets) for key, value in spec.items()}


def repacked(png: bytes) -> bytes:
    """The same picture with its pixels deflated once more: vl-convert hardly compresses (a factor of 4)."""
    head, tail, pixels, at = [png[:8]], b"", b"", 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        kind, chunk = png[at + 4 : at + 8], png[at : at + 12 + length]
        if kind == b"IDAT":
            pixels += chunk[8:-4]
        elif kind == b"IEND":
            tail = chunk
        else:
            head.append(chunk)
        at += len(chunk)
    data = b"IDAT" + zlib.compress(zlib.decompress(pixels), 9)
    packed = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    return b"".join((*head, packed, tail))


def json_safe(value: Any) -> str:
    """JSON that cannot close the element it stands in."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def inline_svg(drawn: Drawn) -> str:
    """The SVG for the page: ids made its own, so that charts do not share one clip path; a quarter of the bytes.

    Numbers keep a tenth of a pixel; the figure's label stands for those of its marks, the page's font for its words'.
    What SVG means anyway (opacity 1, a line's end at 0, no shift) and what draws nothing is left out.
    """
    name = drawn.figure.name
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', drawn.svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r' (?:aria-[a-z]+|role|class|font-family)="[^"]*"', "", svg)
    svg = re.sub(r' (?:(?:x2|y2)="0"|opacity="1"|pointer-events="none"|transform="translate\(0,0\)")', "", svg)
    svg = re.sub(r'<path d="" display="none"/>|<g></g>', "", svg)
    return re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.1f}", svg)


@lru_cache(maxsize=1)
def script() -> str:
    """The page's only script: the chart libraries and our few lines, as one module (no globals leak)."""
    import vl_convert

    bundle = vl_convert.javascript_bundle(SCRIPT, vl_version=version())
    return re.sub(r"<(?=/script|!--)", r"<\\", bundle, flags=re.IGNORECASE)


def policy(source: str) -> str:
    """The content security policy that lets exactly this script run, and no request leave the page."""
    digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
