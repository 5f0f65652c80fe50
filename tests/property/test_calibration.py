"""Calibration of drawn patients against rows written out, and the equations that fits solve."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit

from bonemet_auto.evaluation.calibration import (
    ECE_BINS,
    calibration_error,
    calibration_intercept,
    calibration_slope,
)

ROWS = st.lists(
    st.tuples(st.integers(0, 20).map(lambda grade: grade / 20), st.booleans(), st.integers(0, 3)),
    min_size=1,
    max_size=14,
)
WEIGHTS = st.lists(st.integers(0, 3), min_size=4, max_size=4)


def columns(rows):
    probability, positive, patients = zip(*rows, strict=True)
    return np.array(probability, float), np.array(positive, bool), np.array(patients)


def written_out(rows, weights):
    """Probability and truth of every row as often as its patient is drawn."""
    probability, positive, patients = columns(rows)
    times = np.array(weights)[patients]
    return np.repeat(probability, times), np.repeat(positive, times)


def drawn(weights):
    return np.array([weights], float)


@given(ROWS, WEIGHTS)
def test_the_slope_solves_its_equations_or_says_why_not(rows, weights):
    slope = calibration_slope(*columns(rows))(drawn(weights))[0]
    probability, positive = written_out(rows, weights)
    logits = logit(np.clip(probability, 1e-6, 1 - 1e-6))
    above, below = logits[positive], logits[~positive]
    if not above.size or not below.size or np.ptp(logits) == 0:
        assert np.isnan(slope)
    elif above.min() >= below.max():
        assert slope == np.inf
    elif above.max() <= below.min():
        assert slope == -np.inf
    else:
        low, high = -60.0, 60.0
        for _ in range(200):  # the intercept that makes the residuals of this slope sum to zero
            middle = (low + high) / 2
            too_low = np.sum(positive - expit(middle * 20 + slope * logits)) > 0
            low, high = (middle, high) if too_low else (low, middle)
        residuals = positive - expit(middle * 20 + slope * logits)
        assert np.sum(residuals * logits) == pytest.approx(0, abs=1e-5)


@given(ROWS, WEIGHTS)
def test_calibration_in_the_large_makes_residuals_sum_to_zero(rows, weights):
    shift = calibration_intercept(*columns(rows))(drawn(weights))[0]
    probability, positive = written_out(rows, weights)
    if not positive.any() or positive.all():
        assert np.isnan(shift)
    else:
        fitted = expit(shift + logit(np.clip(probability, 1e-6, 1 - 1e-6)))
        assert np.sum(positive - fitted) == pytest.approx(0, abs=1e-6)


@given(ROWS, WEIGHTS)
def test_calibration_error_goes_through_the_bins(rows, weights):
    error = calibration_error(*columns(rows), 4)(drawn(weights))[0]
    probability, positive = written_out(rows, weights)
    expected, edges = 0.0, [number / ECE_BINS for number in range(ECE_BINS + 1)]
    for low, high in zip(edges, edges[1:], strict=False):
        inside = (probability >= low) & ((probability < high) | (high == 1))
        if inside.any():
            gap = abs(positive[inside].mean() - probability[inside].mean())
            expected += gap * inside.sum() / positive.size
    if positive.size:
        assert error == pytest.approx(expected)
    else:
        assert np.isnan(error)
