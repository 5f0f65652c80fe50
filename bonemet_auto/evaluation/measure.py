"""One case, measured: its row, a row for each lesion, and one for each candidate."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bonemet_auto.evaluation.folders import Kind
from bonemet_auto.evaluation.pairing import Match, lesion_volumes, match_overlaps
from bonemet_auto.evaluation.reading import (
    PredictedLesion,
    Prediction,
    Reference,
    read_prediction,
    read_reference,
)
from bonemet_auto.evaluation.segmentation import VoxelCounts, count_voxels, dice_from_iou
from bonemet_auto.evaluation.surface import case_outline, lesion_outlines
from bonemet_auto.raw_dataset import patient_label

IOU_THRESHOLDS = (0.1, 0.3, 0.5)
PRIMARY_IOU = IOU_THRESHOLDS[0]

Row = dict[str, Any]

PRIMARY_RULE = f"iou_{PRIMARY_IOU}"
CENTRE_RULE = "centre"
HIT_RULES = (*(f"iou_{t}" for t in IOU_THRESHOLDS), CENTRE_RULE)
"""Names of what may count as a hit: a mask IoU, or the prediction's centre."""


@dataclass(frozen=True)
class CaseJob:
    """All that is needed to measure one case; pickled for other processes."""

    case: str
    reference: Path
    predicted: Path
    reference_kind: Kind
    predicted_kind: Kind
    positive_class: int


@dataclass(frozen=True)
class MeasuredCase:
    """Rows of the cohort's tables: of the case, its lesions and its candidates."""

    row: Row
    lesions: list[Row]
    candidates: list[Row]


def measure_case(job: CaseJob) -> MeasuredCase:
    """Read, check and measure one case.

    Raises:
        DataError: files that are broken or do not fit each other.
    """
    reference = read_reference(job.case, job.reference, job.reference_kind)
    prediction = read_prediction(job.case, job.predicted, reference, job.predicted_kind)
    of_case = {"case": job.case, "patient_id": reference.labels.patient_id or job.case}
    hits = _hits(prediction, prediction.lesion_scores)
    lesions = _annotated_rows(reference, prediction, hits, job.positive_class)
    lesions += _false_positive_rows(reference, prediction, hits[PRIMARY_RULE])
    return MeasuredCase(
        of_case | _case_row(reference, prediction, hits, job.positive_class),
        [of_case | row for row in lesions],
        [of_case | row for row in _candidate_rows(prediction)],
    )


def _hits(prediction: Prediction, scores: Mapping[int, float]) -> dict[str, dict[int, Match]]:
    """What each prediction found, under each rule of what a hit is."""
    by_iou = {f"iou_{t}": match_overlaps(prediction.pairs, scores, t) for t in IOU_THRESHOLDS}
    return by_iou | {CENTRE_RULE: match_overlaps(prediction.centre_hits, scores, 1.0)}


def _case_row(
    reference: Reference,
    prediction: Prediction,
    hits: Mapping[str, dict[int, Match]],
    positive_class: int,
) -> Row:
    patient = prediction.patient
    found, centre = (
        sum(match.reference > 0 for match in hits[rule].values())
        for rule in (PRIMARY_RULE, CENTRE_RULE)
    )
    n_predicted = len(prediction.lesions)
    return {
        "patient_label": patient_label(reference.labels, positive_class),
        "probability": patient.probability if patient else None,
        "predicted_label": patient.label if patient else None,
        "n_reference": len(reference.labels.instances),
        "n_predicted": n_predicted,
        "n_found": found,
        "n_false_positive": n_predicted - found,
        "n_false_positive_centre": n_predicted - centre,
        "volume_mm3": _volume_mm3(reference, sum(reference.voxels.values())),
        **_case_outline(reference, prediction),
    }


def _case_outline(reference: Reference, prediction: Prediction) -> Row:
    """Voxel and surface figures of all lesions together; none of boxes."""
    if prediction.regions is None:
        return {}
    grid = reference.crop.geometry
    counts = [count_voxels(each.reference > 0, each.predicted > 0) for each in prediction.regions]
    voxels = VoxelCounts(
        shared=sum(each.shared for each in counts),
        reference=sum(each.reference for each in counts),
        predicted=sum(each.predicted for each in counts),
        total=math.prod(grid.shape),
    )
    return {
        "dsc": voxels.dice,
        "voxel_sensitivity": voxels.sensitivity,
        "voxel_specificity": voxels.specificity,
        "predicted_volume_mm3": _volume_mm3(reference, voxels.predicted),
        **asdict(case_outline(prediction.regions, grid.spacing_mm)),
    }


def _annotated_rows(
    reference: Reference,
    prediction: Prediction,
    hits: Mapping[str, dict[int, Match]],
    positive_class: int,
) -> list[Row]:
    """One row per annotated lesion."""
    found_by = {m.reference: found for found, m in hits[PRIMARY_RULE].items() if m.reference}
    hit = {rule: {m.reference for m in matches.values()} for rule, matches in hits.items()}
    outlines = _lesion_outline_rows(reference, prediction, found_by, hits[PRIMARY_RULE])
    lesions = {lesion.id: lesion for lesion in prediction.lesions}
    rows = []
    for instance, source in reference.labels.instances.items():
        found = found_by.get(instance)
        rows.append(
            {
                "outcome": "missed" if found is None else "found",
                "reference_id": instance,
                "is_lung": None if source is None else source == positive_class,
                "iou": 0.0 if found is None else hits[PRIMARY_RULE][found].iou,
                **_size(reference, reference.voxels[instance]),
                **_estimate(None if found is None else lesions[found]),
                **outlines.get(instance, _missed(prediction)),
                **{f"found_iou_{t}": instance in hit[f"iou_{t}"] for t in IOU_THRESHOLDS},
                "hit_centre": instance in hit[CENTRE_RULE],
            }
        )
    return rows


def _lesion_outline_rows(
    reference: Reference,
    prediction: Prediction,
    found_by: Mapping[int, int],
    matches: Mapping[int, Match],
) -> dict[int, Row]:
    """Figures of outlines of the lesions that were found, by annotated id; none of boxes."""
    if prediction.regions is None:
        return dict.fromkeys(found_by, {})
    outlines = lesion_outlines(prediction.regions, found_by, reference.crop.geometry.spacing_mm)
    voxels = _predicted_voxels(prediction)
    return {
        instance: {
            "dsc": dice_from_iou(matches[found_by[instance]].iou),
            "predicted_volume_mm3": _volume_mm3(reference, voxels[found_by[instance]]),
            **asdict(outline),
        }
        for instance, outline in outlines.items()
    }


def _missed(prediction: Prediction) -> Row:
    """Nothing was outlined, and from nothing there is no distance."""
    if prediction.regions is None:
        return {}
    return {"dsc": 0.0, "nsd_1mm": 0.0, "nsd_2mm": 0.0, "predicted_volume_mm3": 0.0}


def _false_positive_rows(
    reference: Reference, prediction: Prediction, matches: Mapping[int, Match]
) -> list[Row]:
    voxels = _predicted_voxels(prediction)
    missed = {"outcome": "false_positive", "reference_id": 0, "iou": 0.0, "hit_centre": False}
    missed |= {f"found_iou_{t}": False for t in IOU_THRESHOLDS}
    rows = []
    for lesion in prediction.lesions:
        if matches[lesion.id].reference == 0:
            row = missed | _missed(prediction) | _estimate(lesion)
            if prediction.regions is not None:
                row |= _size(reference, voxels.get(lesion.id, 0))
                row["predicted_volume_mm3"] = row["volume_mm3"]
            rows.append(row)
    return rows


def _predicted_voxels(prediction: Prediction) -> dict[int, int]:
    """Voxels of each predicted lesion."""
    regions = prediction.regions or ()
    parts = (lesion_volumes(region.predicted) for region in regions)
    return {lesion: n for part in parts for lesion, n in part.items()}


def _volume_mm3(reference: Reference, voxels: int) -> float:
    return voxels * reference.crop.geometry.voxel_volume_mm3


def _size(reference: Reference, voxels: int) -> Row:
    """Volume, and the diameter of the ball of that volume."""
    volume_mm3 = _volume_mm3(reference, voxels)
    return {"volume_mm3": volume_mm3, "diameter_mm": (6 * volume_mm3 / np.pi) ** (1 / 3)}


def _estimate(lesion: PredictedLesion | None) -> Row:
    if lesion is None:
        return {"predicted_id": 0, "score": None, "p_lung_metastasis": None}
    return {
        "predicted_id": lesion.id,
        "score": lesion.score,
        "p_lung_metastasis": lesion.p_lung_metastasis,
    }


def _candidate_rows(prediction: Prediction) -> list[Row]:
    """One row per lesion and candidate, with its hits when all of them are matched together."""
    scores = prediction.scores
    hits = _hits(prediction, scores)
    return [
        {"score": score}
        | {f"hit_{rule}": matches[number].reference > 0 for rule, matches in hits.items()}
        for number, score in scores.items()
    ]
