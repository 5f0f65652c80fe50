"""How well sources are estimated, of lesions and of patients, as functions of patient weights."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from bonemet_auto.evaluation.bootstrap import (
    BoolArray,
    FloatArray,
    IdArray,
    Interval,
    Measure,
    mean_statistic,
)
from bonemet_auto.evaluation.calibration import (
    calibration_error,
    calibration_error_by_chance,
    calibration_intercept,
    calibration_slope,
)
from bonemet_auto.evaluation.classification import (
    auc_measure,
    delong_measure,
    share_measure,
    single_class_reason,
)
from bonemet_auto.evaluation.detection import Candidates, average_precision

LESION_THRESHOLD = 0.5
"""Probability from which a lesion is called a lung-cancer metastasis; no model stores another."""


@dataclass(frozen=True)
class Estimates:
    """Lesions or patients of known source, one row each, and what was estimated of them.

    Attributes:
        probability: (n,) of being a lung-cancer metastasis.
        positive: (n,) whether it is one.
        called: (n,) whether it was called one.
        patients: (n,) patient number of each row, 0 to n_patients - 1.
        n_patients: of the cohort.
        unit: what the rows are.
        note: the same, with what was left out.
    """

    probability: FloatArray
    positive: BoolArray
    called: BoolArray
    patients: IdArray
    n_patients: int
    unit: str
    note: str

    def rows(self, chosen: IdArray) -> "Estimates":
        """Some of the rows, in this order."""
        columns = ("probability", "positive", "called", "patients")
        return replace(self, **{name: getattr(self, name)[chosen] for name in columns})


def lesion_estimates(lesions: pd.DataFrame, n_patients: int, unit: str) -> Estimates:
    """Annotated lesions of known source that have an estimate.

    Args:
        lesions: annotated lesions, with a column `patient`.
        n_patients: of the cohort.
        unit: what these lesions are.
    """
    known = lesions[lesions["is_lung"].notna() & lesions["p_lung_metastasis"].notna()]
    probability = known["p_lung_metastasis"].to_numpy(np.float64)
    return Estimates(
        probability,
        known["is_lung"].to_numpy(bool),
        probability >= LESION_THRESHOLD,
        known["patient"].to_numpy(np.int64),
        n_patients,
        unit,
        f"{unit} of known source",
    )


def patient_estimates(patients: pd.DataFrame, n_patients: int, note: str) -> Estimates:
    """Patients of known label that have an estimate, called as their predictions say.

    Args:
        patients: one row each, with a column `patient`.
        n_patients: of the cohort.
        note: "patients", with what was left out.
    """
    known = patients[patients["patient_label"].notna() & patients["probability"].notna()]
    return Estimates(
        known["probability"].to_numpy(np.float64),
        known["patient_label"].to_numpy(np.int64) == 1,
        known["predicted_label"].to_numpy(np.int64) == 1,
        known["patient"].to_numpy(np.int64),
        n_patients,
        "patients",
        note,
    )


def lesion_measures(estimates: Estimates) -> dict[str, Measure]:
    """Figures of the lesions' source, with names of their own beside those of outlines."""
    measures = {"auc": _auc(estimates), **_other_measures(estimates)}
    return {f"source_{name}": measure for name, measure in measures.items()}


def patient_measures(estimates: Estimates) -> dict[str, Measure]:
    """Figures of the patients, AUC with a resampled and with DeLong's interval."""
    return {
        "auc": _auc(estimates),
        "auc_delong": delong_measure(
            estimates.probability, estimates.positive, estimates.patients, estimates.note
        ),
        **_other_measures(estimates),
    }


def _auc(of: Estimates) -> Measure:
    return auc_measure(of.probability, of.positive, of.patients, of.unit, of.note)


def _other_measures(of: Estimates) -> dict[str, Measure]:
    right, all_rows = of.called == of.positive, np.ones(of.positive.size, dtype=bool)
    unknown = f"no {of.unit} with a known source and an estimate"
    shares = {
        "accuracy": (right, all_rows, unknown),
        "sensitivity": (of.called, of.positive, f"no positive {of.unit}"),
        "specificity": (~of.called, ~of.positive, f"no negative {of.unit}"),
        "ppv": (of.positive, of.called, f"no {of.unit} called positive"),
        "npv": (~of.positive, ~of.called, f"no {of.unit} called negative"),
    }
    return {
        "ap": _average_precision(of),
        **{
            name: share_measure(successes[among], of.patients[among], of.n_patients, of.note, empty)
            for name, (successes, among, empty) in shares.items()
        },
        **_calibration_measures(of),
    }


def _average_precision(of: Estimates) -> Measure:
    """Average precision of the ranking by probability; of one class it would say nothing."""
    positives = np.bincount(of.patients, of.positive, of.n_patients).astype(np.float64)
    ranked = Candidates(of.probability, of.positive, of.patients, positives, np.ones(of.n_patients))
    reason = single_class_reason(of.positive, of.unit)
    if reason:
        return Measure(_nothing, of.positive.size, reason)
    return Measure(average_precision(ranked), of.positive.size, of.note)


def _nothing(weights: FloatArray) -> FloatArray:
    return np.full(len(weights), np.nan)


def _calibration_measures(of: Estimates) -> dict[str, Measure]:
    n, rows = of.positive.size, (of.probability, of.positive, of.patients)
    note = of.note if n else f"no {of.unit} with a known source and an estimate"
    squared_error = (of.probability - of.positive) ** 2
    slope = Measure(calibration_slope(*rows), n, note)
    return {
        "brier": Measure(mean_statistic(squared_error, of.patients, of.n_patients), n, note),
        "ece": Measure(calibration_error(*rows, of.n_patients), n, note, _no_interval(of)),
        "calibration_slope": replace(slope, note=_slope_note(of, slope)),
        "calibration_intercept": Measure(
            calibration_intercept(*rows), n, single_class_reason(of.positive, of.unit) or note
        ),
    }


def _no_interval(of: Estimates) -> Interval | None:
    """What a calibration error is to be held against instead of an interval."""
    if not of.positive.size:
        return None
    by_chance = calibration_error_by_chance(of.probability)
    return Interval(None, None, f"no interval; {by_chance:.3f} by chance alone if calibrated")


def _slope_note(of: Estimates, slope: Measure) -> str:
    """What the slope counts, or why there is none."""
    if reason := single_class_reason(of.positive, of.unit):
        return reason
    value = slope.value(of.n_patients)
    if np.isnan(value):
        return f"all {of.positive.size} {of.unit} have one probability"
    return of.note if np.isfinite(value) else "infinite: a threshold parts the classes"
