"""Draw the README's picture from a folder that `bonemet_demo` made.

    python -m tests.bench.readme_picture bonemet_demo docs/images/demo.png

Shown are two held-out scans with lesions: the one of the best DSC and the one of the median DSC.
"""

import argparse
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from bonemet_auto.commands.demo import DATASET
from bonemet_auto.files import atomic_write
from bonemet_auto.images import find_images
from bonemet_auto.report.cases import main_views, open_case
from bonemet_auto.report.pictures import View

REFERENCE, PREDICTED = "#e69f00", "#56b4e9"


def main() -> None:
    """Read the demo's tables and files, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    raw = options.demo / "raw" / DATASET
    images = find_images(raw / "imagesTs")
    scans = pd.read_csv(options.demo / "evaluation" / "patients.csv")
    ranked = scans[scans["n_reference"] > 0].sort_values("dsc", ascending=False)
    chosen = {"best": ranked.iloc[0], "median": ranked.iloc[len(ranked) // 2]}
    figure = Figure(figsize=(9.6, 5.2), dpi=100, layout="constrained", facecolor="black")
    for (label, scan), row in zip(chosen.items(), figure.subplots(2, 4), strict=True):
        predictions = options.demo / "predictions"
        case = scan["case"]
        views = main_views(open_case(predictions, raw / "labelsTs", case, images[case]))
        draw_view(row[0], views[0], outlined=False)
        row[0].set_title(f"{label} of {len(ranked)}: DSC {scan['dsc']:.2f}", color="w", fontsize=10)
        for axes, view in zip(row[1:], views, strict=True):
            draw_view(axes, view, outlined=True)
            axes.set_title(view.plane, color="white", fontsize=10)
    handles = [Line2D([], [], color=color) for color in (REFERENCE, PREDICTED)]
    labels = ["drawn by the phantom (reference)", "found by the network, with score"]
    figure.legend(
        handles, labels, loc="outside lower center", ncols=2, frameon=False, labelcolor="white"
    )
    with atomic_write(options.out) as temporary:
        figure.savefig(temporary, format="png")


def draw_view(axes: Axes, view: View, outlined: bool) -> None:
    """One plane in millimetres, with or without outlines."""
    axes.imshow(
        view.grey, cmap="gray", vmin=0, vmax=255, extent=(0, view.width_mm, view.height_mm, 0)
    )
    axes.set_axis_off()
    if not outlined:
        return
    for color, lines in ((REFERENCE, view.reference), (PREDICTED, view.predicted)):
        for line in lines:
            axes.plot(*line.T, color=color, lw=1.2)
    for box in view.boxes:
        corner = (box.left_mm, box.top_mm)
        axes.add_patch(
            Rectangle(corner, box.width_mm, box.height_mm, fill=False, ec=PREDICTED, ls=":", lw=0.8)
        )
        axes.annotate(
            box.label, corner, (0, 2), textcoords="offset points", color="white", fontsize=7
        )
    axes.set(xlim=(0, view.width_mm), ylim=(view.height_mm, 0))


if __name__ == "__main__":
    main()
