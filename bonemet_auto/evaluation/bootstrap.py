"""Figures with 95 % intervals by resampling patients.

A statistic is a function of patient weights: how often each patient was drawn. That makes the point
estimate (all weights 1) and all replicates one call, keeps every lesion with its patient, and pairs
two predictions of the same patients: both are read at the same weights.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

FloatArray = npt.NDArray[np.float64]
IdArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Statistic = Callable[[FloatArray], FloatArray]
"""Maps (replicates, patients) weights to (replicates,) values: NaN where a value is undefined."""

REPLICATES = 2000
NORMAL_975 = 1.959963984540054

_REPLICATES_AT_ONCE = 50
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


@dataclass(frozen=True)
class Interval:
    """A 95 % interval in closed form and its name; without ends where it does not exist."""

    low: float | None
    high: float | None
    note: str


@dataclass(frozen=True)
class Measure:
    """A figure before it is read: what it is at any patient weights.

    Attributes:
        statistic: the figure as a function of patient weights.
        n: number of units that it counts.
        note: what `n` counts, and if the value is undefined why that is so.
        interval: in closed form; None where patients are resampled.
    """

    statistic: Statistic
    n: int
    note: str
    interval: Interval | None = None

    def value(self, n_patients: int) -> float:
        """The figure over all patients, NaN where it is undefined."""
        return float(self.statistic(np.ones((1, n_patients)))[0])


Measures = Mapping[str, Mapping[str, Measure]]
Figures = Mapping[str, Mapping[str, Figure]]


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


def replicate(statistic: Statistic, weights: FloatArray) -> FloatArray:
    """(replicates,) values of a statistic."""
    return replicate_all([statistic], weights)[0]


def replicate_all(statistics: Sequence[Statistic], weights: FloatArray) -> list[FloatArray]:
    """(replicates,) values of each statistic.

    All are read at a part of the draws before any is at the next: figures of one curve then share
    its counts, and memory stays bounded.
    """
    values = np.empty((len(statistics), len(weights)))
    for start in range(0, len(weights), _REPLICATES_AT_ONCE):
        drawn = weights[start : start + _REPLICATES_AT_ONCE]
        for row, statistic in zip(values, statistics, strict=True):
            row[start : start + len(drawn)] = statistic(drawn)
    return list(values)


def percentile_interval(
    replicates: FloatArray, n_patients: int, note: str, levels: tuple[float, float] = (0.025, 0.975)
) -> Interval:
    """Interval between two quantiles of the replicates that have a value.

    Args:
        replicates: (replicates,) values, NaN where undefined.
        n_patients: of the cohort.
        note: what is counted; grows by what was amiss.
        levels: of the two quantiles.
    """
    defined = replicates[~np.isnan(replicates)]
    if n_patients < 2 or not defined.size:
        return Interval(None, None, f"{note}; no interval from one patient or no replicate")
    if defined.size < replicates.size:
        note += f"; undefined in {replicates.size - defined.size} of {replicates.size} replicates"
    with np.errstate(invalid="ignore"):
        low, high = np.quantile(defined, levels)
    if not np.isfinite([low, high]).all():
        return Interval(None, None, f"{note}; no interval: infinite in too many replicates")
    if low == high:
        return Interval(None, None, f"{note}; no interval: the same in all replicates")
    return Interval(float(low), float(high), note)


def bca_levels(replicates: FloatArray, left_out: FloatArray, value: float) -> tuple[float, float]:
    """Levels of a bias-corrected and accelerated interval, instead of .025 and .975.

    Near a bound, as an AUC near 1, and with few patients it holds the truth more often than the
    plain percentiles (measured: docs/benchmarks.md).

    Source: Efron, Journal of the American Statistical Association 1987;82:171.

    Args:
        replicates: (replicates,) values, NaN where undefined.
        left_out: (patients,) values without each of the patients.
        value: the figure itself.
    """
    defined = replicates[~np.isnan(replicates)]
    if not defined.size:
        return 0.025, 0.975
    below = np.mean(defined < value) + np.mean(defined == value) / 2
    bias = ndtri(np.clip(below, 1e-3, 1 - 1e-3))
    finite = left_out[np.isfinite(left_out)]
    spread = finite.mean() - finite if finite.size else np.zeros(1)
    # At most 1/6 in size, so that the denominator below stays positive.
    acceleration = np.sum(spread**3) / max(6 * np.sum(spread**2) ** 1.5, np.finfo(float).tiny)
    reach = bias + np.array([-NORMAL_975, NORMAL_975])
    low, high = ndtr(bias + reach / (1 - acceleration * reach))
    return float(low), float(high)


def bootstrap_figure(statistic: Statistic, weights: FloatArray, n: int, note: str) -> Figure:
    """Value over all patients with the interval of the replicates, as `figure_of` gives it.

    Args:
        statistic: the figure as a function of patient weights.
        weights: (replicates, patients), as `patient_weights` gives them.
        n: number of units that the figure counts.
        note: what `n` counts, and if the value is undefined why that is so.
    """
    return figure_of(Measure(statistic, n, note), weights)


def figure_of(measure: Measure, weights: FloatArray) -> Figure:
    """Read a measure, with its own interval or else the BCa interval of the replicates."""
    return read_measures({"": {"": measure}}, weights)[""][""]


def read_measures(measures: Measures, weights: FloatArray) -> Figures:
    """All figures of a cohort, those without an interval in closed form from the same draws."""
    n_patients = weights.shape[1]
    resampled = {
        (group, name): measure.statistic
        for group, named in measures.items()
        for name, measure in named.items()
        if measure.interval is None and np.isfinite(measure.value(n_patients))
    }
    statistics = list(resampled.values())
    values = replicate_all(statistics, weights)
    left_out = replicate_all(statistics, 1 - np.eye(n_patients))
    replicates = dict(zip(resampled, zip(values, left_out, strict=True), strict=True))
    return {
        group: {
            name: _figure(measure, n_patients, replicates.get((group, name)))
            for name, measure in named.items()
        }
        for group, named in measures.items()
    }


def _figure(
    measure: Measure, n_patients: int, replicates: tuple[FloatArray, FloatArray] | None
) -> Figure:
    """A figure; `replicates` are those of the draws, and those without each patient."""
    value = measure.value(n_patients)
    if not np.isfinite(value):
        return undefined(measure.n, measure.note)
    if replicates is not None:
        levels = bca_levels(*replicates, value)
        interval = percentile_interval(replicates[0], n_patients, measure.note, levels)
        return Figure(value, interval.low, interval.high, measure.n, interval.note)
    closed = measure.interval or Interval(None, None, "no interval")
    return Figure(value, closed.low, closed.high, measure.n, f"{measure.note}; {closed.note}")
