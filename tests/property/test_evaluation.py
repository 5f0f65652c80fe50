"""Fast code against slow and obvious code."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bonemet_auto.evaluation.bootstrap import figure_of
from bonemet_auto.evaluation.classification import auc_statistic, delong_measure
from bonemet_auto.evaluation.detection import Candidates, average_precision, froc_sensitivity
from bonemet_auto.evaluation.operating_point import ScoredCase, choose_operating_point
from bonemet_auto.evaluation.pairing import match_lesions

MAPS = arrays(np.uint16, (2, 3, 4), elements=st.integers(0, 4))
GRADES = st.integers(0, 5).map(lambda grade: grade / 5)


def slow_match(reference, predicted, scores, iou_threshold):
    free = [each for each in np.unique(reference) if each]
    found = {}
    for prediction in sorted(scores, key=lambda each: (-scores[each], each)):
        mask = predicted == prediction
        best, best_iou = 0, 0.0
        for candidate in free:
            lesion = reference == candidate
            iou = (mask & lesion).sum() / (mask | lesion).sum()
            if iou >= iou_threshold and iou > best_iou:
                best, best_iou = int(candidate), iou
        found[prediction] = (best, best_iou)
        free = [each for each in free if each != best]
    return found


@given(MAPS, MAPS, st.lists(GRADES, min_size=4, max_size=4), st.sampled_from([0.1, 0.3, 0.5]))
def test_matching_is_greedy_by_score(reference, predicted, grades, iou_threshold):
    scores = dict(enumerate(grades, start=1))
    matches = match_lesions(reference, predicted, scores, iou_threshold)
    fast = {each: (match.reference, match.iou) for each, match in matches.items()}
    assert fast == slow_match(reference, predicted, scores, iou_threshold)


@given(MAPS, MAPS, st.lists(GRADES, min_size=4, max_size=4), GRADES)
def test_a_cut_by_score_leaves_the_pairs_above_it_as_they_are(reference, predicted, grades, cut):
    scores = dict(enumerate(grades, start=1))
    above = {each: score for each, score in scores.items() if score >= cut}
    full = match_lesions(reference, predicted, scores, 0.1)
    assert match_lesions(reference, predicted, above, 0.1) == {each: full[each] for each in above}


@st.composite
def drawn_candidates(draw):
    """Candidates of three patients, and how often each patient is drawn."""
    rows = draw(st.lists(st.tuples(GRADES, st.booleans(), st.integers(0, 2)), max_size=12))
    scores, hits, patients = zip(*rows, strict=True) if rows else ((), (), ())
    extra = draw(st.lists(st.integers(0, 2), min_size=3, max_size=3))
    found = np.bincount([p for _, hit, p in rows if hit], minlength=3)
    weights = draw(st.lists(st.integers(0, 3), min_size=3, max_size=3).filter(any))
    return (
        Candidates(
            np.array(scores, float),
            np.array(hits, bool),
            np.array(patients, np.int64),
            (found + extra).astype(float),
            np.ones(3),
        ),
        np.array([weights], float),
    )


def written_out(candidates, weights):
    """(score, hit) of every candidate, patients repeated as drawn; lesions; scans."""
    times = weights[0].astype(int)
    rows = [
        (score, hit)
        for score, hit, patient in zip(
            candidates.scores, candidates.hits, candidates.patients, strict=True
        )
        for _ in range(times[patient])
    ]
    return rows, candidates.references @ times, candidates.scans @ times


@given(drawn_candidates(), st.sampled_from([0.125, 0.5, 1.0, 4.0]))
def test_froc_tries_every_threshold(drawn, rate):
    rows, lesions, scans = written_out(*drawn)
    best = max(
        (
            sum(hit for score, hit in rows if score >= threshold)
            for threshold in [2.0, *(score for score, _ in rows)]
            if sum(not hit for score, hit in rows if score >= threshold) <= rate * scans
        ),
    )
    expected = best / lesions if lesions else np.nan
    np.testing.assert_allclose(froc_sensitivity(drawn[0], (rate,))(drawn[1]), [expected])


@given(drawn_candidates())
def test_average_precision_sums_precision_over_gains_in_recall(drawn):
    rows, lesions, _ = written_out(*drawn)
    area, before = 0.0, 0
    for threshold in sorted({score for score, _ in rows}, reverse=True):
        kept = [hit for score, hit in rows if score >= threshold]
        area += (sum(kept) - before) * sum(kept) / len(kept)
        before = sum(kept)
    expected = area / lesions if lesions else np.nan
    np.testing.assert_allclose(average_precision(drawn[0])(drawn[1]), [expected])


def slow_delong(scores, positive):
    """Placement values by comparing every pair."""
    wins = np.array([[(p > n) + (p == n) / 2 for n in scores[~positive]] for p in scores[positive]])
    rows, columns = wins.mean(axis=1), wins.mean(axis=0)
    variance = rows.var(ddof=1) / len(rows) + columns.var(ddof=1) / len(columns)
    return wins.mean(), variance


TWO_CLASSES = st.tuples(
    st.lists(GRADES, min_size=2, max_size=8), st.lists(GRADES, min_size=2, max_size=8)
).map(
    lambda halves: (
        np.array(halves[0] + halves[1]),
        np.arange(len(halves[0] + halves[1])) < len(halves[0]),
    )
)


@given(TWO_CLASSES)
def test_delong_agrees_with_all_pairs(data):
    scores, positive = data
    auc, variance = slow_delong(scores, positive)
    measure = delong_measure(scores, positive, np.arange(scores.size), "patients")
    figure = figure_of(measure, np.ones((1, scores.size)))
    assert figure.value == pytest.approx(auc)
    if 0 < auc < 1:
        half_width = 1.959963984540054 * np.sqrt(variance) / (auc * (1 - auc))
        centre = np.log(auc / (1 - auc))
        expected = 1 / (1 + np.exp(-(centre + np.array([-half_width, half_width]))))
        np.testing.assert_allclose([figure.low, figure.high], expected, atol=1e-9)


@given(TWO_CLASSES, st.integers(0, 99))
def test_auc_of_drawn_patients_is_that_of_the_rows_written_out(data, seed):
    scores, positive = data
    times = np.random.default_rng(seed).integers(1, 4, scores.size)
    statistic = auc_statistic(scores, positive, np.arange(scores.size))
    repeated = slow_delong(np.repeat(scores, times), np.repeat(positive, times))
    np.testing.assert_allclose(statistic(times[None].astype(float)), [repeated[0]])


CASES = st.lists(st.lists(st.tuples(GRADES, st.booleans()), max_size=6), min_size=1, max_size=4)


@settings(max_examples=60)
@given(CASES, st.sampled_from([0.5, 1.0, 2.0]))
def test_no_threshold_within_the_false_positives_finds_more_than_the_chosen_one(rows, max_fp):
    cases = [
        ScoredCase(
            np.array([score for score, _ in case], float),
            np.cumsum([hit for _, hit in case]) * [hit for _, hit in case],
            len(case),
            np.zeros(len(case)),
            None,
        )
        for case in rows
    ]
    point = choose_operating_point(cases, max_fp)
    pooled = [row for case in rows for row in case]

    def found(threshold):
        return sum(hit for score, hit in pooled if score >= threshold)

    def false_per_scan(threshold):
        return sum(not hit for score, hit in pooled if score >= threshold) / len(rows)

    best = max(found(t) for t in [2.0, *np.unique([s for s, _ in pooled])]
               if false_per_scan(t) <= max_fp)  # fmt: skip
    if best:
        assert found(point.score_threshold) == best
        assert false_per_scan(point.score_threshold) <= max_fp
        assert point.fp_per_scan == pytest.approx(false_per_scan(point.score_threshold))
    else:
        assert point.score_threshold == 0.5
