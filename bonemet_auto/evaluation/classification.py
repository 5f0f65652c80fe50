"""Figures of a yes-or-no question: ROC AUC, its DeLong interval, and Wilson intervals."""

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit
from scipy.stats import rankdata

from bonemet_auto.evaluation.bootstrap import (
    Figure,
    FloatArray,
    IdArray,
    Statistic,
    ratio,
    undefined,
)

BoolArray = npt.NDArray[np.bool_]

_NORMAL_975 = 1.959963984540054


def auc_statistic(scores: FloatArray, positive: BoolArray, patients: IdArray) -> Statistic:
    """ROC AUC as a function of patient weights; equal scores count half.

    Args:
        scores: (n,) scores of lesions or patients.
        positive: (n,) truth.
        patients: (n,) patient number of each row.
    """
    order = np.argsort(scores[~positive], kind="stable")
    negative_scores = scores[~positive][order]
    negative_patients = patients[~positive][order]
    positive_patients = patients[positive]
    below = np.searchsorted(negative_scores, scores[positive], "left")
    not_above = np.searchsorted(negative_scores, scores[positive], "right")

    def statistic(weights: FloatArray) -> FloatArray:
        negatives = np.pad(np.cumsum(weights[:, negative_patients], axis=1), ((0, 0), (1, 0)))
        positives = weights[:, positive_patients]
        beaten = (negatives[:, below] + negatives[:, not_above]) / 2
        pairs = positives.sum(axis=1) * negatives[:, -1]
        return ratio(np.sum(positives * beaten, axis=1), pairs)

    return statistic


def single_class_reason(positive: BoolArray, unit: str) -> str | None:
    """Why there is no AUC: one sentence, or None where both classes are present."""
    if positive.size == 0:
        return f"no {unit} with a known source and an estimate"
    if positive.all() or not positive.any():
        return f"all {positive.size} {unit} are {'positive' if positive[0] else 'negative'}"
    return None


def delong_figure(scores: FloatArray, positive: BoolArray) -> Figure:
    """ROC AUC of independent rows with DeLong's interval, taken on the logit scale.

    The variance is that of DeLong, DeLong and Clarke-Pearson (Biometrics 1988;44:837), by midranks.
    """
    n = int(positive.size)
    reason = single_class_reason(positive, "patients")
    if reason:
        return undefined(n, reason)
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    ranks = rankdata(scores)
    above = (ranks[positive] - rankdata(scores[positive])) / n_negative
    below = 1 - (ranks[~positive] - rankdata(scores[~positive])) / n_positive
    auc = float(above.mean())
    if min(n_positive, n_negative) < 2 or auc in (0.0, 1.0):
        return Figure(auc, None, None, n, "no DeLong interval: one of a class, or perfect ranking")
    variance = above.var(ddof=1) / n_positive + below.var(ddof=1) / n_negative
    half_width = _NORMAL_975 * np.sqrt(variance) / (auc * (1 - auc))
    low, high = expit(logit(auc) + np.array([-half_width, half_width]))
    return Figure(auc, float(low), float(high), n, "patients; DeLong interval")


def wilson_figure(successes: BoolArray, empty_reason: str) -> Figure:
    """Share of true entries with Wilson's score interval; undefined for no entry."""
    n = int(successes.size)
    if n == 0:
        return undefined(0, empty_reason)
    share, z2 = float(successes.mean()), _NORMAL_975**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half_width = _NORMAL_975 / (1 + z2 / n) * np.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low, high = np.clip([centre - half_width, centre + half_width], 0.0, 1.0)
    return Figure(share, float(low), float(high), n, "patients; Wilson interval")
