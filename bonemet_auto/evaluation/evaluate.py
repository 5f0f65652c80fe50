"""Figures of a cohort with 95 % intervals, on file and as a table."""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from bonemet_auto.evaluation.bootstrap import (
    REPLICATES,
    Figures,
    Measures,
    patient_weights,
    read_measures,
)
from bonemet_auto.evaluation.cohort import PRIMARY_IOU, Cohort, read_cohort
from bonemet_auto.evaluation.finding import (
    curve_measures,
    operating_measures,
    outline_measures,
    segmentation_measures,
)
from bonemet_auto.evaluation.source import (
    lesion_estimates,
    lesion_source_measures,
    patient_estimates,
    patient_measures,
)
from bonemet_auto.files import atomic_write, write_text
from bonemet_auto.schema import FORMAT_VERSION


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
    n_bootstrap: int = REPLICATES,
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
    weights = patient_weights(n_patients(cohort), n_bootstrap, np.random.default_rng(seed))
    return read_measures(cohort_measures(cohort), weights)


def n_patients(cohort: Cohort) -> int:
    """Patients of a cohort."""
    return int(cohort.cases["patient_id"].nunique())


def cohort_measures(cohort: Cohort) -> Measures:
    """All figures as functions of patient weights; patients are in the order of their cases."""
    n = n_patients(cohort)
    numbered = with_patients(cohort)
    cases = numbered.cases
    patients = patients_of(cases)
    annotated = numbered.lesions[numbered.lesions["reference_id"] > 0]
    found = annotated[annotated[f"found_iou_{PRIMARY_IOU}"]]
    return {
        "segmentation": segmentation_measures(cases, patients, n),
        "detection": operating_measures(cases, annotated, n)
        | curve_measures(cases, numbered.candidates),
        "lesion": outline_measures(annotated, n)
        | lesion_source_measures(lesion_estimates(found, n, "found lesions")),
        "patient": patient_measures(patient_estimates(patients, n, "patients")),
    }


def with_patients(cohort: Cohort) -> Cohort:
    """The same tables with a column `patient`: its number, in the order of the cases."""
    ids = pd.Index(cohort.cases["patient_id"].unique())
    cases, lesions, candidates = (
        table.assign(patient=ids.get_indexer(table["patient_id"]))
        for table in (cohort.cases, cohort.lesions, cohort.candidates)
    )
    return Cohort(cases, lesions, candidates, cohort.left_out)


def patients_of(cases: pd.DataFrame) -> pd.DataFrame:
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


def write_evaluation(evaluation: Evaluation, out: Path) -> None:
    """Write `metrics.json`, `patients.csv` (one row per scan) and `lesions.csv` into a folder."""
    metrics = {
        "format_version": FORMAT_VERSION,
        "n_scans": len(evaluation.cases),
        "n_patients": int(evaluation.cases["patient_id"].nunique()),
        "left_out": evaluation.left_out,
        "figures": {
            group: {name: asdict(figure) for name, figure in figures.items()}
            for group, figures in evaluation.figures.items()
        },
    }
    write_text(out / "metrics.json", json.dumps(metrics, indent=1, allow_nan=False) + "\n")
    for name, table in (("patients.csv", evaluation.cases), ("lesions.csv", evaluation.lesions)):
        with atomic_write(out / name) as temporary:
            table.to_csv(temporary, index=False, lineterminator="\n")
