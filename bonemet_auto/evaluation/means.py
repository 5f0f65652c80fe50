"""Which columns of a cohort's tables are averaged over which rows: figures of outlines."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from bonemet_auto.evaluation.measure import PRIMARY_IOU

SIZE_BINS = {
    "below_10mm": (0.0, 10.0, "left"),
    "10_to_20mm": (10.0, 20.0, "both"),
    "above_20mm": (20.0, np.inf, "right"),
}
"""Bounds of the diameter, and which of them belong to the bin."""

PATIENT_MEANS = (
    "dsc", "voxel_sensitivity", "voxel_specificity", "nsd_1mm", "nsd_2mm", "hd95_mm",
    "volume_bias_ml",
)  # fmt: skip
"""Columns of a patient: means over the scans that have a value."""

_BOXES = "boxes were predicted, and boxes have no outline"
_NO_LESIONS = "no annotated lesions"
_MM3_PER_ML = 1000.0


@dataclass(frozen=True)
class Mean:
    """Mean of a column over the rows that have a value.

    Attributes:
        rows: table with columns `patient` and `column`.
        column: to average.
        note: what the rows are, and which are left out.
        empty: why there is no mean if no row has a value.
    """

    rows: pd.DataFrame
    column: str
    note: str
    empty: str


def with_volume_bias(cases: pd.DataFrame) -> pd.DataFrame:
    """The table with a column `volume_bias_ml`: predicted minus annotated volume of each scan."""
    bias_mm3 = cases["predicted_volume_mm3"] - cases["volume_mm3"]
    return cases.assign(volume_bias_ml=bias_mm3 / _MM3_PER_ML)


def segmentation_means(cases: pd.DataFrame, patients: pd.DataFrame) -> dict[str, Mean]:
    """Agreement of all lesions of a patient together.

    Args:
        cases: one row per scan.
        patients: one row per patient with `PATIENT_MEANS`.
    """
    outlined = cases["dsc"].notna().any()
    empty = int((cases["n_reference"] == 0).sum())
    one_sided = int((cases["dsc"].notna() & cases["hd95_mm"].isna()).sum())
    of_scans = f"of {len(cases)} scans left out"
    reasons = {
        "voxel_sensitivity": f"all {empty} references are empty",
        "voxel_specificity": "every scan is filled by its reference",
        "hd95_mm": f"in all {one_sided} scans the reference, the prediction or both are empty",
    }
    notes = {
        "voxel_sensitivity": f"patients; {empty} {of_scans} (empty reference)",
        "hd95_mm": f"patients; {one_sided} {of_scans} (empty reference, prediction or both)",
        "volume_bias_ml": "patients; predicted minus annotated",
    }
    return {
        name: Mean(
            patients,
            name,
            notes.get(name, "patients"),
            reasons.get(name, "no scans") if outlined else _BOXES,
        )
        for name in PATIENT_MEANS
    }


def lesion_means(annotated: pd.DataFrame) -> dict[str, Mean]:
    """Agreement of annotated lesions one by one: of those found, and of all.

    Args:
        annotated: one row per annotated lesion.
    """
    found = annotated[annotated[f"found_iou_{PRIMARY_IOU}"]]
    outlined = not len(annotated) or annotated["dsc"].notna().any()
    none_found = "no lesion was found" if outlined else _BOXES
    none = _NO_LESIONS if outlined else _BOXES
    missed = len(annotated) - len(found)
    means = {}
    for column in ("dsc", "nsd_1mm", "nsd_2mm"):
        means[f"{column}_matched"] = Mean(found, column, "found lesions", none_found)
        means[f"{column}_all"] = Mean(annotated, column, "annotated lesions, missed ones 0", none)
    without = f"found lesions; {missed} missed ones have none"
    means["hd95_mm_matched"] = Mean(found, "hd95_mm", without, none_found)
    for name, (low, high, inclusive) in SIZE_BINS.items():
        of_size = annotated[annotated["diameter_mm"].between(low, high, inclusive=inclusive)]
        reason = f"{_NO_LESIONS} of this size" if outlined else _BOXES
        note = "annotated lesions, missed ones 0"
        means[f"dsc_all_{name}"] = Mean(of_size, "dsc", note, reason)
    return means
