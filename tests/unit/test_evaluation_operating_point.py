import numpy as np
import pytest

from bonemet_auto.evaluation.operating_point import ScoredCase, choose_operating_point


def scored(scores=(), matched=(), n_reference=0, p_lung=None, label=None):
    scores = np.asarray(scores, np.float32)
    p_lung = np.full(len(scores), 0.5) if p_lung is None else np.asarray(p_lung)
    return ScoredCase(scores, np.asarray(matched, np.int64), n_reference, p_lung, label)


def test_the_threshold_lies_midway_above_the_first_false_positive_too_many():
    cases = [
        scored([0.9, 0.8, 0.6, 0.2], [1, 0, 2, 3], 3),
        scored([0.5, 0.3], [0, 0], 0),
    ]
    point = choose_operating_point(cases)
    assert point.score_threshold == pytest.approx(0.55)
    assert point.sensitivity == pytest.approx(2 / 3)
    assert point.fp_per_scan == pytest.approx(0.5)
    assert "lowest with <= 0.5 FP per scan" in point.rule


def test_where_all_candidates_are_allowed_all_are_kept():
    point = choose_operating_point([scored([0.9, 0.2], [1, 2], 2)])
    assert point.score_threshold == pytest.approx(0.1)


def test_more_false_positives_allowed_find_more():
    case = scored([0.9, 0.8, 0.6, 0.2], [0, 0, 1, 2], 2)
    assert choose_operating_point([case], max_fp_per_scan=2.0).score_threshold == pytest.approx(0.1)


def test_equal_scores_are_kept_or_dropped_together():
    case = scored([0.9, 0.5, 0.5, 0.5, 0.3], [1, 2, 0, 0, 0], 2)
    point = choose_operating_point([case], max_fp_per_scan=1.0)
    assert point.score_threshold == pytest.approx(0.7)
    assert (point.sensitivity, point.fp_per_scan) == (0.5, 0.0)


@pytest.mark.parametrize(
    ("cases", "reason", "sensitivity", "fp_per_scan"),
    [
        ([], "no annotated lesions", None, None),
        ([scored()], "no annotated lesions", None, 0.0),
        ([scored([0.6, 0.4], [0, 0])], "no annotated lesions", None, 1.0),
        ([scored(n_reference=2)], "no candidates", 0.0, 0.0),
        ([scored([0.9, 0.8, 0.6], [0, 0, 1], 1)], "no candidate finds a lesion", 1.0, 2.0),
    ],
)
def test_without_evidence_the_threshold_falls_back_and_says_so(
    cases, reason, sensitivity, fp_per_scan
):
    point = choose_operating_point(cases)
    assert point.score_threshold == 0.5
    assert reason in point.rule
    assert (point.sensitivity, point.fp_per_scan) == (sensitivity, fp_per_scan)


def one_lesion_each(lung, other):
    return [scored([1.0], [1], 1, [p], 1) for p in lung] + [
        scored([1.0], [1], 1, [p], 0) for p in other
    ]


def test_the_patient_threshold_parts_the_classes_best():
    cases = one_lesion_each([0.9, 0.8, 0.7, 0.7, 0.3], [0.6, 0.2, 0.1, 0.1, 0.1])
    point = choose_operating_point([*cases, scored([1.0], [1], 1, [0.65], None)])
    assert point.patient_threshold == pytest.approx(0.65)
    assert "Youden" in point.rule


@pytest.mark.parametrize(
    ("lung", "other", "reason"),
    [
        ([0.9] * 4, [0.1] * 5, "fewer than 5"),
        ([0.1] * 5, [0.9] * 5, "no threshold"),
        ([0.4] * 5, [0.4] * 5, "no threshold"),
    ],
)
def test_the_patient_threshold_falls_back_and_says_so(lung, other, reason):
    point = choose_operating_point(one_lesion_each(lung, other))
    assert point.patient_threshold == 0.5
    assert reason in point.rule


def test_patients_in_whom_nothing_is_found_give_a_shrunk_share_of_lung():
    found = one_lesion_each([0.9], [0.1])
    nothing = [
        scored(label=1),
        scored(label=0),
        scored([0.01], [0], 0, label=0),
        scored(label=None),
    ]
    point = choose_operating_point(found + nothing, max_fp_per_scan=0)
    assert point.no_lesion_probability == pytest.approx(2 / 5)
    assert choose_operating_point(found).no_lesion_probability == 0.5
