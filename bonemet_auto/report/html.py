"""`report.html`: figures, patients and pictures of a cohort in one file that needs no network."""

import base64
import io
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure as Plot

from bonemet_auto import __version__
from bonemet_auto.errors import DataError
from bonemet_auto.evaluation.bootstrap import Figure
from bonemet_auto.evaluation.detection import FROC_RATES
from bonemet_auto.evaluation.evaluate import Evaluation, Figures
from bonemet_auto.evaluation.paper import PAPER_ROWS
from bonemet_auto.evaluation.table import other_figures
from bonemet_auto.files import write_text
from bonemet_auto.images import list_images
from bonemet_auto.report.cases import (
    CaseSection,
    measured_sections,
    picture_case,
    predicted_sections,
)
from bonemet_auto.report.pictures import Line, View, grey_png
from bonemet_auto.report.templates import load_template
from bonemet_auto.report.viewer import page_of
from bonemet_auto.scans import Scan

logger = logging.getLogger(__name__)

REPORT_NAME = "report.html"
MAX_PICTURED_CASES = 100
"""Keeps the page below 15 MB; further cases appear in the tables only."""

_BLUE = "#0072B2"


@dataclass(frozen=True)
class _Picture:
    """A view with its pixels and outlines as a page holds them."""

    view: View
    png: str
    reference: str
    predicted: str


def write_report(
    pred: Path,
    ref: Path | None,
    images: Mapping[str, Scan],
    evaluation: Evaluation | None,
    out: Path,
) -> Path:
    """Write `report.html`; cases without a readable image come without pictures.

    Args:
        pred: folder in our prediction format.
        ref: folder of references, to outline them; the cases of `evaluation` must be there.
        images: the scans by case id; may lack some.
        evaluation: figures; without them the page lists what was predicted.
        out: folder for the page.

    Returns:
        The page's path.

    Raises:
        DataError: the record of a case is missing or broken.
    """
    if evaluation is None:
        known = [case for case in list_images(pred) if (pred / f"{case}.json").is_file()]
        sections = predicted_sections(pred, known)
    else:
        sections = measured_sections(pred, evaluation.cases, evaluation.lesions)
    page = load_template(REPORT_NAME).render(
        version=__version__,
        cases=sections,
        pictured=_illustrate(sections, pred, ref, images),
        max_pictured=MAX_PICTURED_CASES,
        viewers={item.case for item in sections if page_of(out, item.case).is_file()},
        evaluation=evaluation,
        paper_rows=_paper_rows(evaluation.figures) if evaluation else [],
        other_figures=other_figures(evaluation.figures) if evaluation else {},
        froc_svg=_froc_svg(evaluation.figures["detection"]) if evaluation else None,
    )
    path = out / REPORT_NAME
    write_text(path, page)
    return path


def _illustrate(
    sections: list[CaseSection], pred: Path, ref: Path | None, images: Mapping[str, Scan]
) -> Iterator[tuple[CaseSection, list[_Picture], str]]:
    """Each case with its pictures, or with the reason why there are none."""
    for number, section in enumerate(sections):
        if number >= MAX_PICTURED_CASES:
            return
        if section.case not in images:
            yield section, [], "No picture: the image was not given."
            continue
        try:
            views = picture_case(pred, ref, section.case, images[section.case])
        except DataError as error:
            logger.warning("no picture of case %s: %s", section.case, error)
            yield section, [], f"No picture: {error}"
            continue
        yield section, [_picture(view) for view in views], ""


def _picture(view: View) -> _Picture:
    png = base64.b64encode(grey_png(view.grey)).decode("ascii")
    return _Picture(view, png, _svg_path(view.reference), _svg_path(view.predicted))


def _svg_path(lines: tuple[Line, ...]) -> str:
    """Closed outlines as the `d` of an SVG path, to a tenth of a millimetre."""
    return "".join("M" + " ".join(f"{x:.1f},{y:.1f}" for x, y in line) + "Z" for line in lines)


def _paper_rows(figures: Figures) -> list[tuple[str, float, Figure]]:
    return [(row.title, row.external, figures[row.group][row.name]) for row in PAPER_ROWS]


def _froc_svg(detection: Mapping[str, Figure]) -> str | None:
    """Lesion sensitivity over false positives per scan, or None where no lesion is annotated."""
    points = [detection[f"sensitivity_at_{rate:g}_fp"] for rate in FROC_RATES]
    values = [point.value for point in points if point.value is not None]
    if len(values) < len(points):
        return None
    plot = Plot(figsize=(5.2, 3.6), layout="constrained")
    axes = plot.subplots()
    low = [point.low for point in points if point.low is not None]
    high = [point.high for point in points if point.high is not None]
    if len(low) == len(high) == len(points):
        axes.fill_between(
            FROC_RATES, low, high, color=_BLUE, alpha=0.15, lw=0, label="95 % interval"
        )
    axes.plot(FROC_RATES, values, color=_BLUE, marker="o", label="all thresholds")
    chosen, fp = detection["sensitivity_iou_0.1"].value, detection["fp_per_scan"].value
    if chosen is not None and fp is not None:
        # A logarithmic axis has no 0: an operating point without false positives sits at the edge.
        at = max(fp, FROC_RATES[0])
        axes.plot(at, chosen, "D", color="black", ms=7, label="operating point", clip_on=False)
    axes.set_xscale("log", base=2)
    axes.set_xticks(FROC_RATES, [f"{rate:g}" for rate in FROC_RATES])
    axes.set(xlabel="false positives per scan", ylabel="lesion sensitivity (IoU ≥ 0.1)")
    axes.set(ylim=(0, 1.02))
    axes.grid(color="#dddddd", lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "froc", "svg.fonttype": "none"}):
        plot.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
