"""Curves of the report against scikit-learn and against slow, obvious references."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import auc, precision_recall_curve, roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc

from bonemet_auto.evaluation.classification import single_class_reason
from bonemet_auto.evaluation.curves import (
    calibration_bins,
    precision_recall,
    roc_curve,
    volume_agreement,
)
from bonemet_auto.evaluation.decision import THRESHOLDS, decision_curves
from bonemet_auto.evaluation.source import Estimates, lesion_estimates, patient_estimates

ROWS = st.lists(st.tuples(st.integers(0, 8), st.booleans(), st.integers(0, 4)), min_size=2)


def estimates(probability, positive, patients):
    n_patients = int(patients.max()) + 1
    return Estimates(probability, positive, probability >= 0.5, patients, n_patients, "rows", "")


def drawn_rows(rows):
    eighths, positive, patients = (np.array(column) for column in zip(*rows, strict=True))
    return estimates(eighths / 8, positive, np.unique(patients, return_inverse=True)[1])


@given(ROWS)
def test_roc_and_precision_recall_are_those_of_scikit_learn(rows):
    rows_of = drawn_rows(rows)
    truth, probability = rows_of.positive, rows_of.probability
    if single_class_reason(rows_of.positive, "rows"):
        return
    curve = roc_curve(rows_of, n_bootstrap=5)
    fpr, tpr, _ = sklearn_roc(truth, probability, drop_intermediate=False)
    assert np.allclose((curve.fpr, curve.tpr), (fpr, tpr))
    assert auc(curve.fpr, curve.tpr) == pytest.approx(roc_auc_score(truth, probability))
    recall, precision = precision_recall(rows_of)
    theirs, recalls, _ = precision_recall_curve(truth, probability)
    assert np.allclose(precision[::-1], theirs[:-1]) and np.allclose(recall[::-1], recalls[:-1])


def test_the_band_holds_the_curve_and_keeps_lesions_with_their_patient():
    rng = np.random.default_rng(1)
    positive = rng.random(200) < 0.4
    probability = np.clip(rng.normal(0.35 + 0.3 * positive, 0.2), 0, 1)
    alone = roc_curve(estimates(probability, positive, np.arange(200)))
    inside = np.interp(alone.grid, alone.fpr, alone.tpr)
    assert (alone.low <= inside + 1e-9).all() and (inside <= alone.high + 1e-9).all()
    few = roc_curve(estimates(probability, positive, np.repeat(np.arange(8), 25)))
    copies = roc_curve(
        estimates(np.tile(probability[:50], 4), np.tile(positive[:50], 4),
                np.tile(np.arange(50), 4))
    )  # fmt: skip
    once = roc_curve(estimates(probability[:50], positive[:50], np.arange(50)))
    assert few.low.size and np.allclose(copies.low, once.low)


def test_a_single_patient_has_a_curve_and_no_band():
    one = estimates(np.array([0.2, 0.8]), np.array([False, True]), np.zeros(2, int))
    curve = roc_curve(one)
    assert curve.tpr.tolist() == [0, 1, 1] and curve.grid.size == 0


@given(ROWS)
def test_bins_hold_every_row_once_where_its_probability_belongs(rows):
    rows_of = drawn_rows(rows)
    bins = calibration_bins(rows_of)
    assert sum(each.n for each in bins) == len(rows)
    mean = sum(each.n * each.probability for each in bins) / len(rows)
    assert mean == pytest.approx(rows_of.probability.mean())
    assert sum(each.n * each.share for each in bins) == pytest.approx(rows_of.positive.sum())
    assert all(each.low <= each.share + 1e-9 and each.share <= each.high + 1e-9 for each in bins)


@given(ROWS, st.sampled_from(THRESHOLDS.tolist()))
def test_net_benefit_is_that_of_counting_one_by_one(rows, threshold):
    rows_of = drawn_rows(rows)
    worth = 0.0
    for probability, positive in zip(rows_of.probability, rows_of.positive, strict=True):
        if probability >= threshold:
            worth += 1.0 if positive else -threshold / (1 - threshold)
    curve = decision_curves({"rows": rows_of}, np.ones((1, rows_of.n_patients)))
    (found,) = curve.loc[curve["threshold"] == threshold, "net_benefit"]
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
    patients = pd.DataFrame(
        {
            "patient": [0, 1, 2, 3],
            "patient_label": pd.array([1, 0, pd.NA, 0], "Int64"),
            "predicted_label": pd.array([1, 0, 1, 0], "Int64"),
            "probability": [0.6, 0.3, 0.4, np.nan],
        }
    )
    found = patient_estimates(patients, 4, "patients")
    assert (found.probability.tolist(), found.positive.tolist()) == ([0.6, 0.3], [True, False])
    lesions = pd.DataFrame(
        {
            "patient": [0, 1, 1, 2],
            "is_lung": pd.array([True, False, pd.NA, True], "boolean"),
            "p_lung_metastasis": [0.9, 0.1, 0.5, np.nan],
        }
    )
    found = lesion_estimates(lesions, 3, "found lesions")
    assert (found.probability.tolist(), found.patients.tolist()) == ([0.9, 0.1], [0, 1])
