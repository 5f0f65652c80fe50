"""Curves behind the report's drawings: what a figure with an interval cannot show.

Rows are lesions or patients; intervals resample patients, so that lesions stay with theirs.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import binomtest

from bonemet_auto.evaluation.bootstrap import FloatArray, IdArray, patient_weights
from bonemet_auto.evaluation.classification import single_class_reason

CALIBRATION_BINS = 10
"""Of equal width, over 0 to 1, as those of the expected calibration error."""

_ROC_GRID = np.linspace(0, 1, 101)
_NORMAL_975 = 1.959963984540054


@dataclass(frozen=True)
class Answers:
    """Lesions or patients of known source that have an estimate, one row each.

    Attributes:
        probability: (n,) of being a lung-cancer metastasis.
        positive: (n,) whether it is one.
        patients: (n,) patient number of each row, from 0.
        unit: what the rows are.
    """

    probability: FloatArray
    positive: npt.NDArray[np.bool_]
    patients: IdArray
    unit: str

    @property
    def one_class(self) -> str | None:
        """Why nothing can be ranked, or None where both classes are present."""
        return single_class_reason(self.positive, self.unit)


@dataclass(frozen=True)
class RocCurve:
    """Sensitivity against false positive rate, with a pointwise 95 % band.

    Attributes:
        fpr: (n,) false positive rates, 0 to 1.
        tpr: (n,) sensitivities at them.
        grid: (m,) false positive rates of the band.
        low: (m,) its lower edge; empty for a single patient.
        high: (m,) its upper edge.
    """

    fpr: FloatArray
    tpr: FloatArray
    grid: FloatArray
    low: FloatArray
    high: FloatArray


@dataclass(frozen=True)
class CalibrationBin:
    """Rows of similar probability: their mean, how many are positive, Wilson's interval."""

    probability: float
    share: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class VolumeAgreement:
    """Predicted against annotated volume of each scan that has any.

    Attributes:
        mean_mm3: (n,) mean of both volumes.
        difference_mm3: (n,) predicted minus annotated.
        bias_mm3: mean difference.
        limits_mm3: limits of agreement, bias +- 1.96 standard deviations.
        n_empty: scans left out, without a voxel in either.

    Source: Bland and Altman, Lancet 1986;1:307.
    """

    mean_mm3: FloatArray
    difference_mm3: FloatArray
    bias_mm3: float
    limits_mm3: tuple[float, float]
    n_empty: int


def patient_answers(cases: pd.DataFrame) -> Answers:
    """Patients of a cohort: highest probability of their scans; positive if any scan is.

    Those without a positive scan but with one of unknown source are left out.
    """
    grouped = cases.groupby("patient_id", sort=True)
    rows = grouped[["probability", "patient_label"]].max()
    unknown = grouped["patient_label"].apply(lambda labels: labels.isna().any())
    positive = (rows["patient_label"] == 1).fillna(False)
    known = rows["probability"].notna() & (positive | ~unknown)
    return Answers(
        rows.loc[known, "probability"].to_numpy(np.float64),
        positive[known].to_numpy(bool),
        np.arange(int(known.sum())),
        "patients",
    )


def lesion_answers(lesions: pd.DataFrame) -> Answers:
    """Annotated lesions that were found and whose source is known."""
    known = lesions[
        (lesions["reference_id"] > 0)
        & lesions["is_lung"].notna()
        & lesions["p_lung_metastasis"].notna()
    ]
    return Answers(
        known["p_lung_metastasis"].to_numpy(np.float64),
        known["is_lung"].to_numpy(bool),
        pd.factorize(known["patient_id"])[0].astype(np.int64),
        "found lesions",
    )


def roc_curve(answers: Answers, n_bootstrap: int = 1000, seed: int = 0) -> RocCurve:
    """ROC curve of two classes; equal probabilities are one slanted step, as in its area.

    Args:
        answers: with both classes.
        n_bootstrap: resamplings of the patients behind the band.
        seed: of the resampling.
    """
    n_patients = int(answers.patients.max()) + 1
    weights = patient_weights(n_patients, n_bootstrap, np.random.default_rng(seed))
    fpr, tpr = _rates(answers, np.ones((1, n_patients)))
    drawn = [
        np.interp(_ROC_GRID, false, true)
        for false, true in zip(*_rates(answers, weights), strict=True)
        if np.isfinite(false[-1]) and np.isfinite(true[-1])
    ]
    if n_patients < 2 or not drawn:
        nothing = np.empty(0)
        return RocCurve(fpr[0], tpr[0], nothing, nothing, nothing)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return RocCurve(fpr[0], tpr[0], _ROC_GRID, low, high)


def _counts(answers: Answers, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """True and false positives at no row, then down to each distinct probability."""
    order = np.argsort(-answers.probability, kind="stable")
    ranked = answers.probability[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    drawn, positive = weights[:, answers.patients[order]], answers.positive[order]
    padding = ((0, 0), (1, 0))
    true = np.pad(np.cumsum(drawn * positive, axis=1)[:, last], padding)
    return true, np.pad(np.cumsum(drawn * ~positive, axis=1)[:, last], padding)


def _rates(answers: Answers, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """False and true positive rates of each replicate; NaN where it lacks a class."""
    true, false = _counts(answers, weights)
    with np.errstate(invalid="ignore"):
        return false / false[:, -1:], true / true[:, -1:]


def precision_recall(answers: Answers) -> tuple[FloatArray, FloatArray]:
    """Recall and precision down to each distinct probability, highest first; some are positive."""
    true, false = (
        counts[0, 1:] for counts in _counts(answers, np.ones((1, answers.patients.max() + 1)))
    )
    return true / true[-1], true / (true + false)


def calibration_bins(answers: Answers) -> list[CalibrationBin]:
    """Observed share against mean probability in each bin that has rows.

    Wilson's interval takes the rows as independent; lesions of one patient are not quite.
    """
    numbers = np.minimum(
        (answers.probability * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1
    )
    bins = []
    for number in np.unique(numbers):
        rows = numbers == number
        n_positive, n = int(answers.positive[rows].sum()), int(rows.sum())
        interval = binomtest(n_positive, n).proportion_ci(method="wilson")
        mean = float(answers.probability[rows].mean())
        bins.append(CalibrationBin(mean, n_positive / n, interval.low, interval.high, n))
    return bins


def net_benefit(answers: Answers, thresholds: FloatArray) -> FloatArray:
    """Share of true positives less that of false ones, weighed by the odds of the threshold.

    Args:
        answers: at least one row.
        thresholds: probabilities above 0 and below 1 from which a row would be called positive.

    Source: Vickers and Elkin, Med Decis Making 2006;26:565.
    """
    called = answers.probability >= thresholds[:, None]
    true = (called & answers.positive).mean(axis=1)
    false = (called & ~answers.positive).mean(axis=1)
    return np.asarray(true - false * thresholds / (1 - thresholds))


def volume_agreement(cases: pd.DataFrame) -> VolumeAgreement | None:
    """Bland-Altman statistics of the scans' volumes, None for fewer than two scans with any.

    Scans of which a volume is not known are left out.
    """
    known = cases.dropna(subset=["volume_mm3", "predicted_volume_mm3"])
    annotated = known["volume_mm3"].to_numpy(np.float64)
    predicted = known["predicted_volume_mm3"].to_numpy(np.float64)
    some = annotated + predicted > 0
    if some.sum() < 2:
        return None
    difference = (predicted - annotated)[some]
    bias, spread = float(difference.mean()), _NORMAL_975 * float(difference.std(ddof=1))
    return VolumeAgreement(
        ((annotated + predicted) / 2)[some],
        difference,
        bias,
        (bias - spread, bias + spread),
        int((~some).sum()),
    )
