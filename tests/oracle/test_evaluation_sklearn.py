"""Areas and errors against scikit-learn."""

import numpy as np
import pytest

from bonemet_auto.evaluation.bootstrap import mean_statistic
from bonemet_auto.evaluation.classification import auc_statistic, delong_measure
from bonemet_auto.evaluation.detection import Candidates, average_precision

metrics = pytest.importorskip("sklearn.metrics")
pytestmark = pytest.mark.oracle


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
