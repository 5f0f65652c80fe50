"""All figures of a measured cohort, as functions of patient weights."""

from dataclasses import replace

import numpy as np
import pandas as pd

from bonemet_auto.evaluation.bootstrap import FloatArray, Measures, patient_weights
from bonemet_auto.evaluation.cohort import Cohort
from bonemet_auto.evaluation.finding import (
    curve_measures,
    false_positive_measures,
    found_measures,
    mean_measures,
)
from bonemet_auto.evaluation.means import (
    PATIENT_MEANS,
    lesion_means,
    segmentation_means,
    with_volume_bias,
)
from bonemet_auto.evaluation.measure import PRIMARY_IOU
from bonemet_auto.evaluation.source import (
    Estimates,
    lesion_estimates,
    lesion_measures,
    patient_estimates,
    patient_measures,
)


def cohort_weights(cohort: Cohort, n_bootstrap: int, seed: int) -> FloatArray:
    """(n_bootstrap, patients) draws; patients are in the order of their cases."""
    return patient_weights(count_patients(cohort), n_bootstrap, np.random.default_rng(seed))


def count_patients(cohort: Cohort) -> int:
    """Patients of a cohort."""
    return int(cohort.cases["patient_id"].nunique())


def cohort_measures(cohort: Cohort, on_reference: Cohort | None = None) -> Measures:
    """All figures of a cohort by group and name.

    Args:
        cohort: what was found in all scans.
        on_reference: the same scans with estimates for the reference's own lesions, if there.
    """
    n_patients, numbered = count_patients(cohort), with_patients(cohort)
    annotated = annotated_lesions(numbered.lesions)
    estimates = source_estimates(cohort, on_reference)
    sources = {
        group: patient_measures(each) if group.startswith("patient") else lesion_measures(each)
        for group, each in estimates.items()
    }
    outlines = segmentation_means(numbered.cases, patients_of(numbered.cases))
    return {
        "segmentation": mean_measures(outlines, n_patients),
        "detection": found_measures(annotated, n_patients)
        | false_positive_measures(numbered.cases, n_patients)
        | curve_measures(numbered.cases, numbered.candidates),
        **sources,
        "lesion": mean_measures(lesion_means(annotated), n_patients) | sources["lesion"],
    }


def source_estimates(cohort: Cohort, on_reference: Cohort | None = None) -> dict[str, Estimates]:
    """What is estimated of lesions and patients, by group of figures.

    End to end a missed lesion has no estimate, and a patient in whom nothing was found is called
    negative. On the reference's lesions there is nothing to estimate in patients who have none.
    """
    n_patients, numbered = count_patients(cohort), with_patients(cohort)
    annotated = annotated_lesions(numbered.lesions)
    found = annotated[annotated[f"found_iou_{PRIMARY_IOU}"]]
    estimates = {
        "lesion": lesion_estimates(found, n_patients, "found lesions"),
        "patient": patient_estimates(patients_of(numbered.cases), n_patients, "patients"),
    }
    if on_reference is None:
        return estimates
    numbered = with_patients(on_reference)
    annotated = annotated_lesions(numbered.lesions)
    patients = patients_of(numbered.cases)
    with_lesions = patients[patients["patient"].isin(annotated["patient"])]
    note = f"patients; {len(patients) - len(with_lesions)} without annotated lesions left out"
    return estimates | {
        "lesion_on_reference": lesion_estimates(annotated, n_patients, "annotated lesions"),
        "patient_on_reference": patient_estimates(with_lesions, n_patients, note),
    }


def annotated_lesions(lesions: pd.DataFrame) -> pd.DataFrame:
    """The rows that are no false positives."""
    return lesions[lesions["reference_id"] > 0]


def with_patients(cohort: Cohort) -> Cohort:
    """The same tables with a column `patient`: its number, in the order of the cases."""
    ids = pd.Index(cohort.cases["patient_id"].unique())
    cases, lesions, candidates = (
        table.assign(patient=ids.get_indexer(table["patient_id"]))
        for table in (cohort.cases, cohort.lesions, cohort.candidates)
    )
    return replace(cohort, cases=cases, lesions=lesions, candidates=candidates)


def patients_of(cases: pd.DataFrame) -> pd.DataFrame:
    """One row per patient: mean of the figures of outlines, highest probability and label.

    A patient is positive if any scan is, otherwise unknown if any scan is.
    """
    grouped = with_volume_bias(cases).groupby("patient", sort=True)
    means = grouped[list(PATIENT_MEANS)].mean()
    highest = grouped[["probability", "predicted_label", "patient_label"]].max()
    unknown = cases["patient_label"].isna().groupby(cases["patient"]).any()
    hidden = unknown & (highest["patient_label"] != 1).fillna(True)
    highest["patient_label"] = highest["patient_label"].mask(hidden)
    return means.join(highest).reset_index()
