"""How every drawing of the report looks: one size, one set of colours, the same bytes each time.

The colours are those of Okabe and Ito, which people with any colour vision can tell apart; lines
and marks differ in shape as well.
"""

import html
import io
import re
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, ORANGE, RED, GREY = "#0072B2", "#E69F00", "#D55E00", "#6B7580"
BAND_ALPHA = 0.16
SIZE_INCHES = (4.4, 3.8)
"""Drawings stand two or three in a row, and alone on a phone: letters are readable in both."""

# Any: how Matplotlib types its settings changes from version to version.
_SETTINGS: Any = {
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.labelsize": 9.5,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "sans-serif",
    "font.size": 9.5,
    "grid.color": "#E3E7EB",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markeredgewidth": 1.2,
    "lines.markersize": 4.5,
    "svg.fonttype": "none",
    "xtick.color": "#3A424A",
    "ytick.color": "#3A424A",
}


def new_plot(title: str) -> tuple[Figure, Axes]:
    """An empty drawing in the report's style, with its title above it."""
    with matplotlib.rc_context(_SETTINGS):
        plot = Figure(figsize=SIZE_INCHES, layout="constrained")
        axes = plot.subplots()
        axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold")
        axes.set_axisbelow(True)
    return plot, axes


def as_svg(plot: Figure, name: str) -> str:
    """The drawing as SVG text; `name` keeps its ids apart from those of others on a page.

    The legend stands below the axes, where it can hide nothing.
    """
    plot.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=8.5)
    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with matplotlib.rc_context(_SETTINGS | {"svg.hashsalt": name}):
        plot.savefig(buffer, format="svg", metadata=nothing)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", buffer.getvalue())
    label = html.escape(plot.axes[0].get_title("left"))
    return text[text.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
