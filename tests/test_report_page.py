"""The report as files: one page that needs no network, pictures that open, a browser that runs it without an error."""

import base64
import hashlib
import re
import subprocess
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
import report_rows as made

pytest.importorskip("altair")
pytest.importorskip("vl_convert")
pytest.importorskip("jinja2")

import vl_convert

from bench.report import build, drawing
from bench.report.drawing import SCRIPT
from bench.report.material import gather

CHROMIUM = Path("/usr/bin/chromium")
COMMITTED = Path(__file__).resolve().parent.parent / "results" / "report"
LIMITS = {
    ".html": 2_250_000,
    ".md": 650_000,
    ".png": 200_000,
}  # bytes; 0.9 MB of the page are the library that makes charts live
CHARTS = ("share_by_year", "cost_serving", "cost_training", "price_history", "break_even", "roofline", "sensitivity")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    rows = (made.cells(), made.costs(), made.claims(), [])
    written = build.report(out, *rows, made.provenance(), made.AS_OF)
    assert written[0] == out / "index.html" and sorted(written) == sorted(out.iterdir())
    return out


class Reader(HTMLParser):
    """Everything a test asks of a page: ids, links, and what is loaded from where."""

    def __init__(self, page: str):
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append(tag)
        self.ids += [found["id"]] if "id" in found else []
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag in ("script", "img", "iframe", "link", "source", "use", "image"):
            self.loads += [found[name] for name in ("src", "href", "xlink:href") if name in found]


def page_of(folder: Path) -> str:
    return (folder / "index.html").read_text(encoding="utf-8")


def scripts(page: str) -> list[tuple[str, str]]:
    return re.findall(r"<script([^>]*)>(.*?)</script>", page, re.DOTALL)


def test_every_chart_is_there_as_png_and_svg_and_no_file_is_heavy(folder):
    for name in CHARTS:
        png = (folder / f"{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG\r\n\x1a\n") and png.endswith(b"IEND\xaeB`\x82") and len(png) < 200_000
        assert ElementTree.parse(folder / f"{name}.svg").getroot().tag.endswith("svg")
        assert "![" in (folder / "report.md").read_text() and f"({name}.png)" in (folder / "report.md").read_text()
    assert len(page_of(folder)) < 1_500_000


def test_what_the_pages_pictures_leave_out_draws_nothing():
    """Pixel by pixel; words without their font's name, in both, and numbers to a tenth of a pixel."""
    page = build.assemble(gather(made.cells(), made.costs(), made.claims(), [], {}, made.AS_OF))
    figure = next(f for section in page.sections for f in section.figures if f.name == "share_by_year")
    drawn = drawing.draw(figure)
    whole = re.sub(r"\d+\.\d{3,}", lambda n: f"{float(n[0]):.1f}", re.sub(' font-family="[^"]*"', "", drawn.svg))
    inline = drawing.inline_svg(drawn)
    assert vl_convert.svg_to_png(inline) == vl_convert.svg_to_png(whole) and len(inline) < len(whole) / 2


def test_the_policy_lets_one_script_run_and_nothing_be_fetched(folder):
    page = page_of(folder)
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    policy = policy.replace("&#39;", "'")
    (source,) = [body for attributes, body in scripts(page) if "application/json" not in attributes]
    digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; ") and f"script-src 'sha256-{digest}';" in policy
    assert "'unsafe-eval'" not in policy and "http" not in policy
    assert page.index("Content-Security-Policy") < page.index("<script")


def test_a_table_that_scrolls_shows_a_shadow_where_there_is_more(folder):
    style = page_of(folder).split("<style>")[1].split("</style>")[0]
    scroll = style.split("\n.scroll {")[1].split("}")[0]
    assert scroll.count("no-repeat local") == scroll.count("no-repeat scroll") == 2


def test_nothing_is_loaded_from_anywhere(folder):
    reader = Reader(page_of(folder))
    assert [address for address in reader.loads if address != "data:,"] == []
    assert "fetch(" not in SCRIPT and "import" not in SCRIPT and "@import" not in page_of(folder)
    assert "iframe" not in reader.tags and "form" not in reader.tags


def test_every_link_of_the_page_leads_to_an_anchor_that_is_there_once(folder):
    reader = Reader(page_of(folder))
    assert len(reader.ids) == len(set(reader.ids))
    inside = {link[1:] for link in reader.links if link.startswith("#")}
    assert inside and inside <= set(reader.ids)
    assert all(link.startswith(("#", "https://", "http://")) for link in reader.links)


def test_markdown_links_lead_to_its_own_anchors(folder):
    body = (folder / "report.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\(#([^)]+)\)", body)) <= set(re.findall(r'<a id="([^"]+)">', body))


def test_words_from_rows_cannot_become_markup(tmp_path):
    rows = made.cells()
    rows[-1]["reason"] = "<script>alert(1)</script> | <b>"
    build.report(tmp_path, rows, [], [], [], {}, made.AS_OF)
    page = page_of(tmp_path)
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page
    assert "<script>" not in (tmp_path / "report.md").read_text(encoding="utf-8")


@pytest.mark.skipif(not CHROMIUM.exists(), reason="no /usr/bin/chromium: the page is not opened in a browser")
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_draws_every_chart_without_an_error(folder, tmp_path, width):
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
    quiet = ("--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path}")
    shown = (f"--window-size={width},900", "--virtual-time-budget=10000", "--enable-logging=stderr", "--v=0")
    done = subprocess.run(
        [CHROMIUM, *flags, *quiet, *shown, "--dump-dom", (folder / "index.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in done.stderr, done.stderr
    for name in CHARTS:
        figure = done.stdout.split(f'<figure id="{name}">')[1].split("</figure>")[0]
        assert 'data-live="true"' in figure and "<svg" in figure and "<path" in figure, name


def test_the_committed_report_is_within_its_weight_and_its_links_lead_somewhere():
    for path in COMMITTED.iterdir():
        assert path.stat().st_size < LIMITS.get(path.suffix, 500_000), path
    reader = Reader(page_of(COMMITTED))
    assert len(reader.ids) == len(set(reader.ids))
    assert {link[1:] for link in reader.links if link.startswith("#")} <= set(reader.ids)
