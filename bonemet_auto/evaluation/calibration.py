"""Whether probabilities are what they say, as functions of patient weights."""

import numpy as np
from scipy.special import expit, logit

from bonemet_auto.evaluation.bootstrap import BoolArray, FloatArray, IdArray, Statistic, ratio

ECE_BINS = 10
"""Of equal width, over 0 to 1."""

_CLIP = 1e-6
_MAX_STEPS = 200
_TOLERANCE = 1e-7
"""Change of a fitted logit at which a fit ends; steps near the end square it."""


def calibration_error(
    probability: FloatArray, positive: BoolArray, patients: IdArray, n_patients: int
) -> Statistic:
    """Expected calibration error: mean over rows of |share of positives - mean probability|.

    Both are those of the row's bin, one of `ECE_BINS` of equal width. Biased upwards where bins
    hold few rows: see `calibration_error_by_chance`.

    Source: Naeini et al., AAAI 2015.
    """
    gaps = np.zeros((n_patients, ECE_BINS))
    np.add.at(gaps, (patients, bin_of(probability)), positive - probability)
    counts = np.bincount(patients, minlength=n_patients).astype(np.float64)
    return lambda weights: ratio(np.abs(weights @ gaps).sum(axis=1), weights @ counts)


def calibration_error_by_chance(probability: FloatArray) -> float:
    """Calibration error to be expected of independent rows whose probabilities are all true.

    The gap of each bin is taken as normal. Resampling adds this chance once more, so that intervals
    by it would lie above the truth (measured: docs/benchmarks.md).
    """
    variance = np.bincount(bin_of(probability), probability * (1 - probability))
    return float(np.sqrt(2 / np.pi * variance).sum() / probability.size)


def bin_of(probability: FloatArray) -> IdArray:
    """Number of the bin, 0 to `ECE_BINS` - 1, that each probability lies in."""
    return np.minimum((probability * ECE_BINS).astype(np.int64), ECE_BINS - 1)


def calibration_slope(probability: FloatArray, positive: BoolArray, patients: IdArray) -> Statistic:
    """Slope of a logistic regression of the truth on the logit of the probability; ideally 1.

    Below 1 the probabilities are too extreme. Infinite where a threshold parts the classes, NaN
    for one class or one probability.

    Source: Cox, Biometrika 1958;45:562.
    """
    logits = _logits(probability)
    intercept, slope = _fit_logistic(logits, positive, np.ones((1, logits.size)), (0.0, 0.0))
    start = (float(intercept[0]), float(slope[0])) if np.isfinite(intercept[0]) else (0.0, 0.0)
    return lambda weights: _fit_logistic(logits, positive, weights[:, patients], start)[1]


def calibration_intercept(
    probability: FloatArray, positive: BoolArray, patients: IdArray
) -> Statistic:
    """Calibration in the large: intercept of that regression with its slope held at 1; ideally 0.

    Above 0 the probabilities are too low on the whole. NaN for one class.

    Source: Van Calster et al., BMC Medicine 2019;17:230.
    """
    logits = _logits(probability)
    return lambda weights: _fit_intercept(logits, positive, weights[:, patients])


def _logits(probability: FloatArray) -> FloatArray:
    return np.asarray(logit(np.clip(probability, _CLIP, 1 - _CLIP)))


def _fit_intercept(logits: FloatArray, positive: BoolArray, drawn: FloatArray) -> FloatArray:
    """(replicates,) intercepts that make the mean probability the share of positives.

    Newton steps are shortened so that they cannot overshoot: see `_fit_logistic`.
    """
    intercept = np.zeros(len(drawn))
    positives, all_drawn = drawn @ positive.astype(np.float64), drawn.sum(axis=1)
    both = (positives > 0) & (positives < all_drawn)
    for _ in range(_MAX_STEPS):
        fitted = expit(intercept[:, None] + logits)
        curvature = np.sum(drawn * fitted * (1 - fitted), axis=1)
        step = np.where(both, (positives - np.sum(drawn * fitted, axis=1)), 0.0)
        step /= np.maximum(curvature, np.finfo(float).tiny)
        intercept += _shortened(step, np.abs(step))
        if np.max(np.abs(step), initial=0.0) < _TOLERANCE:
            break
    return np.where(both, intercept, np.nan)


def _fit_logistic(
    logits: FloatArray, positive: BoolArray, drawn: FloatArray, start: tuple[float, float]
) -> tuple[FloatArray, FloatArray]:
    """Maximum likelihood intercepts and slopes of weighted logistic regressions on one variable.

    Each Newton step is shortened by log(1 + d) / d, where d is the largest change of a fitted logit
    that it makes: logistic loss is generalised self-concordant, so every step then gains (Sun and
    Tran-Dinh, Mathematical Programming 2019;178:145).

    Args:
        logits: (n,) the variable.
        positive: (n,) truth.
        drawn: (replicates, n) weights of the rows.
        start: intercept and slope to begin with; near the answer fewer steps are needed.

    Returns:
        Two (replicates,) arrays. Where the classes do not overlap the slope is infinite with its
        sign; for one class or one value of the variable both are NaN.
    """
    slope_when_apart = _slope_when_apart(logits, positive, drawn)
    fits = slope_when_apart == 0
    intercepts, slopes = (np.full(len(drawn), value) for value in start)
    rows = np.flatnonzero(fits)
    for _ in range(_MAX_STEPS):
        if not rows.size:
            break
        intercept_step, slope_step = _newton_step(
            logits, positive, drawn[rows], intercepts[rows], slopes[rows]
        )
        ends = intercept_step[:, None] + slope_step[:, None] * [logits.min(), logits.max()]
        change = np.abs(ends).max(axis=1)
        intercepts[rows] += _shortened(intercept_step, change)
        slopes[rows] += _shortened(slope_step, change)
        rows = rows[change >= _TOLERANCE]
    return np.where(fits, intercepts, np.nan), np.where(fits, slopes, slope_when_apart)


def _newton_step(
    logits: FloatArray,
    positive: BoolArray,
    drawn: FloatArray,
    intercepts: FloatArray,
    slopes: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """Steps of intercepts and slopes, (replicates,) each."""
    fitted = expit(intercepts[:, None] + slopes[:, None] * logits)
    residual, curvature = drawn * (positive - fitted), drawn * fitted * (1 - fitted)
    total = curvature.sum(axis=1)
    centre = curvature @ logits / total
    spread = curvature @ logits**2 - total * centre**2
    gradient = residual.sum(axis=1)
    slope_step = (residual @ logits - centre * gradient) / spread
    return gradient / total - centre * slope_step, slope_step


def _shortened(step: FloatArray, change: FloatArray) -> FloatArray:
    """A step made as much shorter as the change of fitted logits that it would make is large."""
    safe = np.maximum(change, _TOLERANCE)
    return step * np.log1p(safe) / safe


def _slope_when_apart(logits: FloatArray, positive: BoolArray, drawn: FloatArray) -> FloatArray:
    """0 where a finite slope exists, infinity of its sign where not, NaN where there is none."""
    here, there = drawn[:, positive] > 0, drawn[:, ~positive] > 0
    of_positive, of_negative = logits[positive], logits[~positive]
    lowest = np.min(np.where(here, of_positive, np.inf), axis=1, initial=np.inf)
    highest = np.max(np.where(here, of_positive, -np.inf), axis=1, initial=-np.inf)
    lowest_negative = np.min(np.where(there, of_negative, np.inf), axis=1, initial=np.inf)
    highest_negative = np.max(np.where(there, of_negative, -np.inf), axis=1, initial=-np.inf)
    above, below = lowest >= highest_negative, highest <= lowest_negative
    apart = np.select([above & below, above, below], [np.nan, np.inf, -np.inf], 0.0)
    return np.where(np.isinf(lowest) | np.isinf(lowest_negative), np.nan, apart)
