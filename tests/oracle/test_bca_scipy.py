"""Bias-corrected and accelerated intervals against SciPy's, from the same replicates."""

import numpy as np
import pytest
from scipy.stats import bootstrap

from bonemet_auto.evaluation.bootstrap import (
    bca_levels,
    mean_statistic,
    percentile_interval,
    replicate,
)


@pytest.mark.parametrize("seed", range(4))
def test_interval_of_a_skewed_mean(seed):
    values = np.random.default_rng(seed).lognormal(size=25)
    theirs = bootstrap((values,), np.mean, n_resamples=999, method="BCa", rng=seed)
    left_out = replicate(mean_statistic(values, np.arange(25), 25), 1 - np.eye(25))
    levels = bca_levels(theirs.bootstrap_distribution, left_out, values.mean())
    ours = percentile_interval(theirs.bootstrap_distribution, 25, "", levels)
    np.testing.assert_allclose([ours.low, ours.high], theirs.confidence_interval)
    assert levels[0] > 0.025  # the long tail lies on the right
