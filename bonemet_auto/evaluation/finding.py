"""What a cohort's predictions find and outline, as functions of patient weights."""

import numpy as np
import pandas as pd

from bonemet_auto.evaluation.bootstrap import Measure, mean_statistic
from bonemet_auto.evaluation.classification import share_measure
from bonemet_auto.evaluation.cohort import IOU_THRESHOLDS, PRIMARY_IOU
from bonemet_auto.evaluation.detection import (
    FROC_RATES,
    Candidates,
    average_precision,
    froc_sensitivity,
)

SIZE_BINS = {
    "below_10mm": (0.0, 10.0, "left"),
    "10_to_20mm": (10.0, 20.0, "both"),
    "above_20mm": (20.0, np.inf, "right"),
}
"""Bounds of the diameter, and which of them belong to the bin."""

_NO_LESIONS = "no annotated lesions"


def mean_measure(
    rows: pd.DataFrame, column: str, n_patients: int, note: str, empty: str
) -> Measure:
    """Mean of a column over the rows that have a value, with the reason `empty` if none has.

    Args:
        rows: table with a column `patient`, 0 to n_patients - 1.
        column: to average.
        n_patients: of the cohort.
        note: what the rows are.
        empty: why there is no mean, for no row.
    """
    known = rows[rows[column].notna()]
    statistic = mean_statistic(
        known[column].to_numpy(np.float64), known["patient"].to_numpy(np.int64), n_patients
    )
    return Measure(statistic, len(known), note if len(known) else empty)


def segmentation_measures(
    cases: pd.DataFrame, patients: pd.DataFrame, n_patients: int
) -> dict[str, Measure]:
    """Voxel-wise agreement, a mean over patients."""
    empty = int((cases["n_reference"] == 0).sum())
    left_out = f"patients; {empty} of {len(cases)} scans left out (empty reference)"
    no_background = "every scan is filled by its reference"
    return {
        "dsc": mean_measure(patients, "dsc", n_patients, "patients", ""),
        "voxel_sensitivity": mean_measure(
            patients, "voxel_sensitivity", n_patients, left_out, f"all {empty} references are empty"
        ),
        "voxel_specificity": mean_measure(
            patients, "voxel_specificity", n_patients, "patients", no_background
        ),
    }


def found_measures(annotated: pd.DataFrame, n_patients: int) -> dict[str, Measure]:
    """Which annotated lesions are found at the operating point, by overlap and by size."""
    measures = {
        f"sensitivity_iou_{iou}": _found(annotated, iou, n_patients, _NO_LESIONS)
        for iou in IOU_THRESHOLDS
    }
    for name, (low, high, inclusive) in SIZE_BINS.items():
        of_size = annotated[annotated["diameter_mm"].between(low, high, inclusive=inclusive)]
        measures[f"sensitivity_{name}"] = _found(
            of_size, PRIMARY_IOU, n_patients, f"{_NO_LESIONS} of this size"
        )
    return measures


def _found(annotated: pd.DataFrame, iou: float, n_patients: int, empty: str) -> Measure:
    return share_measure(
        annotated[f"found_iou_{iou}"].to_numpy(bool),
        annotated["patient"].to_numpy(np.int64),
        n_patients,
        "annotated lesions",
        empty,
    )


def false_positive_measures(cases: pd.DataFrame, n_patients: int) -> dict[str, Measure]:
    """What is found beside the annotated lesions at the operating point."""
    return {"fp_per_scan": mean_measure(cases, "n_false_positive", n_patients, "scans", "")}


def curve_measures(cases: pd.DataFrame, candidates: pd.DataFrame) -> dict[str, Measure]:
    """FROC and average precision: over all thresholds, from lesions and candidates."""
    scored = {
        t: Candidates(
            candidates["score"].to_numpy(np.float64),
            candidates[f"hit_iou_{t}"].to_numpy(bool),
            candidates["patient"].to_numpy(np.int64),
            np.bincount(cases["patient"], cases["n_reference"]).astype(np.float64),
            np.bincount(cases["patient"]).astype(np.float64),
        )
        for t in IOU_THRESHOLDS
    }
    primary = scored[PRIMARY_IOU]
    statistics = {
        f"sensitivity_at_{rate:g}_fp": froc_sensitivity(primary, (rate,)) for rate in FROC_RATES
    }
    statistics["cpm"] = froc_sensitivity(primary, FROC_RATES)
    statistics |= {f"ap_iou_{t}": average_precision(scored[t]) for t in IOU_THRESHOLDS}
    n = int(cases["n_reference"].sum())
    note = "annotated lesions" if n else _NO_LESIONS
    return {name: Measure(each, n, note) for name, each in statistics.items()}


def outline_measures(annotated: pd.DataFrame, n_patients: int) -> dict[str, Measure]:
    """How well annotated lesions are outlined, one by one."""
    found = annotated[annotated[f"found_iou_{PRIMARY_IOU}"]]
    return {
        "dsc_matched": mean_measure(
            found, "dsc", n_patients, "found lesions", "no lesion was found"
        ),
        "dsc_all": mean_measure(
            annotated, "dsc", n_patients, "annotated lesions, missed ones 0", _NO_LESIONS
        ),
    }
