"""Curves of the report against scikit-learn and against slow, obvious references."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import auc, precision_recall_curve, roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc

from bonemet_auto.evaluation.curves import (
    Answers,
    calibration_bins,
    lesion_answers,
    net_benefit,
    patient_answers,
    precision_recall,
    roc_curve,
    volume_agreement,
)

ROWS = st.lists(st.tuples(st.integers(0, 8), st.booleans(), st.integers(0, 4)), min_size=2)


def answers(rows):
    tenths, positive, patients = (np.array(column) for column in zip(*rows, strict=True))
    return Answers(tenths / 8, positive, np.unique(patients, return_inverse=True)[1], "patients")


@given(ROWS)
def test_roc_and_precision_recall_are_those_of_scikit_learn(rows):
    given_answers = answers(rows)
    truth, probability = given_answers.positive, given_answers.probability
    if given_answers.one_class:
        return
    curve = roc_curve(given_answers, n_bootstrap=5)
    fpr, tpr, _ = sklearn_roc(truth, probability, drop_intermediate=False)
    assert np.allclose((curve.fpr, curve.tpr), (fpr, tpr))
    assert auc(curve.fpr, curve.tpr) == pytest.approx(roc_auc_score(truth, probability))
    recall, precision = precision_recall(given_answers)
    theirs, recalls, _ = precision_recall_curve(truth, probability)
    assert np.allclose(precision[::-1], theirs[:-1]) and np.allclose(recall[::-1], recalls[:-1])


def test_the_band_holds_the_curve_and_keeps_lesions_with_their_patient():
    rng = np.random.default_rng(1)
    positive = rng.random(200) < 0.4
    probability = np.clip(rng.normal(0.35 + 0.3 * positive, 0.2), 0, 1)
    alone = roc_curve(Answers(probability, positive, np.arange(200), "lesions"))
    inside = np.interp(alone.grid, alone.fpr, alone.tpr)
    assert (alone.low <= inside + 1e-9).all() and (inside <= alone.high + 1e-9).all()
    few = roc_curve(Answers(probability, positive, np.repeat(np.arange(8), 25), "lesions"))
    copies = roc_curve(
        Answers(np.tile(probability[:50], 4), np.tile(positive[:50], 4),
                np.tile(np.arange(50), 4), "lesions")
    )  # fmt: skip
    once = roc_curve(Answers(probability[:50], positive[:50], np.arange(50), "lesions"))
    assert few.low.size and np.allclose(copies.low, once.low)


def test_a_single_patient_has_a_curve_and_no_band():
    one = Answers(np.array([0.2, 0.8]), np.array([False, True]), np.zeros(2, int), "lesions")
    curve = roc_curve(one)
    assert curve.tpr.tolist() == [0, 1, 1] and curve.grid.size == 0


@given(ROWS)
def test_bins_hold_every_row_once_where_its_probability_belongs(rows):
    given_answers = answers(rows)
    bins = calibration_bins(given_answers)
    assert sum(each.n for each in bins) == len(rows)
    mean = sum(each.n * each.probability for each in bins) / len(rows)
    assert mean == pytest.approx(given_answers.probability.mean())
    assert sum(each.n * each.share for each in bins) == pytest.approx(given_answers.positive.sum())
    assert all(each.low <= each.share + 1e-9 and each.share <= each.high + 1e-9 for each in bins)


@given(ROWS, st.floats(0.05, 0.95))
def test_net_benefit_is_that_of_counting_one_by_one(rows, threshold):
    given_answers = answers(rows)
    worth = 0.0
    for probability, positive in zip(
        given_answers.probability, given_answers.positive, strict=True
    ):
        if probability >= threshold:
            worth += 1.0 if positive else -threshold / (1 - threshold)
    (found,) = net_benefit(given_answers, np.array([threshold]))
    assert found == pytest.approx(worth / len(rows))


def test_volumes_agree_as_worked_out_by_hand():
    cases = pd.DataFrame(
        {"volume_mm3": [1000.0, 0, 2000, 0], "predicted_volume_mm3": [1500.0, 0, 1500, 300]}
    )
    found = volume_agreement(cases)
    assert found.difference_mm3.tolist() == [500, -500, 300]
    assert found.mean_mm3.tolist() == [1250, 1750, 150]
    assert (found.bias_mm3, found.n_empty) == (100, 1)
    spread = 1.96 * np.std([500, -500, 300], ddof=1)
    assert found.limits_mm3 == pytest.approx((100 - spread, 100 + spread), rel=1e-3)
    assert volume_agreement(cases.iloc[:2]) is None
    boxes = pd.concat([cases, cases.assign(predicted_volume_mm3=np.nan)])
    assert volume_agreement(boxes).difference_mm3.tolist() == [500, -500, 300]


def test_rows_are_those_of_known_source_with_an_estimate():
    cases = pd.DataFrame(
        {
            "patient_id": ["a", "a", "b", "c", "d"],
            "patient_label": pd.array([0, 1, 0, pd.NA, 0], "Int64"),
            "probability": [0.2, 0.6, 0.3, 0.4, np.nan],
        }
    )
    found = patient_answers(cases)
    assert (found.probability.tolist(), found.positive.tolist()) == ([0.6, 0.3], [True, False])
    lesions = pd.DataFrame(
        {
            "patient_id": ["a", "b", "b", "c", "c"],
            "reference_id": [1, 1, 2, 0, 1],
            "is_lung": pd.array([True, False, pd.NA, pd.NA, True], "boolean"),
            "p_lung_metastasis": [0.9, 0.1, 0.5, 0.7, np.nan],
        }
    )
    found = lesion_answers(lesions)
    assert (found.probability.tolist(), found.patients.tolist()) == ([0.9, 0.1], [0, 1])
