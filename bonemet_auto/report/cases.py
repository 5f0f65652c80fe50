"""What the report says and shows of one case, read from the files of a prediction."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.ndimage import find_objects

from bonemet_auto.errors import DataError
from bonemet_auto.geometry import Index
from bonemet_auto.images import Volume, list_images, read_instances
from bonemet_auto.report.pictures import FIELD_MM, InstanceMap, View, centre_of, three_views
from bonemet_auto.result_schema import CasePrediction, LesionRecord, PatientRecord
from bonemet_auto.scans import Scan, read_scan
from bonemet_auto.schema import read_json

_OUTCOMES = {"found": "found", "missed": "missed", "false_positive": "false"}


@dataclass(frozen=True)
class LesionRow:
    """One line of a case's table; what only a reference could tell is empty or None without one.

    Ids are values in the two maps, 0 where a lesion is in one of them only.
    """

    predicted_id: int
    reference_id: int
    outcome: str
    source: str
    score: float | None
    p_lung: float | None
    diameter_mm: float | None
    volume_mm3: float | None
    dsc: float | None


@dataclass(frozen=True)
class Agreement:
    """A case against its reference; `source` is the patient's true one.

    `dsc` is None where boxes were predicted, and no outlines.
    """

    source: str
    dsc: float | None
    n_reference: int
    n_found: int
    n_false_positive: int


@dataclass(frozen=True)
class CaseSection:
    """A case of the report; `agreement` is None where there is no reference."""

    case: str
    patient_id: str
    estimate: PatientRecord | None
    agreement: Agreement | None
    lesions: tuple[LesionRow, ...]
    warnings: tuple[str, ...]


def predicted_sections(pred: Path, cases: list[str]) -> list[CaseSection]:
    """Cases without reference, in falling order of the patient estimate.

    Raises:
        DataError: a case's JSON is missing or broken.
    """
    records = [read_record(pred, case) for case in cases]
    sections = [
        CaseSection(
            record.case,
            record.case,
            record.patient,
            None,
            tuple(_predicted_row(each) for each in by_score(record.lesions)),
            record.warnings,
        )
        for record in records
    ]
    return sorted(sections, key=lambda each: -each.estimate.probability if each.estimate else 0.0)


def measured_sections(pred: Path, cases: pd.DataFrame, lesions: pd.DataFrame) -> list[CaseSection]:
    """Cases with a reference, lowest DSC first; equal ones by false positives, then by name.

    Args:
        pred: folder of the predictions.
        cases: one row per scan, as `Evaluation.cases`.
        lesions: annotated lesions and false positives, as `Evaluation.lesions`.
    """
    order = cases.sort_values(["dsc", "n_false_positive", "case"], ascending=[True, False, True])
    sections = []
    for row in order.to_dict("records"):
        record = known_record(pred, row["case"])
        rows = lesions[lesions["case"] == row["case"]].to_dict("records")
        sections.append(
            CaseSection(
                row["case"],
                row["patient_id"],
                record.patient if record else None,
                Agreement(
                    _source_name(row["patient_label"], "not lung"),
                    _known(row["dsc"]),
                    row["n_reference"],
                    row["n_found"],
                    row["n_false_positive"],
                ),
                tuple(_measured_row(each) for each in rows),
                record.warnings if record else (),
            )
        )
    return sections


def read_record(pred: Path, case: str) -> CasePrediction:
    """`CASE.json` of a prediction folder."""
    return read_json(pred / f"{case}.json", CasePrediction, "Predict the case again.")


def known_record(pred: Path, case: str) -> CasePrediction | None:
    """The same of a case that was evaluated; None where another program has predicted it."""
    try:
        return read_record(pred, case)
    except DataError:
        return None


@dataclass(frozen=True)
class OpenCase:
    """The volumes of a case, on one grid; `reference` is None where there is none."""

    scan: Volume
    predicted: InstanceMap
    reference: InstanceMap | None
    lesions: tuple[LesionRecord, ...]

    def views(self, centre: Index, field_mm: float = FIELD_MM) -> list[View]:
        """Three planes through a voxel, at most `field_mm` across."""
        maps = self.reference, self.predicted
        return three_views(
            self.scan.array, self.scan.geometry, centre, *maps, self.lesions, field_mm
        )


def open_case(pred: Path, ref: Path | None, case: str, image: Scan) -> OpenCase:
    """Read what pictures of a case need.

    Raises:
        DataError: a file cannot be read, or lies on another grid than the image.
    """
    scan, record = read_scan(image), known_record(pred, case)
    return OpenCase(
        scan,
        _on_grid(scan, pred, case),
        _on_grid(scan, ref, case) if ref else None,
        by_score(record.lesions) if record else (),
    )


def main_views(case: OpenCase) -> list[View]:
    """Planes through the largest annotated lesion, else the best prediction, else the middle.

    Without scores the largest prediction is the best one.
    """
    for drawn in (case.reference, None if case.lesions else case.predicted):
        if drawn is not None and drawn.any():
            return case.views(centre_of(drawn, int(np.bincount(drawn[drawn > 0]).argmax())))
    return next((views for _, views in lesion_views(case, 1, FIELD_MM)), middle_views(case))


def middle_views(case: OpenCase) -> list[View]:
    """Planes through the middle of the scan."""
    z, y, x = case.scan.geometry.shape
    return case.views((z // 2, y // 2, x // 2))


def lesion_views(
    case: OpenCase, most: int, field_mm: float
) -> Iterator[tuple[LesionRecord, list[View]]]:
    """Planes through each predicted lesion that has a voxel, highest score first.

    Args:
        case: its volumes.
        most: lesions to show.
        field_mm: how far to look around.
    """
    places = dict(enumerate(find_objects(case.predicted), 1)) if case.lesions else {}
    for lesion in case.lesions[:most]:
        if place := places.get(lesion.id):
            within = centre_of(case.predicted[place], lesion.id)
            z, y, x = (int(axis.start) + at for axis, at in zip(place, within, strict=True))
            yield lesion, case.views((z, y, x), field_mm)


def by_score(lesions: Iterable[LesionRecord]) -> tuple[LesionRecord, ...]:
    """Highest score first; equal ones by id."""
    return tuple(sorted(lesions, key=lambda lesion: (-lesion.score, lesion.id)))


def _on_grid(scan: Volume, folder: Path, case: str) -> Any:  # noqa: ANN401  a uint16 array
    path = list_images(folder).get(case, folder / f"{case}.nii.gz")
    volume = read_instances(path)
    difference = scan.geometry.mismatch(volume.geometry)
    if difference:
        raise DataError(f"{path.name} lies on another grid than the image: {difference}")
    return volume.array


def _predicted_row(lesion: LesionRecord) -> LesionRow:
    return LesionRow(
        lesion.id,
        0,
        "",
        "",
        lesion.score,
        lesion.p_lung_metastasis,
        ball_diameter_mm(lesion.volume_mm3),
        lesion.volume_mm3,
        None,
    )


def _measured_row(row: Mapping[Any, Any]) -> LesionRow:
    annotated = row["reference_id"] > 0
    return LesionRow(
        row["predicted_id"],
        row["reference_id"],
        _OUTCOMES[row["outcome"]],
        _source_name(row["is_lung"], "other") if annotated else "",
        _known(row["score"]),
        _known(row["p_lung_metastasis"]),
        _known(row["diameter_mm"]),
        _known(row["volume_mm3"]),
        _known(row["dsc"]) if annotated else None,
    )


def _source_name(is_lung: Any, otherwise: str) -> str:  # noqa: ANN401  pandas gives a value or NA
    if pd.isna(is_lung):
        return "unknown"
    return "lung" if is_lung else otherwise


def _known(value: float) -> float | None:
    return None if pd.isna(value) else float(value)


def ball_diameter_mm(volume_mm3: float) -> float:
    """Diameter of the ball of a volume, as the evaluation gives it."""
    return float((6 * volume_mm3 / math.pi) ** (1 / 3))
