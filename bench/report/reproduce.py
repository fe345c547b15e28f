"""How to get the same numbers again, and what to distrust."""

from __future__ import annotations

from bench.report.material import Material
from bench.report.page import Section, text

COMMANDS = """\
make bench     # measure this machine: adds results/runs/<run>/ and prints the table (minutes)
make report    # rebuild costs.csv, serving.csv, claims.csv, this page from tracked runs as of results/as_of (seconds)
make check-results   # rebuild into a temporary folder and compare CSV and Markdown"""


def section(material: Material) -> Section:
    """The three commands."""
    return Section(
        id="reproduce",
        title="How to reproduce",
        text=(
            text(
                "Facts (results/runs) are written once and never edited; everything on this page is derived from them,"
                " from dated prices (configs/providers) and from public figures (configs/evidence.csv,"
                " configs/published.csv)."
            ),
        ),
        code=COMMANDS,
    )
