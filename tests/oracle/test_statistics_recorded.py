"""Tests and intervals against what other libraries say of the same sixty patients.

Recorded with MLstatkit 0.1.91 (paired DeLong), confidenceinterval 1.0.5 (DeLong, not on the logit),
statsmodels 0.15.0 (McNemar, logistic regressions) and dcurves 1.1.7 (net benefit).
"""

import numpy as np
import pytest

from bonemet_auto.evaluation.calibration import calibration_intercept, calibration_slope
from bonemet_auto.evaluation.classification import delong_interval, placements
from bonemet_auto.evaluation.comparison import delong_difference, mcnemar
from bonemet_auto.evaluation.decision import decision_curves
from bonemet_auto.evaluation.source import Estimates

TRUTH = np.array([each == "1" for each in
    "101011100101111001110001000101111000010101011001011111101010"])  # fmt: skip
FIRST = np.array([
    93, 54, 86, 35, 16, 81, 72, 3, 19, 48, 56, 72, 75, 74, 37, 6, 32, 62, 69, 65, 21, 44, 35, 54, 6,
    3, 10, 66, 53, 59, 81, 88, 96, 37, 67, 36, 12, 19, 38, 84, 84, 53, 42, 66, 17, 40, 25, 38, 71,
    55, 78, 63, 52, 65, 83, 18, 30, 73, 78, 15,
]) / 100  # fmt: skip
SECOND = np.array([
    85, 13, 79, 54, 9, 89, 86, 8, 26, 53, 33, 29, 94, 59, 59, 12, 42, 79, 47, 76, 21, 20, 64, 85, 6,
    8, 8, 42, 21, 77, 45, 51, 92, 20, 77, 16, 13, 27, 5, 84, 75, 82, 32, 82, 39, 33, 15, 52, 29, 77,
    61, 43, 61, 68, 40, 10, 38, 62, 84, 38,
]) / 100  # fmt: skip


def estimates(probability):
    rows = np.arange(60)
    return Estimates(probability, TRUTH, probability >= 0.5, rows, 60, "patients", "patients")


@pytest.mark.parametrize(
    ("scores", "auc", "low", "high"),
    [
        (FIRST, 0.8092031425, 0.6973173982, 0.9210888869),
        (SECOND, 0.8681257015, 0.7753019196, 0.9609494833),
    ],
)
def test_the_variance_of_an_auc(scores, auc, low, high):
    above, below = placements(scores, TRUTH)
    error = np.sqrt(above.var(ddof=1) / above.size + below.var(ddof=1) / below.size)
    plain = np.mean(above) + 1.959963984540054 * error * np.array([-1, 0, 1])
    np.testing.assert_allclose(plain, [low, auc, high], atol=1e-9)
    on_logit = delong_interval(scores, TRUTH)
    logits = np.log(np.divide([on_logit.low, on_logit.high], [1 - on_logit.low, 1 - on_logit.high]))
    assert logits.mean() == pytest.approx(np.log(auc / (1 - auc)))
    assert np.ptp(logits) == pytest.approx((high - low) / (auc * (1 - auc)))


def test_the_difference_of_two_aucs():
    difference = delong_difference(estimates(FIRST), estimates(SECOND))
    assert difference.p_value == pytest.approx(0.19034226224735118)
    error = (difference.high - difference.low) / 2 / 1.959963984540054
    assert difference.difference / error == pytest.approx(-1.3095672835737915)
    assert error**2 == pytest.approx(0.0020244523786891915)


@pytest.mark.parametrize(
    ("only_first", "only_second", "p_value"),
    [(8, 7, 1.0), (9, 2, 0.0654296875), (0, 6, 0.03125), (30, 17, 0.07894069368148846), (1, 0, 1)],
)
def test_mcnemar(only_first, only_second, p_value):
    first = np.repeat([True, False, True, False], [only_first, only_second, 5, 3])
    second = np.repeat([False, True, True, False], [only_first, only_second, 5, 3])
    found, note = mcnemar(first, second)
    assert found == pytest.approx(p_value)
    assert note == f"McNemar: {only_first} right only in first, {only_second} only in second"


def test_calibration():
    slope = calibration_slope(FIRST, TRUTH, np.arange(60))(np.ones((1, 60)))
    intercept = calibration_intercept(FIRST, TRUTH, np.arange(60))(np.ones((1, 60)))
    np.testing.assert_allclose([slope[0], intercept[0]], [1.06678347, 0.26631986], atol=1e-7)


def test_net_benefit():
    curve = decision_curves({"patient": estimates(FIRST)}, np.ones((3, 60))).set_index("threshold")
    thresholds = [0.1, 0.25, 0.5, 0.75, 0.9]
    np.testing.assert_allclose(
        curve.loc[thresholds, "net_benefit"],
        [0.507407, 0.405556, 0.316667, 0.133333, 0.033333],
        atol=1e-6,
    )
    np.testing.assert_allclose(curve.loc[thresholds, "treat_all"], [0.5, 0.4, 0.1, -0.8, -3.5])
    assert (curve["treat_none"] == 0).all()
