"""Drawings of an evaluation, each with what it shows, or with the reason why there is none."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from numpy.typing import ArrayLike

from bonemet_auto.evaluation.bootstrap import Figure
from bonemet_auto.evaluation.classification import single_class_reason
from bonemet_auto.evaluation.curves import (
    calibration_bins,
    precision_recall,
    roc_curve,
    volume_agreement,
)
from bonemet_auto.evaluation.detection import FROC_RATES
from bonemet_auto.evaluation.evaluate import Evaluation
from bonemet_auto.evaluation.means import SIZE_BINS
from bonemet_auto.evaluation.source import Estimates
from bonemet_auto.report.plot_style import (
    BAND_ALPHA,
    BLUE,
    GREY,
    ORANGE,
    RED,
    as_svg,
    new_plot,
)

Named = Mapping[str, Figure]

_UNIT = (-0.02, 1.02)


@dataclass(frozen=True)
class Drawing:
    """A drawing of the report.

    Attributes:
        name: of its file, without ending.
        title: what it is.
        svg: its SVG element, or None where the data cannot give one.
        text: how to read it, or why it is missing.
    """

    name: str
    title: str
    svg: str | None
    text: str


def draw_all(evaluation: Evaluation, patient_threshold: float | None) -> list[Drawing]:
    """All drawings of an evaluation, in the order of the page.

    Args:
        evaluation: figures and tables.
        patient_threshold: from which patients were called positive, if it was the same for all.
    """
    figures = evaluation.figures
    patients, lesions = evaluation.estimates["patient"], evaluation.estimates["lesion"]
    return [
        _froc(figures["detection"]),
        _dsc_by_size(evaluation.lesions),
        _bland_altman(evaluation.cases),
        _roc("roc_patients", patients, figures["patient"]),
        _precision_recall(patients, figures["patient"]),
        _calibration("calibration_patients", patients),
        _decision_curve(patients, evaluation.decision_curves, patient_threshold),
        _roc("roc_lesions", lesions, _without_prefix(figures["lesion"], "source_")),
        _calibration("calibration_lesions", lesions),
    ]


def _without_prefix(figures: Named, prefix: str) -> dict[str, Figure]:
    return {name.removeprefix(prefix): f for name, f in figures.items() if name.startswith(prefix)}


def _froc(detection: Named) -> Drawing:
    """Lesion sensitivity against false positives per scan."""
    name, title = "froc", "Finding lesions (FROC)"
    points = [detection[f"sensitivity_at_{rate:g}_fp"] for rate in FROC_RATES]
    values = [point.value for point in points if point.value is not None]
    if len(values) < len(points):
        return Drawing(name, title, None, f"{points[0].note}.")
    plot, axes = new_plot(title)
    low = [point.low for point in points if point.low is not None]
    high = [point.high for point in points if point.high is not None]
    if len(low) == len(high) == len(points):
        _band(axes, FROC_RATES, low, high)
    axes.plot(FROC_RATES, values, color=BLUE, marker="o", label="all thresholds")
    chosen, fp = detection["sensitivity_iou_0.1"].value, detection["fp_per_scan"].value
    if chosen is not None and fp is not None:
        # A logarithmic axis has no 0: a point beyond the ticks sits at the edge.
        _operating_point(axes, float(np.clip(fp, FROC_RATES[0], FROC_RATES[-1])), chosen)
    axes.set_xscale("log", base=2)
    axes.set_xticks(FROC_RATES, [f"{rate:g}" for rate in FROC_RATES])
    axes.set(xlabel="false positives per scan", ylabel="lesion sensitivity", ylim=_UNIT)
    text = "Lesions found (mask IoU of at least 0.1) against false positives, over all scores."
    return Drawing(name, title, as_svg(plot, name), text)


def _dsc_by_size(lesions: pd.DataFrame) -> Drawing:
    """DSC of every annotated lesion against its diameter, with the means of the size bins."""
    name, title = "dsc_by_size", "Outlines by size"
    annotated = lesions[lesions["reference_id"] > 0]
    if annotated.empty:
        return Drawing(name, title, None, "no annotated lesions.")
    annotated = annotated[annotated["dsc"].notna()]
    if annotated.empty:
        return Drawing(name, title, None, "no outlines were predicted.")
    plot, axes = new_plot(title)
    diameter, dsc = annotated["diameter_mm"].to_numpy(), annotated["dsc"].to_numpy()
    missed = (annotated["outcome"] == "missed").to_numpy()
    for rows, colour, marker, kind in ((~missed, BLUE, "o", "found"), (missed, RED, "x", "missed")):
        axes.plot(diameter[rows], dsc[rows], marker, color=colour, alpha=0.65, label=kind)
    left, right = min(diameter.min(), 5.0) / 1.1, max(diameter.max(), 40.0) * 1.1
    label: str | None = "mean, missed 0"
    for low, high, inclusive in SIZE_BINS.values():
        inside = annotated["diameter_mm"].between(low, high, inclusive=inclusive).to_numpy()
        edges = max(low, left), min(high, right)
        if inside.any():
            axes.plot(edges, [dsc[inside].mean()] * 2, color="black", lw=2.2, label=label)
            label = None
        middle = float(np.sqrt(edges[0] * edges[1]))
        axes.annotate(f"n = {inside.sum()}", (middle, 1.07), ha="center", color=GREY, fontsize=8.5)
    for edge in (10, 20):
        axes.axvline(edge, color=GREY, lw=0.8, ls=":")
    ticks = [each for each in (2, 3, 5, 10, 20, 40, 80, 160) if left <= each <= right]
    axes.set(xscale="log", xlim=(left, right), ylim=(-0.04, 1.14), ylabel="DSC")
    axes.set_xticks(ticks, [str(each) for each in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.set_xlabel("diameter of the ball of its volume, mm")
    text = "Each dot is an annotated lesion; lines are means below 10, of 10 to 20, above 20 mm."
    return Drawing(name, title, as_svg(plot, name), text)


def _bland_altman(cases: pd.DataFrame) -> Drawing:
    """Difference of the volumes against their mean, scan by scan."""
    name, title = "bland_altman", "Volumes (Bland-Altman)"
    agreement = volume_agreement(cases)
    if agreement is None:
        return Drawing(name, title, None, "fewer than two scans with a volume.")
    plot, axes = new_plot(title)
    mean_ml, difference_ml = agreement.mean_mm3 / 1000, agreement.difference_mm3 / 1000
    axes.plot(mean_ml, difference_ml, "o", color=BLUE, alpha=0.65)
    axes.axhline(0, color=GREY, lw=0.8)
    bias, (low, high) = agreement.bias_mm3 / 1000, np.array(agreement.limits_mm3) / 1000
    axes.axhline(bias, color=RED, label=f"bias {_signed(bias)} ml")
    axes.axhline(low, color=RED, ls="--", label=f"limits {_signed(low)} to {_signed(high)} ml")
    axes.axhline(high, color=RED, ls="--")
    axes.set(xscale="log", xlabel="mean of both volumes, ml", ylabel="predicted − annotated, ml")
    axes.xaxis.set_major_formatter("{x:g}")
    empty = f" {agreement.n_empty} scans without any lesion are left out."
    text = "Each dot is a scan, all its lesions together; limits of agreement are bias ± 1.96 SD."
    return Drawing(name, title, as_svg(plot, name), text + (empty if agreement.n_empty else ""))


def _roc(name: str, of: Estimates, figures: Named) -> Drawing:
    title = f"Source by {_unit(of)} (ROC)"
    if reason := single_class_reason(of.positive, of.unit):
        return Drawing(name, title, None, f"{reason}.")
    plot, axes = new_plot(title)
    curve = roc_curve(of)
    if curve.grid.size:
        _band(axes, curve.grid, curve.low, curve.high)
    axes.plot([0, 1], [0, 1], color=GREY, lw=0.9, ls="--", label="chance")
    auc = figures["auc"].value
    axes.plot(curve.fpr, curve.tpr, color=BLUE, label="" if auc is None else f"AUC {auc:.3f}")
    point = [figures[each].value for each in ("specificity", "sensitivity") if each in figures]
    if len(point) == 2 and point[0] is not None and point[1] is not None:
        _operating_point(axes, 1 - point[0], point[1])
    axes.set(xlabel="1 − specificity", ylabel="sensitivity", xlim=_UNIT, ylim=_UNIT)
    text = f"Lung metastasis or not, {_counted(of)}; the band is pointwise, by resampling."
    return Drawing(name, title, as_svg(plot, name), text)


def _precision_recall(of: Estimates, figures: Named) -> Drawing:
    name, title = "precision_recall_patients", "Source by patient (precision, recall)"
    if reason := single_class_reason(of.positive, of.unit):
        return Drawing(name, title, None, f"{reason}.")
    plot, axes = new_plot(title)
    recall, precision = precision_recall(of)
    steps = np.concatenate([[0.0], recall]), np.concatenate([precision[:1], precision])
    average = float(np.sum(np.diff(steps[0]) * precision))
    axes.plot(*steps, color=BLUE, drawstyle="steps-pre", label=f"average precision {average:.3f}")
    share = float(of.positive.mean())
    axes.axhline(share, color=GREY, lw=0.9, ls="--", label=f"chance: prevalence {share:.2f}")
    called = [figures[each].value for each in ("sensitivity", "ppv") if each in figures]
    if len(called) == 2 and called[0] is not None and called[1] is not None:
        _operating_point(axes, called[0], called[1])
    axes.set(xlabel="recall (sensitivity)", ylabel="precision (PPV)", xlim=_UNIT, ylim=_UNIT)
    text = f"Lung metastasis or not, {_counted(of)}. Precision holds for this prevalence only."
    return Drawing(name, title, as_svg(plot, name), text)


def _calibration(name: str, of: Estimates) -> Drawing:
    title = f"Source by {_unit(of)} (calibration)"
    if not of.positive.size:
        return Drawing(name, title, None, f"{single_class_reason(of.positive, of.unit)}.")
    plot, axes = new_plot(title)
    bins = calibration_bins(of)
    x, y = np.array([each.probability for each in bins]), np.array([each.share for each in bins])
    errors = [y - [each.low for each in bins], [each.high for each in bins] - y]
    axes.plot([0, 1], [0, 1], color=GREY, lw=0.9, ls="--", label="ideal")
    axes.errorbar(
        x, y, np.maximum(errors, 0), color=BLUE, marker="o", lw=1.2, capsize=2, label="observed"
    )
    for each in bins:
        axes.annotate(str(each.n), (each.probability, -0.13), ha="center", fontsize=8.5, color=GREY)
    axes.annotate("n", (-0.045, -0.13), ha="center", fontsize=8.5, color=GREY)
    axes.set(xlabel="estimated probability", ylabel="share of lung metastases")
    axes.set(xlim=(-0.06, 1.04), ylim=(-0.17, 1.04), yticks=np.linspace(0, 1, 6))
    text = f"Tenths of the probability scale, {_counted(of)}; bars are 95 % (Wilson)."
    return Drawing(name, title, as_svg(plot, name), text)


def _decision_curve(of: Estimates, curves: pd.DataFrame, threshold: float | None) -> Drawing:
    name, title = "decision_curve_patients", "Source by patient (decision curve)"
    if reason := single_class_reason(of.positive, of.unit):
        return Drawing(name, title, None, f"{reason}.")
    plot, axes = new_plot(title)
    curve = curves[curves["group"] == "patient"]
    thresholds, share = curve["threshold"].to_numpy(), float(of.positive.mean())
    _band(axes, thresholds, curve["low"], curve["high"])
    axes.plot(thresholds, curve["treat_all"], color=ORANGE, ls="--", label="call all")
    axes.axhline(0, color=GREY, lw=1.2, ls=":", label="call none")
    axes.plot(thresholds, curve["net_benefit"], color=BLUE, label="estimates")
    if threshold is not None and 0 < threshold < 1:
        at = float(np.interp(threshold, thresholds, curve["net_benefit"]))
        _operating_point(axes, threshold, at)
    axes.set(xlabel="threshold of the probability", ylabel="net benefit", xlim=_UNIT)
    axes.set_ylim(-max(0.1, share / 3), share * 1.25 + 0.02)
    text = f"Worth of calling patients positive at each threshold, {_counted(of)}."
    return Drawing(name, title, as_svg(plot, name), text)


def _band(axes: Axes, x: ArrayLike, low: ArrayLike, high: ArrayLike) -> None:
    axes.fill_between(x, low, high, color=BLUE, alpha=BAND_ALPHA, lw=0, label="95 % interval")


def _operating_point(axes: Axes, x: float, y: float) -> None:
    axes.plot(x, y, "D", color="black", ms=6.5, label="threshold in use", clip_on=False, zorder=5)


def _unit(of: Estimates) -> str:
    return "patient" if of.unit == "patients" else "lesion"


def _counted(of: Estimates) -> str:
    n_positive = int(of.positive.sum())
    return f"{of.positive.size} {of.unit}, {n_positive} of them positive"


def _signed(volume_ml: float) -> str:
    return f"{volume_ml:+.2f}"
