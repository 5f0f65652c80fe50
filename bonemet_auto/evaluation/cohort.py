"""From two folders to three tables: cases, lesions and candidates of a cohort."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bonemet_auto.errors import DataError
from bonemet_auto.evaluation.pairing import Match, lesion_volumes, match_overlaps
from bonemet_auto.evaluation.reading import Prediction, Reference, read_prediction, read_reference
from bonemet_auto.evaluation.segmentation import count_voxels, dice_from_iou
from bonemet_auto.images import find_images
from bonemet_auto.raw_dataset import patient_label
from bonemet_auto.schema import DatasetInfo, LesionRecord, read_json

IOU_THRESHOLDS = (0.1, 0.3, 0.5)
PRIMARY_IOU = IOU_THRESHOLDS[0]

Row = dict[str, Any]

_CASE_COLUMNS = {
    "case": "str", "patient_id": "str", "patient_label": "Int64", "probability": "float64",
    "predicted_label": "Int64", "n_reference": "int64", "n_predicted": "int64",
    "n_found": "int64", "n_false_positive": "int64", "dsc": "float64",
    "voxel_sensitivity": "float64", "voxel_specificity": "float64",
    "volume_mm3": "float64", "predicted_volume_mm3": "float64",
}  # fmt: skip
_LESION_COLUMNS = {
    "case": "str", "patient_id": "str", "outcome": "str", "reference_id": "int64",
    "predicted_id": "int64", "is_lung": "boolean", "score": "float64",
    "p_lung_metastasis": "float64", "iou": "float64", "dsc": "float64", "volume_mm3": "float64",
    "diameter_mm": "float64", **{f"found_iou_{t}": "bool" for t in IOU_THRESHOLDS},
}  # fmt: skip
_CANDIDATE_COLUMNS = {
    "patient_id": "str", "score": "float64", **{f"hit_iou_{t}": "bool" for t in IOU_THRESHOLDS}
}  # fmt: skip


@dataclass(frozen=True)
class Cohort:
    """What was measured, before any averaging.

    Attributes:
        cases: one row per scan; blank labels and probabilities are unknown.
        lesions: one row per annotated lesion (`outcome` found or missed, by the lesions at the
            operating point) and per false positive (`reference_id` 0).
        candidates: one row per prediction, those below the operating point included.
        left_out: predicted cases without a reference.
    """

    cases: pd.DataFrame
    lesions: pd.DataFrame
    candidates: pd.DataFrame
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class _MeasuredCase:
    row: Row
    lesions: list[Row]
    candidates: list[Row]


def read_cohort(pred: Path, ref: Path, cases: Collection[str] | None = None) -> Cohort:
    """Read, check and measure all cases of a reference folder, or those named.

    Args:
        pred: folder in our prediction format.
        ref: folder of CASE.nii.gz and CASE.json as in `labelsTs`; `dataset.json` beside it names
            the positive class, otherwise that is class 1.
        cases: names of the cases to measure; None for all.

    Raises:
        DataError: a case without a prediction, or files that are broken or do not fit each other;
            all such cases are named.
    """
    references, predictions = find_images(ref), find_images(pred)
    if cases is not None:
        references = {case: path for case, path in references.items() if case in cases}
    missing = sorted(references.keys() - predictions.keys())
    if missing:
        raise DataError(
            f"{len(missing)} of {len(references)} cases of {ref} have no prediction in {pred}: "
            f"{', '.join(missing)}. Predict them, or take their reference out."
        )
    positive_class = _positive_class(ref)
    measured: list[_MeasuredCase] = []
    faults: list[str] = []
    for case, path in references.items():
        try:
            measured.append(_measure_case(case, path, predictions[case], positive_class))
        except DataError as fault:  # noqa: PERF203  all faults are reported together
            faults.append(str(fault))
    if faults:
        raise DataError(f"{len(faults)} of {len(references)} cases: " + " | ".join(faults))
    return Cohort(
        _table((case.row for case in measured), _CASE_COLUMNS),
        _table((row for case in measured for row in case.lesions), _LESION_COLUMNS),
        _table((row for case in measured for row in case.candidates), _CANDIDATE_COLUMNS),
        tuple(sorted(predictions.keys() - references.keys())),
    )


def _table(rows: Iterable[Row], columns: dict[str, str]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=list(columns)).astype(columns)


def _positive_class(ref: Path) -> int:
    described = ref.resolve().parent / "dataset.json"
    return read_json(described, DatasetInfo).positive_class if described.is_file() else 1


def _measure_case(
    case: str, reference_path: Path, predicted_path: Path, positive_class: int
) -> _MeasuredCase:
    reference = read_reference(case, reference_path)
    prediction = read_prediction(case, predicted_path, reference)
    of_case = {"case": case, "patient_id": reference.labels.patient_id or case}
    at_point = [
        match_overlaps(prediction.pairs, prediction.lesion_scores, t) for t in IOU_THRESHOLDS
    ]
    lesions = _annotated_rows(reference, prediction, at_point, positive_class)
    lesions += _false_positive_rows(reference, prediction, at_point[0])
    return _MeasuredCase(
        of_case | _case_row(reference, prediction, at_point[0], positive_class),
        [of_case | row for row in lesions],
        [of_case | row for row in _candidate_rows(prediction)],
    )


def _case_row(
    reference: Reference, prediction: Prediction, matches: dict[int, Match], positive_class: int
) -> Row:
    voxels = count_voxels(reference.instances > 0, prediction.mask > 0)
    patient = prediction.record.patient
    n_found = sum(match.reference > 0 for match in matches.values())
    return {
        "patient_label": patient_label(reference.labels, positive_class),
        "probability": patient.probability if patient else None,
        "predicted_label": patient.label if patient else None,
        "n_reference": len(reference.labels.instances),
        "n_predicted": len(matches),
        "n_found": n_found,
        "n_false_positive": len(matches) - n_found,
        "dsc": voxels.dice,
        "voxel_sensitivity": voxels.sensitivity,
        "voxel_specificity": voxels.specificity,
        "volume_mm3": voxels.reference * reference.geometry.voxel_volume_mm3,
        "predicted_volume_mm3": voxels.predicted * reference.geometry.voxel_volume_mm3,
    }


def _annotated_rows(
    reference: Reference,
    prediction: Prediction,
    at_point: Sequence[dict[int, Match]],
    positive_class: int,
) -> list[Row]:
    """One row per annotated lesion; `at_point` holds the matches at each IoU threshold."""
    found_by = {match.reference: found for found, match in at_point[0].items()}
    records = {lesion.id: lesion for lesion in prediction.record.lesions}
    rows = []
    for instance, source in reference.labels.instances.items():
        record = records[found_by[instance]] if instance in found_by else None
        iou = at_point[0][record.id].iou if record else 0.0
        hits = {
            f"found_iou_{threshold}": any(m.reference == instance for m in matches.values())
            for threshold, matches in zip(IOU_THRESHOLDS, at_point, strict=True)
        }
        rows.append(
            {
                "outcome": "found" if record else "missed",
                "reference_id": instance,
                "is_lung": None if source is None else source == positive_class,
                "iou": iou,
                "dsc": dice_from_iou(iou),
                **_size(reference, reference.voxels[instance]),
                **_estimate(record),
                **hits,
            }
        )
    return rows


def _false_positive_rows(
    reference: Reference, prediction: Prediction, matches: dict[int, Match]
) -> list[Row]:
    voxels = lesion_volumes(prediction.mask)
    return [
        {
            "outcome": "false_positive",
            "reference_id": 0,
            "iou": 0.0,
            "dsc": 0.0,
            **_size(reference, voxels.get(record.id, 0)),
            **_estimate(record),
            **{f"found_iou_{threshold}": False for threshold in IOU_THRESHOLDS},
        }
        for record in prediction.record.lesions
        if matches[record.id].reference == 0
    ]


def _size(reference: Reference, voxels: int) -> Row:
    """Volume, and the diameter of the ball of that volume."""
    volume_mm3 = voxels * reference.geometry.voxel_volume_mm3
    return {"volume_mm3": volume_mm3, "diameter_mm": (6 * volume_mm3 / np.pi) ** (1 / 3)}


def _estimate(record: LesionRecord | None) -> Row:
    if record is None:
        return {"predicted_id": 0, "score": None, "p_lung_metastasis": None}
    return {
        "predicted_id": record.id,
        "score": record.score,
        "p_lung_metastasis": record.p_lung_metastasis,
    }


def _candidate_rows(prediction: Prediction) -> list[Row]:
    """One row per lesion and candidate, with its hits when all of them are matched together."""
    matches = {t: match_overlaps(prediction.pairs, prediction.scores, t) for t in IOU_THRESHOLDS}
    return [
        {"score": score}
        | {f"hit_iou_{t}": found[predicted].reference > 0 for t, found in matches.items()}
        for predicted, score in prediction.scores.items()
    ]
