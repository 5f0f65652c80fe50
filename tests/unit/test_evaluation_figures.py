import time

import numpy as np
import pytest

from bonemet_auto.evaluation.bootstrap import (
    bootstrap_figure,
    figure_of,
    mean_statistic,
    patient_weights,
)
from bonemet_auto.evaluation.classification import auc_statistic, delong_measure, share_measure
from bonemet_auto.evaluation.detection import (
    FROC_RATES,
    Candidates,
    average_precision,
    froc_sensitivity,
)
from bonemet_auto.evaluation.pairing import lesion_volumes, match_lesions, overlaps
from bonemet_auto.evaluation.segmentation import VoxelCounts, count_voxels


def line(*ids):
    return np.array(ids, np.uint16).reshape(1, 1, -1)


def test_a_lesion_goes_to_the_prediction_that_scores_best_not_to_the_one_that_fits_best():
    reference, predicted = line(1, 1, 1, 1, 0, 0), line(7, 8, 8, 8, 0, 9)
    matches = match_lesions(reference, predicted, {7: 0.9, 8: 0.5, 9: 0.7}, 0.1)
    assert {each: match.reference for each, match in matches.items()} == {7: 1, 8: 0, 9: 0}
    assert matches[7].iou == 0.25


def test_a_prediction_that_is_too_loose_leaves_the_lesion_to_the_next():
    reference, predicted = line(1, 1, 1, 1, 0, 0), line(7, 8, 8, 8, 0, 9)
    matches = match_lesions(reference, predicted, {7: 0.9, 8: 0.5}, 0.3)
    assert {each: match.reference for each, match in matches.items()} == {7: 0, 8: 1}
    assert matches[8].iou == 0.75


def test_a_prediction_over_two_lesions_takes_the_one_it_overlaps_most():
    matches = match_lesions(line(1, 2, 2, 0), line(4, 4, 4, 0), {4: 0.5}, 0.1)
    assert matches[4].reference == 2


def test_nothing_predicted_or_nothing_annotated_matches_nothing():
    empty, full = line(0, 0, 0), line(3, 0, 3)
    assert match_lesions(full, empty, {}, 0.1) == {}
    assert match_lesions(empty, full, {3: 0.5}, 0.1)[3].reference == 0
    assert lesion_volumes(empty) == {}
    assert lesion_volumes(full) == {3: 2}


def test_the_largest_id_is_told_from_others():
    found = overlaps(line(65535, 1, 0), line(65535, 65535, 0))
    assert found.reference.tolist() == [1, 65535]
    assert found.predicted.tolist() == [65535, 65535]
    assert found.iou.tolist() == [0.5, 0.5]


def test_voxel_figures_of_empty_masks_follow_the_stated_rules():
    assert count_voxels(np.zeros((1, 2, 2), bool), np.zeros((1, 2, 2), bool)).dice == 1
    assert VoxelCounts(shared=0, reference=3, predicted=0, total=9).dice == 0
    assert VoxelCounts(shared=0, reference=0, predicted=3, total=9).dice == 0
    assert VoxelCounts(shared=0, reference=0, predicted=3, total=9).sensitivity is None
    assert VoxelCounts(shared=4, reference=4, predicted=4, total=4).specificity is None
    assert VoxelCounts(shared=2, reference=4, predicted=3, total=14).specificity == 0.9


def candidates(scores, hits, patients=None, references=(2.0,), scans=(2.0,)):
    patients = [0] * len(scores) if patients is None else patients
    return Candidates(
        np.array(scores, float),
        np.array(hits, bool),
        np.array(patients, np.int64),
        np.array(references),
        np.array(scans),
    )


ONE = np.ones((1, 1))


@pytest.mark.parametrize(
    ("rate", "sensitivity"), [(0.125, 0.0), (0.5, 0.5), (1.0, 0.5), (2.0, 1.0)]
)
def test_froc_reads_the_best_threshold_that_a_rate_allows(rate, sensitivity):
    scored = candidates([0.9, 0.8, 0.7, 0.6, 0.5], [0, 1, 0, 0, 1])
    assert froc_sensitivity(scored, (rate,))(ONE).tolist() == [sensitivity]


def test_no_threshold_parts_equal_scores():
    scored = candidates([0.8, 0.8, 0.8, 0.8], [1, 1, 0, 0])
    assert froc_sensitivity(scored, (0.5,))(ONE).tolist() == [0.0]
    assert froc_sensitivity(scored, (1.0,))(ONE).tolist() == [1.0]
    assert average_precision(scored)(ONE).tolist() == [0.5]


def test_no_candidates_find_nothing_and_no_lesions_leave_the_curve_undefined():
    assert average_precision(candidates([], []))(ONE).tolist() == [0.0]
    assert froc_sensitivity(candidates([], []), FROC_RATES)(ONE).tolist() == [0.0]
    assert np.isnan(average_precision(candidates([0.5], [0], references=(0.0,)))(ONE)).all()


def test_weights_act_as_if_patients_were_there_that_often():
    scores, hits, patients = [0.9, 0.8, 0.7, 0.6], [1, 0, 0, 1], [0, 1, 1, 0]
    once = candidates(scores, hits, patients, (3.0, 1.0), (1.0, 1.0))
    twice = candidates(
        scores + scores[1:3], hits + hits[1:3], [0, 1, 1, 0, 2, 2], (3.0, 1.0, 1.0), (1.0,) * 3
    )
    drawn, all_three = np.array([[1.0, 2.0]]), np.ones((1, 3))
    for statistic in (average_precision, lambda c: froc_sensitivity(c, FROC_RATES)):
        np.testing.assert_allclose(statistic(once)(drawn), statistic(twice)(all_three))


def test_bootstrap_intervals_are_repeatable_and_hold_the_value():
    rng = np.random.default_rng(0)
    values, patients = rng.random(60), rng.integers(0, 20, 60)
    statistic = mean_statistic(values, patients, 20)
    first, second = (
        bootstrap_figure(statistic, patient_weights(20, 500, np.random.default_rng(1)), 60, "x")
        for _ in range(2)
    )
    assert first == second
    assert first.value == pytest.approx(values.mean())
    assert first.low < first.value < first.high


def test_the_interval_of_a_mean_is_as_wide_as_theory_says():
    values = np.random.default_rng(0).normal(size=400)
    weights = patient_weights(400, 2000, np.random.default_rng(1))
    figure = bootstrap_figure(mean_statistic(values, np.arange(400), 400), weights, 400, "")
    width = 2 * 1.96 * values.std() / 20
    assert figure.high - figure.low == pytest.approx(width, rel=0.1)


def test_lesions_are_resampled_with_their_patient():
    values, patients = np.repeat([0.0, 1.0], 50), np.repeat([0, 1], 50)
    weights = patient_weights(2, 200, np.random.default_rng(0))
    figure = bootstrap_figure(mean_statistic(values, patients, 2), weights, 100, "")
    assert (figure.value, figure.low, figure.high) == (0.5, 0.0, 1.0)


def test_replicates_without_a_value_are_counted_and_one_patient_has_no_interval():
    scores, positive = np.array([0.1, 0.9]), np.array([False, True])
    statistic = auc_statistic(scores, positive, np.array([0, 1]))
    weights = patient_weights(2, 100, np.random.default_rng(0))
    figure = bootstrap_figure(statistic, weights, 2, "patients")
    undefined = int((weights == 2).any(axis=1).sum())
    assert figure.value == 1
    assert f"undefined in {undefined} of 100 replicates" in figure.note
    alone = bootstrap_figure(lambda w: w[:, 0] * 0.5, np.ones((9, 1)), 1, "")
    assert (alone.value, alone.low, alone.high) == (0.5, None, None)


def share_figure(successes, patients=None):
    successes = np.array(successes, bool)
    patients = np.arange(successes.size) if patients is None else np.array(patients)
    n_patients = int(max(patients, default=0)) + 1
    measure = share_measure(successes, patients, n_patients, "lesions", "none")
    return figure_of(measure, patient_weights(n_patients, 300, np.random.default_rng(0)))


def test_wilson_interval_of_a_known_example():
    figure = share_figure(np.arange(10) < 8)
    assert (figure.low, figure.high) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert share_figure(np.ones(5)).high == 1.0
    assert share_figure([]).note == "none"


def test_a_share_of_lesions_that_share_patients_comes_from_resampling_them():
    figure = share_figure([1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1])
    assert (figure.value, figure.low, figure.high, figure.note) == (0.5, 0, 1, "lesions")


def test_lesions_that_all_agree_still_leave_doubt_as_large_as_that_of_their_patients():
    figure, of_patients = share_figure(np.ones(12), np.arange(12) // 3), share_figure(np.ones(4))
    assert (figure.low, figure.high) == (of_patients.low, of_patients.high)
    assert (figure.n, figure.note) == (12, "lesions; Wilson interval of 4 patients")


def test_a_figure_that_is_the_same_in_all_replicates_has_no_interval_of_width_zero():
    weights = patient_weights(4, 50, np.random.default_rng(0))
    figure = bootstrap_figure(mean_statistic(np.zeros(4), np.arange(4), 4), weights, 4, "scans")
    assert (figure.value, figure.low, figure.high) == (0, None, None)
    assert figure.note == "scans; no interval: the same in all replicates"


def delong_figure(scores, truth):
    measure = delong_measure(scores, truth, np.arange(truth.size), "patients")
    return figure_of(measure, np.ones((1, truth.size)))


@pytest.mark.parametrize("positive", [[], [True, True], [False]])
def test_one_class_has_no_auc_and_says_so(positive):
    truth = np.array(positive, bool)
    figure = delong_figure(np.linspace(0, 1, truth.size), truth)
    assert (figure.value, figure.low, figure.high) == (None, None, None)
    assert figure.note


def test_perfect_ranking_has_an_auc_but_no_delong_interval():
    figure = delong_figure(np.array([0.1, 0.2, 0.8, 0.9]), np.array([0, 0, 1, 1], bool))
    assert (figure.value, figure.low, figure.high) == (1.0, None, None)


def test_matching_forty_scans_takes_no_time():
    rng = np.random.default_rng(0)
    predicted = np.kron(rng.integers(0, 60, (10, 10, 10)), np.ones((10, 10, 10))).astype(np.uint16)
    reference = np.roll(predicted, 2, axis=2)
    scores = {each: float(rng.random()) for each in lesion_volumes(predicted)}
    start = time.perf_counter()
    for _ in range(4):
        match_lesions(reference, predicted, scores, 0.1)
    assert time.perf_counter() - start < 2.0
