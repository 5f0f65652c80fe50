"""Areas and errors against scikit-learn."""

import numpy as np
import pytest
from sklearn import calibration, linear_model, metrics

from bonemet_auto.evaluation.bootstrap import mean_statistic, patient_weights
from bonemet_auto.evaluation.calibration import (
    calibration_error,
    calibration_intercept,
    calibration_slope,
)
from bonemet_auto.evaluation.classification import auc_statistic, delong_measure
from bonemet_auto.evaluation.detection import Candidates, average_precision
from bonemet_auto.evaluation.source import Estimates, lesion_measures


@pytest.fixture(params=range(5))
def data(request):
    rng = np.random.default_rng(request.param)
    scores = np.round(rng.random(80), 1 + request.param)
    truth = rng.random(80) < 0.3 + 0.4 * scores
    weights = rng.integers(0, 3, 80).astype(float)
    return scores, truth, weights


def test_auc(data):
    scores, truth, weights = data
    statistic = auc_statistic(scores, truth, np.arange(80))
    delong = delong_measure(scores, truth, np.arange(80), "patients")
    assert delong.value(80) == pytest.approx(metrics.roc_auc_score(truth, scores))
    expected = metrics.roc_auc_score(truth, scores, sample_weight=weights)
    np.testing.assert_allclose(statistic(weights[None]), [expected])


def test_average_precision_where_every_lesion_has_a_candidate(data):
    scores, hits, weights = data
    everything = Candidates(scores, hits, np.arange(80), hits.astype(float), np.ones(80))
    expected = metrics.average_precision_score(hits, scores, sample_weight=weights)
    np.testing.assert_allclose(average_precision(everything)(weights[None]), [expected])


def test_average_precision_shrinks_by_the_share_of_lesions_without_a_candidate(data):
    scores, hits, _ = data
    references = hits + np.eye(1, 80)[0] * 20
    some_missed = Candidates(scores, hits, np.arange(80), references, np.ones(80))
    share = hits.sum() / (hits.sum() + 20)
    expected = metrics.average_precision_score(hits, scores) * share
    np.testing.assert_allclose(average_precision(some_missed)(np.ones((1, 80))), [expected])


def test_brier_score(data):
    probability, truth, weights = data
    statistic = mean_statistic((probability - truth) ** 2, np.arange(80), 80)
    expected = metrics.brier_score_loss(truth, probability, sample_weight=weights)
    np.testing.assert_allclose(statistic(weights[None]), [expected])


@pytest.fixture
def lesions(data):
    """The same rows as lesions of 20 patients, so that every weight counts several of them."""
    probability, truth, _ = data
    patients = np.random.default_rng(1).integers(0, 20, 80)
    return probability, truth, patients


def patient_draws(replicates):
    return patient_weights(20, replicates, np.random.default_rng(2))


def test_calibration_slope(lesions):
    probability, truth, patients = lesions
    slopes = calibration_slope(probability, truth, patients)(patient_draws(8))
    inside = np.clip(probability, 1e-6, 1 - 1e-6)[:, None]
    for slope, weights in zip(slopes, patient_draws(8), strict=True):
        regression = linear_model.LogisticRegression(C=np.inf, tol=1e-10, max_iter=5000)
        regression.fit(np.log(inside / (1 - inside)), truth, sample_weight=weights[patients])
        assert slope == pytest.approx(regression.coef_.item(), rel=1e-4)


def test_calibration_in_the_large_makes_the_mean_probability_the_share_of_positives(lesions):
    probability, truth, patients = lesions
    draws = patient_draws(8)
    inside = np.clip(probability, 1e-6, 1 - 1e-6)
    for shift, weights in zip(
        calibration_intercept(probability, truth, patients)(draws), draws, strict=True
    ):
        moved = 1 / (1 + (1 - inside) / inside * np.exp(-shift))
        drawn = weights[patients]
        assert np.average(moved, weights=drawn) == pytest.approx(np.average(truth, weights=drawn))


def test_calibration_error_sums_the_gaps_of_the_calibration_curve(lesions):
    rounded, truth, patients = lesions
    probability = 0.97 * rounded + 0.013  # on no edge: it falls into the bin above here, not below
    share, mean = calibration.calibration_curve(truth, probability, n_bins=10)
    counts = np.histogram(probability, np.linspace(0, 1, 11))[0]
    expected = np.sum(counts[counts > 0] * np.abs(share - mean)) / 80
    error = calibration_error(probability, truth, patients, 20)
    np.testing.assert_allclose(error(np.ones((1, 20))), [expected])


def test_shares_of_the_confusion_matrix(lesions):
    probability, truth, patients = lesions
    called = probability >= 0.5
    measures = lesion_measures(
        Estimates(probability, truth, called, patients, 20, "lesions", "lesions")
    )
    weights = patient_draws(1)
    drawn = {"sample_weight": weights[0][patients]}
    expected = {
        "accuracy": metrics.accuracy_score(truth, called, **drawn),
        "sensitivity": metrics.recall_score(truth, called, **drawn),
        "specificity": metrics.recall_score(~truth, ~called, **drawn),
        "ppv": metrics.precision_score(truth, called, **drawn),
        "npv": metrics.precision_score(~truth, ~called, **drawn),
        "ap": metrics.average_precision_score(truth, probability, **drawn),
        "brier": metrics.brier_score_loss(truth, probability, **drawn),
        "auc": metrics.roc_auc_score(truth, probability, **drawn),
    }
    found = {name: measures[f"source_{name}"].statistic(weights)[0] for name in expected}
    assert found == pytest.approx(expected)
