"""Figures of a yes-or-no question: shares with Wilson's interval, and ROC AUC with DeLong's."""

import numpy as np
from scipy.special import expit, logit
from scipy.stats import rankdata

from bonemet_auto.evaluation.bootstrap import (
    NORMAL_975,
    BoolArray,
    FloatArray,
    IdArray,
    Interval,
    Measure,
    Statistic,
    mean_statistic,
    ratio,
)


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


def placements(scores: FloatArray, positive: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Share of negatives below each positive, and of positives above each negative; ties half.

    Both have the AUC as their mean; their spread gives its variance (DeLong, DeLong and
    Clarke-Pearson, Biometrics 1988;44:837), by midranks as of Sun and Xu (IEEE Signal Processing
    Letters 2014;21:1389).
    """
    ranks = rankdata(scores)
    above = (ranks[positive] - rankdata(scores[positive])) / np.sum(~positive)
    below = 1 - (ranks[~positive] - rankdata(scores[~positive])) / np.sum(positive)
    return above, below


def delong_interval(scores: FloatArray, positive: BoolArray) -> Interval:
    """DeLong's interval of the AUC of independent rows, taken on the logit scale."""
    above, below = placements(scores, positive)
    auc = float(above.mean())
    if min(above.size, below.size) < 2 or auc in (0.0, 1.0):
        return Interval(None, None, "no DeLong interval: one of a class, or perfect ranking")
    variance = above.var(ddof=1) / above.size + below.var(ddof=1) / below.size
    half_width = NORMAL_975 * np.sqrt(variance) / (auc * (1 - auc))
    low, high = expit(logit(auc) + np.array([-half_width, half_width]))
    return Interval(float(low), float(high), "DeLong interval")


def auc_measure(
    scores: FloatArray, positive: BoolArray, patients: IdArray, unit: str, note: str
) -> Measure:
    """ROC AUC of rows that may share patients, by resampling; `unit` names what the rows are."""
    statistic = auc_statistic(scores, positive, patients)
    return Measure(statistic, positive.size, single_class_reason(positive, unit) or note)


def delong_measure(
    scores: FloatArray, positive: BoolArray, patients: IdArray, note: str
) -> Measure:
    """ROC AUC of patients, one row each, with DeLong's interval."""
    reason = single_class_reason(positive, "patients")
    return Measure(
        auc_statistic(scores, positive, patients),
        positive.size,
        reason or note,
        None if reason else delong_interval(scores, positive),
    )


def wilson_interval(share: float, n: int) -> Interval:
    """Wilson's score interval of a share of `n` independent units."""
    z2 = NORMAL_975**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half_width = NORMAL_975 / (1 + z2 / n) * np.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low, high = np.clip([centre - half_width, centre + half_width], 0.0, 1.0)
    return Interval(float(low), float(high), "Wilson interval")


def share_measure(
    successes: BoolArray, patients: IdArray, n_patients: int, note: str, empty: str
) -> Measure:
    """Share of true rows.

    Wilson's interval where no patient has several rows. Otherwise patients are resampled; if all
    rows agree that shows no spread at all, and Wilson's interval counts each patient once.

    Args:
        successes: (n,) lesions or patients.
        patients: (n,) patient number of each row.
        n_patients: of the cohort.
        note: what the rows are.
        empty: why there is no share, for no row.
    """
    n = int(successes.size)
    statistic = mean_statistic(successes.astype(np.float64), patients, n_patients)
    if n == 0:
        return Measure(statistic, 0, empty)
    share, n_counted = float(successes.mean()), np.unique(patients).size
    if n_counted < n and 0 < share < 1:
        return Measure(statistic, n, note)
    interval = wilson_interval(share, n_counted)
    if n_counted < n:
        interval = Interval(interval.low, interval.high, f"{interval.note} of {n_counted} patients")
    return Measure(statistic, n, note, interval)
