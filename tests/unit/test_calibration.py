"""Calibration figures at their edges, and decision curves."""

import numpy as np
import pytest

from bonemet_auto.evaluation.bootstrap import figure_of, patient_weights
from bonemet_auto.evaluation.calibration import (
    calibration_error,
    calibration_error_by_chance,
    calibration_slope,
)
from bonemet_auto.evaluation.decision import decision_curves
from bonemet_auto.evaluation.source import Estimates, patient_measures


def estimates(probability, positive):
    probability, positive = np.array(probability, float), np.array(positive, bool)
    n = probability.size
    return Estimates(
        probability, positive, probability >= 0.5, np.arange(n), max(n, 1), "patients", "patients"
    )


def figure(name, probability, positive, replicates=200):
    weights = patient_weights(max(len(probability), 1), replicates, np.random.default_rng(0))
    return figure_of(patient_measures(estimates(probability, positive))[name], weights)


def test_the_error_by_chance_is_what_true_probabilities_show_on_average():
    rng = np.random.default_rng(0)
    probability = rng.random(106)
    errors = [
        calibration_error(probability, rng.random(106) < probability, np.arange(106), 106)
        for _ in range(400)
    ]
    mean = np.mean([error(np.ones((1, 106)))[0] for error in errors])
    assert calibration_error_by_chance(probability) == pytest.approx(mean, rel=0.05)


def test_a_calibration_error_comes_with_what_chance_explains_instead_of_an_interval():
    error = figure("ece", [0.2, 0.4, 0.9], [0, 1, 1])
    assert error.value == pytest.approx((0.2 + 0.6 + 0.1) / 3)
    assert (error.low, error.high) == (None, None)
    assert error.note.startswith("patients; no interval; 0.3")


@pytest.mark.parametrize(
    ("probability", "positive", "note"),
    [
        ([0.2, 0.4, 0.9], [0, 0, 1], "infinite: a threshold parts the classes"),
        ([0.2, 0.4, 0.9], [1, 1, 0], "infinite: a threshold parts the classes"),
        ([0.4, 0.4, 0.4], [0, 0, 1], "all 3 patients have one probability"),
        ([0.2, 0.4], [1, 1], "all 2 patients are positive"),
        ([], [], "no patients with a known source and an estimate"),
    ],
)
def test_a_slope_that_does_not_exist_says_why(probability, positive, note):
    slope = figure("calibration_slope", probability, positive)
    assert (slope.value, slope.low, slope.note) == (None, None, note)


def test_a_slope_that_most_replicates_lack_has_no_interval():
    slope = figure("calibration_slope", [0.1, 0.2, 0.5, 0.4, 0.8, 0.9], [0, 0, 0, 1, 1, 1])
    assert slope.value > 1
    assert (slope.low, slope.high) == (None, None)
    assert "infinite in too many replicates" in slope.note


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_logits_that_are_stretched_shrink_the_slope_by_as_much(factor):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=300)
    positive = rng.random(300) < 1 / (1 + np.exp(-logits))
    plain, stretched = (
        calibration_slope(1 / (1 + np.exp(-each)), positive, np.arange(300))(np.ones((1, 300)))
        for each in (logits, factor * logits)
    )
    np.testing.assert_allclose(stretched, plain / factor)


@pytest.mark.parametrize("name", ["ap", "auc", "auc_delong", "calibration_intercept"])
def test_one_class_has_no_such_figure(name):
    of_one_class = figure(name, [0.2, 0.4, 0.9], [1, 1, 1])
    assert (of_one_class.value, of_one_class.note) == (None, "all 3 patients are positive")


def test_acting_on_all_is_worth_what_the_curve_gives_at_probabilities_above_the_threshold():
    rng = np.random.default_rng(0)
    both = estimates(0.3 + 0.7 * rng.random(50), rng.random(50) < 0.4)
    weights = patient_weights(50, 200, rng)
    curve = decision_curves({"patient": both, "lesion": estimates([], [])}, weights)
    assert curve["group"].unique().tolist() == ["patient"]
    low = curve[curve["threshold"] < 0.3]
    np.testing.assert_allclose(low["net_benefit"], low["treat_all"])
    assert ((curve["low"] <= curve["net_benefit"]) & (curve["net_benefit"] <= curve["high"])).all()
    assert not curve.isna().any(axis=None)
