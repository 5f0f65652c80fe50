"""Figures with 95 % intervals by resampling patients.

A statistic is a function of patient weights: how often each patient was drawn. That makes the point
estimate (all weights 1) and all replicates one call, and keeps every lesion with its patient.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IdArray = npt.NDArray[np.int64]
Statistic = Callable[[FloatArray], FloatArray]
"""Maps (replicates, patients) weights to (replicates,) values, NaN where a value is undefined."""

_REPLICATES_AT_ONCE = 100
"""Bounds the memory of statistics that hold one number per replicate and candidate."""


@dataclass(frozen=True)
class Figure:
    """A figure, its 95 % interval, what it counts, and where needed a remark.

    `value` is None where the figure is undefined, `low` and `high` where no interval exists; `note`
    then says why.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    note: str = ""


def undefined(n: int, reason: str) -> Figure:
    """A figure that these data cannot give."""
    return Figure(None, None, None, n, reason)


def patient_weights(n_patients: int, n_bootstrap: int, rng: np.random.Generator) -> FloatArray:
    """(n_bootstrap, n_patients) draws of each patient when as many are drawn with replacement."""
    return rng.multinomial(n_patients, np.full(n_patients, 1 / n_patients), n_bootstrap).astype(
        np.float64
    )


def ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """Quotient, NaN where the denominator is 0."""
    defined = denominator > 0
    return np.where(defined, numerator / np.where(defined, denominator, 1.0), np.nan)


def mean_statistic(values: FloatArray, patients: IdArray, n_patients: int) -> Statistic:
    """Mean over rows (cases, lesions) that belong to patients 0 to n_patients - 1."""
    sums = np.bincount(patients, values, n_patients)
    counts = np.bincount(patients, minlength=n_patients).astype(np.float64)
    return lambda weights: ratio(weights @ sums, weights @ counts)


def bootstrap_figure(statistic: Statistic, weights: FloatArray, n: int, note: str) -> Figure:
    """Value over all patients with the percentile interval of the replicates.

    Args:
        statistic: the figure as a function of patient weights.
        weights: (replicates, patients), as `patient_weights` gives them.
        n: number of units that the figure counts.
        note: what `n` counts, and if the value is undefined why that is so.
    """
    n_patients = weights.shape[1]
    value = float(statistic(np.ones((1, n_patients)))[0])
    if np.isnan(value):
        return undefined(n, note)
    starts = range(0, len(weights), _REPLICATES_AT_ONCE)
    parts = [statistic(weights[start : start + _REPLICATES_AT_ONCE]) for start in starts]
    replicates = np.concatenate([np.empty(0), *parts])
    defined = replicates[~np.isnan(replicates)]
    if n_patients < 2 or not defined.size:
        return Figure(value, None, None, n, f"{note}; no interval from one patient or no replicate")
    low, high = np.quantile(defined, [0.025, 0.975])
    if defined.size < replicates.size:
        note += f"; undefined in {replicates.size - defined.size} of {replicates.size} replicates"
    return Figure(value, float(low), float(high), n, note)
