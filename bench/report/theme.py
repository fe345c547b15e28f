"""How every chart looks: Okabe-Ito colours, one shape and one dash per meaning, quiet axes.

Colour never carries a meaning alone: terms and phases also have a shape, lines also a dash or a label.
Palette: Okabe and Ito, Color Universal Design (2008), https://jfly.uni-koeln.de/color/ (yellow left out: too pale).
"""

from __future__ import annotations

from typing import Any

from bench.report.page import Layout

BLACK, GREY, PALE = "#000000", "#595959", "#d9d9d9"
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY = "#E69F00", "#56B4E9"
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "stroke")

WIDE = Layout(width=910, columns=2)  # the page's text column on a desktop; also the PNG and SVG files
NARROW = Layout(width=325, columns=1)  # a 360 px phone less its margins
FONT = "Helvetica, Arial, 'Liberation Sans', sans-serif"

CONFIG: dict[str, Any] = {
    "background": "white",
    "font": FONT,
    "view": {"stroke": None, "continuousHeight": 260},
    "axis": {
        "labelColor": GREY,
        "titleColor": GREY,
        "titleFontWeight": "normal",
        "labelFontSize": 11,
        "titleFontSize": 11,
        "gridColor": "#ececec",
        "domainColor": "#9a9a9a",
        "tickColor": "#9a9a9a",
        "labelLimit": 220,
    },
    "header": {"labelFontSize": 12, "labelFontWeight": "bold", "labelColor": BLACK, "labelAnchor": "start"},
    "title": {"anchor": "start", "frame": "group", "fontSize": 12, "color": BLACK, "offset": 8},
    "legend": {
        "orient": "top",
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "labelColor": BLACK,
        "titleColor": GREY,
        "symbolSize": 70,
        "labelLimit": 320,
    },
    "text": {"font": FONT, "fontSize": 11, "color": BLACK},
}
