"""Draw the network, as `docs/explanation/method.md` shows it.

    python -m tests.bench.architecture_picture docs/images/architecture.svg

Blue is what the publication and its sources describe; orange is our reading or addition.
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from bonemet_auto.files import atomic_write

PUBLISHED, OURS, DATA = "#d6e6f5", "#fde3c4", "#eeeeee"
EDGE, LINE = "#3b4a5a", "#5b6b7b"
LEVELS = (("1", 62), ("2", 49), ("4", 36), ("8", 23), ("16", 10))
"""Strides of the maps, and where they stand."""
HEIGHT = 7.0


def main() -> None:
    """Draw and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    style: Any = {"svg.hashsalt": "architecture", "font.family": "DejaVu Sans", "font.size": 8.3}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(9.9, 5.7), facecolor="white")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, 124), ylim=(0, 74))
        axes.set_axis_off()
        draw_trunk(axes)
        draw_neck(axes)
        draw_heads(axes)
        draw_legend(axes)
        with atomic_write(options.out) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})


def draw_trunk(axes: Axes) -> None:
    """Window, full-resolution skip, stem and stages."""
    box(axes, 1, 62, 11, "window\nof the CT", DATA)
    box(axes, 17, 62, 17, "convolution", OURS)
    box(axes, 17, 49, 17, "convolutional stem", OURS)
    for _, y in LEVELS[2:]:
        box(axes, 17, y, 17, "ConvNeXt-V2\nblocks", PUBLISHED)
    arrow(axes, (12, 62), (17, 62))
    for (_, upper), (_, lower) in zip(LEVELS[:-1], LEVELS[1:], strict=True):
        arrow(axes, (25.5, upper - HEIGHT / 2), (25.5, lower + HEIGHT / 2))
    for stride, y in LEVELS:
        axes.text(15.6, y + 2.2, f"/{stride}", ha="right", color=LINE, fontsize=8)
    heading(axes, 25.5, "Trunk")


def draw_neck(axes: Axes) -> None:
    """Top-down pass with learned weights, then bottom-up."""
    for index, (_, y) in enumerate(LEVELS[1:]):
        box(axes, 41, y, 10, "weighted\nsum" if index < 3 else "1x1x1", OURS)
        box(axes, 57, y, 10, "weighted\nsum" if index else "map", OURS)
        arrow(axes, (34, y), (41, y))
        arrow(axes, (51, y), (57, y))
        if index:
            arc(axes, (36, y), (60, y - HEIGHT / 2), -0.24)
    for (_, upper), (_, lower) in zip(LEVELS[1:-1], LEVELS[2:], strict=True):
        arrow(axes, (46, lower + HEIGHT / 2), (46, upper - HEIGHT / 2))
        arrow(axes, (62, upper - HEIGHT / 2), (62, lower + HEIGHT / 2))
    axes.text(46, 0.6, "down: coarse\nto fine", ha="center", color=LINE, fontsize=7)
    axes.text(62, 0.6, "and up again:\nfine to coarse", ha="center", color=LINE, fontsize=7)
    heading(axes, 54, "Fusion neck", 55)


def draw_heads(axes: Axes) -> None:
    """Dense branch, proposals, heads of the regions, patient."""
    box(axes, 74, 62, 16, "dense branch:\nlesion, by voxel", OURS)
    arrow(axes, (34, 62), (74, 62))
    corner(axes, (67, 49), 70.5, (74, 60.4))
    box(axes, 74, 36, 16, "proposals\n(RPN, ATSS)", PUBLISHED)
    for _, y in LEVELS[1:]:
        corner(axes, (67, y), 70.5, (74, 36), head=y == 36)
    arrow(axes, (82, 58.5), (82, 39.5), dashed=True)
    box(axes, 74, 19, 16, "RoIAlign\nin 3D", PUBLISHED)
    arrow(axes, (82, 32.5), (82, 22.5))
    corner(axes, (70.5, 30), 70.5, (74, 19))
    heads = (
        (49, "box and score", PUBLISHED),
        (36, "mask, and an\nestimate of its Dice", PUBLISHED),
        (19, "source: lesion and\nits surroundings", OURS),
    )
    for y, label, colour in heads:
        box(axes, 97, y, 17, label, colour)
        corner(axes, (90, 19), 93.5, (97, y))
    arrow(axes, (90, 62), (97, 62), dashed=True)
    note = "its probability is an\ninput of every head"
    axes.text(98, 62, note, color=LINE, fontsize=8, va="center")
    box(axes, 97, 7, 17, "patient: noisy-or\nover lesions", OURS)
    for y in (49, 36, 19):
        axes.plot([114, 119], [y, y], color=LINE, lw=1)
    axes.plot([119, 119], [7, 49], color=LINE, lw=1)
    arrow(axes, (119, 7), (114, 7))
    axes.text(120.3, 28, "each lesion", rotation=90, va="center", color=LINE, fontsize=8)
    heading(axes, 82, "Two stages", 68)


def draw_legend(axes: Axes) -> None:
    """What the colours say."""
    for y, colour, label in (
        (43, PUBLISHED, "described in the\npublication or\nits sources"),
        (34, OURS, "our reading,\nor our addition"),
    ):
        axes.add_patch(FancyBboxPatch((1, y), 2, 2, boxstyle="round,pad=0.2", fc=colour, ec=EDGE))
        axes.text(4.2, y + 1, label, va="center", fontsize=6.6)


def box(axes: Axes, x: float, y: float, width: float, label: str, colour: str) -> None:
    """A box whose left edge and middle height are given."""
    patch = FancyBboxPatch(
        (x, y - HEIGHT / 2), width, HEIGHT, boxstyle="round,pad=0,rounding_size=1",
        fc=colour, ec=EDGE, lw=0.9,
    )  # fmt: skip
    axes.add_patch(patch)
    axes.text(x + width / 2, y, label, ha="center", va="center", linespacing=1.25)


def arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], dashed: bool = False
) -> None:
    """A straight arrow."""
    line: dict[str, Any] = {"arrowstyle": "-|>", "mutation_scale": 9, "color": LINE, "lw": 1}
    style = "--" if dashed else "-"
    axes.add_patch(FancyArrowPatch(start, end, shrinkA=0, shrinkB=0, ls=style, **line))


def arc(axes: Axes, start: tuple[float, float], end: tuple[float, float], bend: float) -> None:
    """A bent arrow."""
    patch = FancyArrowPatch(
        start, end, connectionstyle=f"arc3,rad={-bend}", arrowstyle="-|>", mutation_scale=8,
        color=LINE, lw=0.8, shrinkA=0, shrinkB=0,
    )  # fmt: skip
    axes.add_patch(patch)


def corner(
    axes: Axes,
    start: tuple[float, float],
    x: float,
    end: tuple[float, float],
    head: bool = True,
) -> None:
    """Right, then up or down at x, then right."""
    axes.plot([start[0], x, x], [start[1], start[1], end[1]], color=LINE, lw=1)
    if head:
        arrow(axes, (x, end[1]), end)


def heading(axes: Axes, x: float, label: str, y: float = 68) -> None:
    """Name of a part."""
    axes.text(x, y, label, ha="center", weight="bold", color=EDGE, fontsize=10)


if __name__ == "__main__":
    main()
