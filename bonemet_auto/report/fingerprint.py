"""One picture of a dataset: how large its lesions are, its spacings, and its HU."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from bonemet_auto.files import atomic_write
from bonemet_auto.fingerprint import HISTOGRAM_EDGES_HU
from bonemet_auto.plan_schema import Plan
from bonemet_auto.schema import Fingerprint

_TICKS_MM = [1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500]


def draw_fingerprint(
    fingerprint: Fingerprint, classes: Mapping[str, int], plan: Plan, path: Path
) -> None:
    """Write a PNG with lesion sizes, spacings and HU histograms, and what was planned from them.

    Args:
        fingerprint: of a dataset with lesions.
        classes: number of each class by name.
        plan: its spacing, patch and window are drawn in.
        path: the PNG.
    """
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    figure.suptitle(f"{fingerprint.dataset}: {len(fingerprint.cases)} cases")
    sizes, spacings, intensities = figure.subplots(1, 3)
    _draw_sizes(sizes, fingerprint, classes, plan)
    _draw_spacings(spacings, fingerprint, plan)
    _draw_intensities(intensities, fingerprint, plan)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=100)


def _draw_sizes(
    axes: Axes, fingerprint: Fingerprint, classes: Mapping[str, int], plan: Plan
) -> None:
    """Histogram of the lesions' longest edge, by source, on a log scale."""
    lesions = [lesion for case in fingerprint.cases for lesion in case.lesions]
    longest = np.array([max(lesion.size_mm) for lesion in lesions])
    sources = np.array([-1 if lesion.source is None else lesion.source for lesion in lesions])
    bins = np.geomspace(longest.min() / 1.01, longest.max() * 1.01, 25)
    names = {-1: "unknown source"} | {number: name for name, number in classes.items()}
    kinds = sorted(set(sources.tolist()))
    axes.hist(
        [longest[sources == kind] for kind in kinds],
        bins.tolist(),
        stacked=True,
        label=[f"{names[kind]} ({(sources == kind).sum()})" for kind in kinds],
    )
    extent = min(np.multiply(plan.patch_size, plan.spacing_mm))
    axes.axvline(extent, color="black", linestyle="--", label=f"patch {extent:.0f} mm")
    axes.set(xscale="log", xlabel="longest edge of the lesion, mm", ylabel="lesions")
    axes.xaxis.set_major_locator(FixedLocator(_TICKS_MM))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.legend(fontsize="small")


def _draw_spacings(axes: Axes, fingerprint: Fingerprint, plan: Plan) -> None:
    spacings = np.array([case.spacing_mm for case in fingerprint.cases])
    axes.plot(spacings[:, 1:].mean(axis=1), spacings[:, 0], "o", alpha=0.4, label="cases")
    planned = plan.spacing_mm
    axes.plot(sum(planned[1:]) / 2, planned[0], "k+", markersize=14, label="plan")
    axes.set(xlabel="spacing in plane (mean of y, x), mm", ylabel="spacing of slices (z), mm")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")


def _draw_intensities(axes: Axes, fingerprint: Fingerprint, plan: Plan) -> None:
    centres = (HISTOGRAM_EDGES_HU[1:] + HISTOGRAM_EDGES_HU[:-1]) / 2
    histograms = {
        "body": [case.body_histogram for case in fingerprint.cases],
        "bone": [case.bone_histogram for case in fingerprint.cases],
        "lesion": [case.lesion_histogram for case in fingerprint.cases],
    }
    for tissue, of_cases in histograms.items():
        counts = np.sum(of_cases, axis=0)
        if counts.sum():
            axes.plot(centres, counts / counts.sum(), label=tissue)
    low, high = plan.window_hu
    axes.axvspan(low, high, color="grey", alpha=0.15, label=f"window {low:g} to {high:g}")
    axes.set(xlabel="HU", ylabel="share of voxels per 16 HU", yscale="log", xlim=(-600, 2000))
    axes.legend(fontsize="small")
