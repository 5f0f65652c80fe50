"""Curves behind the report's drawings: what a figure with an interval cannot show.

Rows are lesions or patients; intervals resample patients, so that lesions stay with theirs.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from bonemet_auto.evaluation.bootstrap import NORMAL_975, FloatArray, patient_weights
from bonemet_auto.evaluation.calibration import bin_of
from bonemet_auto.evaluation.source import Estimates

_ROC_GRID = np.linspace(0, 1, 101)


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


def roc_curve(of: Estimates, n_bootstrap: int = 1000, seed: int = 0) -> RocCurve:
    """ROC curve of two classes; equal probabilities are one slanted step, as in its area.

    Args:
        of: with both classes.
        n_bootstrap: resamplings of the patients behind the band.
        seed: of the resampling.
    """
    weights = patient_weights(of.n_patients, n_bootstrap, np.random.default_rng(seed))
    fpr, tpr = _rates(of, np.ones((1, of.n_patients)))
    drawn = [
        np.interp(_ROC_GRID, false, true)
        for false, true in zip(*_rates(of, weights), strict=True)
        if np.isfinite(false[-1]) and np.isfinite(true[-1])
    ]
    if of.n_patients < 2 or not drawn:
        nothing = np.empty(0)
        return RocCurve(fpr[0], tpr[0], nothing, nothing, nothing)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return RocCurve(fpr[0], tpr[0], _ROC_GRID, low, high)


def _counts(of: Estimates, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """True and false positives at no row, then down to each distinct probability."""
    order = np.argsort(-of.probability, kind="stable")
    ranked = of.probability[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    drawn, positive = weights[:, of.patients[order]], of.positive[order]
    padding = ((0, 0), (1, 0))
    true = np.pad(np.cumsum(drawn * positive, axis=1)[:, last], padding)
    return true, np.pad(np.cumsum(drawn * ~positive, axis=1)[:, last], padding)


def _rates(of: Estimates, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """False and true positive rates of each replicate; NaN where it lacks a class."""
    true, false = _counts(of, weights)
    with np.errstate(invalid="ignore"):
        return false / false[:, -1:], true / true[:, -1:]


def precision_recall(of: Estimates) -> tuple[FloatArray, FloatArray]:
    """Recall and precision down to each distinct probability, highest first; some are positive."""
    true, false = (counts[0, 1:] for counts in _counts(of, np.ones((1, of.n_patients))))
    return true / true[-1], true / (true + false)


def calibration_bins(of: Estimates) -> list[CalibrationBin]:
    """Observed share against mean probability in each bin that has rows.

    Wilson's interval takes the rows as independent; lesions of one patient are not quite.
    """
    numbers = bin_of(of.probability)
    bins = []
    for number in np.unique(numbers):
        rows = numbers == number
        n_positive, n = int(of.positive[rows].sum()), int(rows.sum())
        interval = binomtest(n_positive, n).proportion_ci(method="wilson")
        mean = float(of.probability[rows].mean())
        bins.append(CalibrationBin(mean, n_positive / n, interval.low, interval.high, n))
    return bins


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
    bias, spread = float(difference.mean()), NORMAL_975 * float(difference.std(ddof=1))
    return VolumeAgreement(
        ((annotated + predicted) / 2)[some],
        difference,
        bias,
        (bias - spread, bias + spread),
        int((~some).sum()),
    )
