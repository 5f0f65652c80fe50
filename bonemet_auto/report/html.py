"""`report.html`: a cohort's figures, patients and pictures in one file that needs no network.

Of predictions without a reference, each case has a page of its own as well.
"""

import base64
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bonemet_auto import __version__
from bonemet_auto.errors import DataError
from bonemet_auto.evaluation.evaluate import Evaluation
from bonemet_auto.evaluation.paper import (
    PAPER_ROWS,
    PUBLISHED_COHORT,
    MeasuredCohort,
    in_order,
    measured_cohort,
)
from bonemet_auto.evaluation.table import other_figures
from bonemet_auto.files import write_text
from bonemet_auto.images import list_images
from bonemet_auto.report.cases import (
    CaseSection,
    OpenCase,
    lesion_views,
    main_views,
    measured_sections,
    middle_views,
    open_case,
    predicted_sections,
)
from bonemet_auto.report.pictures import FIELD_MM, Line, View, grey_png
from bonemet_auto.report.plots import Drawing, draw_all
from bonemet_auto.report.templates import load_template
from bonemet_auto.report.viewer import page_of
from bonemet_auto.result_schema import LesionRecord
from bonemet_auto.scans import Scan

logger = logging.getLogger(__name__)

REPORT_NAME = "report.html"
FIGURES = "figures"
CASES = "cases"
MAX_PICTURED_CASES = 100
"""Keeps a page below 15 MB; further cases appear in the tables only."""
BEST_SHARE = 0.1
"""Share of the pictured cases that are the best ones, where not all can be pictured."""
MAX_PICTURED_LESIONS = 240
"""The same for pages that picture every lesion, `NEAR_MM` around each."""
MOST_LESIONS = 12
MOST_LESIONS_ALONE = 24
"""Lesions that are pictured of one case, among others and on its own page."""
NEAR_MM = 60.0
N_EXTREMES = 6


@dataclass(frozen=True)
class _Picture:
    """A view with its pixels and outlines as a page holds them."""

    view: View
    png: str
    reference: str
    predicted: str


@dataclass(frozen=True)
class _Group:
    """Three planes, and what they go through."""

    title: str
    pictures: list[_Picture]


@dataclass(frozen=True)
class _PicturedCase:
    """A case with its pictures, or the reason why there are none; `page` shows it alone."""

    number: int
    section: CaseSection
    groups: list[_Group]
    remark: str
    page: str = ""

    @property
    def pictures(self) -> list[_Picture]:
        """Of the first group, if there is one."""
        return self.groups[0].pictures if self.groups else []


def write_report(
    pred: Path,
    ref: Path,
    images: Mapping[str, Scan],
    evaluation: Evaluation,
    out: Path,
    cohorts: Sequence[MeasuredCohort] = (),
) -> Path:
    """Write an evaluation's `report.html`, and its drawings as files beside it.

    Cases without a readable image come without pictures.

    Args:
        pred: folder in our prediction format.
        ref: folder of references, to outline them.
        images: the scans by case id; may lack some.
        evaluation: figures and tables.
        out: folder for the page.
        cohorts: the columns of the publication's table; otherwise this evaluation as external.

    Returns:
        The page's path.
    """
    sections = measured_sections(pred, evaluation.cases, evaluation.lesions)
    drawings = draw_all(evaluation, _patient_threshold(sections))
    _write_drawings(drawings, out / FIGURES)
    pictured = list(_illustrate(sections, pred, ref, images))
    shown = [item for item in pictured if item.groups]
    page = load_template(REPORT_NAME).render(
        version=__version__,
        cases=sections,
        pictured=pictured,
        numbers={item.section.case: item.number for item in pictured},
        n_worst=len(_worst(sections)),
        worst=shown[:N_EXTREMES],
        best=_best(shown),
        viewers=_viewers(out, sections),
        evaluation=evaluation,
        cohorts=in_order(cohorts) or [measured_cohort(evaluation, "external")],
        published=PUBLISHED_COHORT,
        paper_rows=PAPER_ROWS,
        other_figures=other_figures(evaluation.figures),
        drawings=drawings,
    )
    write_text(out / REPORT_NAME, page)
    return out / REPORT_NAME


def write_prediction_report(pred: Path, images: Mapping[str, Scan]) -> Path:
    """Write `report.html` of predictions without a reference, and `cases/CASE.html` of each.

    Args:
        pred: folder in our prediction format; the pages go there.
        images: the scans by case id; may lack some.

    Returns:
        The path of the cohort's page.

    Raises:
        DataError: the record of a case is missing or broken.
    """
    known = [case for case in list_images(pred) if (pred / f"{case}.json").is_file()]
    sections = predicted_sections(pred, known)
    viewers = _viewers(pred, sections)
    most = _lesions_per_case(len(sections))
    pictured = []
    for number, section in enumerate(sections, 1):
        opened, remark = _open(pred, None, section.case, images)
        page = f"{CASES}/{section.case}.html"
        alone = _lesion_groups(opened, MOST_LESIONS_ALONE, FIELD_MM)
        item = _PicturedCase(number, section, alone, remark)
        _write_predictions(pred / page, [section], [item], viewers, alone=section.case)
        if number <= MAX_PICTURED_CASES:
            near = _lesion_groups(opened, most, NEAR_MM)
            pictured.append(_PicturedCase(number, section, near, remark, page))
    _write_predictions(pred / REPORT_NAME, sections, pictured, viewers)
    return pred / REPORT_NAME


def _write_predictions(
    path: Path,
    sections: list[CaseSection],
    pictured: list[_PicturedCase],
    viewers: set[str],
    alone: str = "",
) -> None:
    """Write the page of a cohort, or of the case `alone`."""
    page = load_template("predictions.html").render(
        version=__version__,
        cases=sections,
        pictured=pictured,
        numbers={item.section.case: item.number for item in pictured},
        viewers=viewers,
        alone=alone,
        most=MOST_LESIONS_ALONE if alone else _lesions_per_case(len(sections)),
        field_mm=FIELD_MM if alone else NEAR_MM,
    )
    write_text(path, page)


def _lesions_per_case(n_cases: int) -> int:
    """How many lesions of each case a cohort's page can picture."""
    of_each = MAX_PICTURED_LESIONS // max(1, min(n_cases, MAX_PICTURED_CASES))
    return max(1, min(MOST_LESIONS, of_each))


def _viewers(out: Path, sections: list[CaseSection]) -> set[str]:
    return {item.case for item in sections if page_of(out, item.case).is_file()}


def _patient_threshold(sections: list[CaseSection]) -> float | None:
    """The threshold of the patients' estimates, if it is the same for all."""
    thresholds = {item.estimate.threshold for item in sections if item.estimate}
    return thresholds.pop() if len(thresholds) == 1 else None


def _write_drawings(drawings: Sequence[Drawing], folder: Path) -> None:
    """Write each as a file; one of an earlier run that has none any more is removed."""
    for drawing in drawings:
        path = folder / f"{drawing.name}.svg"
        if drawing.svg is None:
            path.unlink(missing_ok=True)
        else:
            write_text(path, drawing.svg)


def _worst(sections: list[CaseSection]) -> list[CaseSection]:
    """The worst cases that are pictured; all of them where there is room."""
    if len(sections) <= MAX_PICTURED_CASES:
        return sections
    return sections[: MAX_PICTURED_CASES - int(BEST_SHARE * MAX_PICTURED_CASES)]


def _best(shown: list[_PicturedCase]) -> list[_PicturedCase]:
    """The best with annotated lesions, best first, that are not among the worst."""
    annotated = [
        item
        for item in shown[N_EXTREMES:]
        if item.section.agreement and item.section.agreement.n_reference
    ]
    return annotated[: -N_EXTREMES - 1 : -1]


def _illustrate(
    sections: list[CaseSection], pred: Path, ref: Path, images: Mapping[str, Scan]
) -> Iterator[_PicturedCase]:
    """The worst cases with pictures, and the best ones if not all can have some."""
    n_worst = len(_worst(sections))
    n_best = min(MAX_PICTURED_CASES, len(sections)) - n_worst
    for number, section in enumerate(sections, 1):
        if n_worst < number <= len(sections) - n_best:
            continue
        opened, remark = _open(pred, ref, section.case, images)
        groups = [_group("", main_views(opened))] if opened else []
        yield _PicturedCase(number, section, groups, remark)


def _open(
    pred: Path, ref: Path | None, case: str, images: Mapping[str, Scan]
) -> tuple[OpenCase | None, str]:
    """What pictures need, or the reason why there can be none."""
    if case not in images:
        return None, "No picture: the image was not given."
    try:
        return open_case(pred, ref, case, images[case]), ""
    except DataError as error:
        logger.warning("no picture of case %s: %s", case, error)
        return None, f"No picture: {error}"


def _lesion_groups(opened: OpenCase | None, most: int, field_mm: float) -> list[_Group]:
    """Pictures of every lesion; where there is none, of the middle of the scan."""
    if opened is None:
        return []
    groups = [
        _group(_title(lesion), views) for lesion, views in lesion_views(opened, most, field_mm)
    ]
    return groups or [_group("middle of the scan", middle_views(opened))]


def _title(lesion: LesionRecord) -> str:
    return f"#{lesion.id}: score {lesion.score:.2f}, P(lung) {lesion.p_lung_metastasis:.2f}"


def _group(title: str, views: list[View]) -> _Group:
    return _Group(title, [_picture(view) for view in views])


def _picture(view: View) -> _Picture:
    png = base64.b64encode(grey_png(view.grey)).decode("ascii")
    return _Picture(view, png, _svg_path(view.reference), _svg_path(view.predicted))


def _svg_path(lines: tuple[Line, ...]) -> str:
    """Closed outlines as the `d` of an SVG path, to a tenth of a millimetre."""
    return "".join("M" + " ".join(f"{x:.1f},{y:.1f}" for x, y in line) + "Z" for line in lines)
