"""Figures of a cohort with 95 % intervals, on file and as a table."""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from bonemet_auto.evaluation.bootstrap import (
    Figure,
    FloatArray,
    bootstrap_figure,
    mean_statistic,
    patient_weights,
)
from bonemet_auto.evaluation.classification import (
    auc_statistic,
    delong_figure,
    single_class_reason,
    wilson_figure,
)
from bonemet_auto.evaluation.cohort import IOU_THRESHOLDS, PRIMARY_IOU, Cohort, read_cohort
from bonemet_auto.evaluation.detection import (
    FROC_RATES,
    Candidates,
    average_precision,
    froc_sensitivity,
)
from bonemet_auto.files import atomic_write, write_text
from bonemet_auto.schema import FORMAT_VERSION

Figures = Mapping[str, Mapping[str, Figure]]

METRICS_NAME = "metrics.json"

SIZE_BINS = {
    "below_10mm": (0.0, 10.0, "left"),
    "10_to_20mm": (10.0, 20.0, "both"),
    "above_20mm": (20.0, np.inf, "right"),
}
"""Bounds of the diameter, and which of them belong to the bin."""


@dataclass(frozen=True)
class Evaluation:
    """All that is known of a cohort's predictions.

    Attributes:
        cases: one row per scan.
        lesions: one row per annotated lesion and per false positive.
        figures: segmentation, detection, lesion and patient figures by name.
        left_out: predicted cases without a reference.
    """

    cases: pd.DataFrame
    lesions: pd.DataFrame
    figures: Figures
    left_out: tuple[str, ...]


def evaluate_folders(
    pred: Path,
    ref: Path,
    n_bootstrap: int = 1000,
    seed: int = 0,
    cases: Collection[str] | None = None,
) -> Evaluation:
    """Evaluate a folder of predictions against a folder of references.

    Args:
        pred: folder in our prediction format; predictions without a reference are left out.
        ref: folder of CASE.nii.gz and CASE.json, as `labelsTs` of a raw dataset.
        n_bootstrap: resamplings of the patients behind each interval.
        seed: of the resampling; equal inputs and seeds give equal figures.
        cases: names of the cases to evaluate; None for all references.

    Raises:
        DataError: as `cohort.read_cohort`.
    """
    cohort = read_cohort(pred, ref, cases)
    return Evaluation(
        cohort.cases, cohort.lesions, cohort_figures(cohort, n_bootstrap, seed), cohort.left_out
    )


def cohort_figures(cohort: Cohort, n_bootstrap: int, seed: int) -> Figures:
    """All figures of a measured cohort; every interval rests on the same resampled patients."""
    ids = pd.Index(cohort.cases["patient_id"].unique())
    cases, lesions, candidates = (
        table.assign(patient=ids.get_indexer(table["patient_id"]))
        for table in (cohort.cases, cohort.lesions, cohort.candidates)
    )
    weights = patient_weights(len(ids), n_bootstrap, np.random.default_rng(seed))
    patients = _patients(cases)
    annotated = lesions[lesions["reference_id"] > 0]
    return {
        "segmentation": _segmentation_figures(cases, patients, weights),
        "detection": _operating_figures(cases, annotated, weights)
        | _curve_figures(cases, candidates, weights),
        "lesion": _lesion_figures(annotated, weights),
        "patient": _patient_figures(patients, weights),
    }


def _patients(cases: pd.DataFrame) -> pd.DataFrame:
    """One row per patient: mean of the voxel figures, highest probability and label.

    A patient is positive if any scan is, otherwise unknown if any scan is.
    """
    grouped = cases.groupby("patient", sort=True)
    voxel_figures = grouped[["dsc", "voxel_sensitivity", "voxel_specificity"]].mean()
    highest = grouped[["probability", "predicted_label", "patient_label"]].max()
    unknown = cases["patient_label"].isna().groupby(cases["patient"]).any()
    hidden = unknown & (highest["patient_label"] != 1).fillna(True)
    highest["patient_label"] = highest["patient_label"].mask(hidden)
    return voxel_figures.join(highest).reset_index()


def _mean_figure(
    rows: pd.DataFrame, column: str, weights: FloatArray, note: str, empty: str
) -> Figure:
    """Mean of a column over the rows that have a value, with the reason `empty` if none has."""
    known = rows[rows[column].notna()]
    statistic = mean_statistic(
        known[column].to_numpy(np.float64), known["patient"].to_numpy(np.int64), weights.shape[1]
    )
    return bootstrap_figure(statistic, weights, len(known), note if len(known) else empty)


def _segmentation_figures(
    cases: pd.DataFrame, patients: pd.DataFrame, weights: FloatArray
) -> dict[str, Figure]:
    empty = int((cases["n_reference"] == 0).sum())
    left_out = f"patients; {empty} of {len(cases)} scans left out (empty reference)"
    no_background = "every scan is filled by its reference"
    return {
        "dsc": _mean_figure(patients, "dsc", weights, "patients", ""),
        "voxel_sensitivity": _mean_figure(
            patients, "voxel_sensitivity", weights, left_out, f"all {empty} references are empty"
        ),
        "voxel_specificity": _mean_figure(
            patients, "voxel_specificity", weights, "patients", no_background
        ),
    }


def _operating_figures(
    cases: pd.DataFrame, annotated: pd.DataFrame, weights: FloatArray
) -> dict[str, Figure]:
    """Figures of the lesions at the operating point."""
    none = "no annotated lesions"
    figures = {
        f"sensitivity_iou_{t}": _mean_figure(
            annotated, f"found_iou_{t}", weights, "annotated lesions", none
        )
        for t in IOU_THRESHOLDS
    }
    figures["fp_per_scan"] = _mean_figure(cases, "n_false_positive", weights, "scans", "")
    for name, (low, high, inclusive) in SIZE_BINS.items():
        of_size = annotated[annotated["diameter_mm"].between(low, high, inclusive=inclusive)]
        figures[f"sensitivity_{name}"] = _mean_figure(
            of_size,
            f"found_iou_{PRIMARY_IOU}",
            weights,
            "annotated lesions",
            f"{none} of this size",
        )
    return figures


def _curve_figures(
    cases: pd.DataFrame, candidates: pd.DataFrame, weights: FloatArray
) -> dict[str, Figure]:
    """Figures over all thresholds, from lesions and candidates."""
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
    note = "annotated lesions" if n else "no annotated lesions"
    return {name: bootstrap_figure(each, weights, n, note) for name, each in statistics.items()}


def _lesion_figures(annotated: pd.DataFrame, weights: FloatArray) -> dict[str, Figure]:
    found = annotated[annotated[f"found_iou_{PRIMARY_IOU}"]]
    return {
        "dsc_matched": _mean_figure(found, "dsc", weights, "found lesions", "no lesion was found"),
        "dsc_all": _mean_figure(
            annotated, "dsc", weights, "annotated lesions, missed ones 0", "no annotated lesions"
        ),
        "source_auc": _auc_figure(found, "is_lung", "p_lung_metastasis", weights, "found lesions"),
        "source_brier": _brier_figure(
            found, "is_lung", "p_lung_metastasis", weights, "found lesions"
        ),
    }


def _auc_figure(
    rows: pd.DataFrame, truth: str, score: str, weights: FloatArray, unit: str
) -> Figure:
    known = rows[rows[truth].notna() & rows[score].notna()]
    positive = known[truth].to_numpy(bool)
    statistic = auc_statistic(
        known[score].to_numpy(np.float64), positive, known["patient"].to_numpy(np.int64)
    )
    note = single_class_reason(positive, unit) or f"{unit} of known source"
    return bootstrap_figure(statistic, weights, len(known), note)


def _brier_figure(
    rows: pd.DataFrame, truth: str, estimate: str, weights: FloatArray, unit: str
) -> Figure:
    """Mean squared error of a probability."""
    known = rows[rows[truth].notna() & rows[estimate].notna()]
    error = known[estimate].astype(float) - known[truth].astype(float)
    return _mean_figure(
        known.assign(squared_error=error**2), "squared_error", weights,
        f"{unit} of known source", f"no {unit} with a known source and an estimate",
    )  # fmt: skip


def _patient_figures(patients: pd.DataFrame, weights: FloatArray) -> dict[str, Figure]:
    known = patients[patients["patient_label"].notna() & patients["probability"].notna()]
    probability = known["probability"].to_numpy(np.float64)
    positive = known["patient_label"].to_numpy(np.int64) == 1
    called = known["predicted_label"].to_numpy(np.int64) == 1
    none = "no patients with a known source and an estimate"
    return {
        "auc": _auc_figure(known, "patient_label", "probability", weights, "patients"),
        "auc_delong": delong_figure(probability, positive),
        "accuracy": wilson_figure(called == positive, none),
        "sensitivity": wilson_figure(called[positive], "no positive patients"),
        "specificity": wilson_figure(~called[~positive], "no negative patients"),
        "brier": _brier_figure(known, "patient_label", "probability", weights, "patients"),
    }


def write_evaluation(evaluation: Evaluation, out: Path, cohort: str = "external") -> None:
    """Write `metrics.json`, `patients.csv` (one row per scan) and `lesions.csv` into a folder.

    Args:
        evaluation: what to write.
        out: the folder.
        cohort: which of the publication's cohorts it is to stand beside.
    """
    metrics = {
        "format_version": FORMAT_VERSION,
        "cohort": cohort,
        "n_scans": len(evaluation.cases),
        "n_patients": int(evaluation.cases["patient_id"].nunique()),
        "left_out": evaluation.left_out,
        "figures": {
            group: {name: asdict(figure) for name, figure in figures.items()}
            for group, figures in evaluation.figures.items()
        },
    }
    write_text(out / METRICS_NAME, json.dumps(metrics, indent=1, allow_nan=False) + "\n")
    for name, table in (("patients.csv", evaluation.cases), ("lesions.csv", evaluation.lesions)):
        with atomic_write(out / name) as temporary:
            table.to_csv(temporary, index=False, lineterminator="\n")
