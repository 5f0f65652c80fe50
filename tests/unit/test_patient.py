import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from bonemet_auto.errors import DataError
from bonemet_auto.model.patient import (
    MIN_PATIENTS,
    POOLED_SCALARS,
    LabelledPatient,
    Maximum,
    NoisyOr,
    PatientLesions,
    PooledHead,
    fit_head,
    fit_maximum,
    fit_noisy_or,
    noisy_or,
    pool,
)
from bonemet_auto.model.patient_choice import FITS, choose_rule, out_of_fold

NONE_FOUND = PatientLesions(*np.empty((4, 0)))
TWO = PatientLesions(*np.array([[0.8, 0.4], [0.5, 0.9], [1000.0, 500.0], [200.0, 100.0]]))


def _expit(x):
    return 1 / (1 + np.exp(-x))


def _patient(rng, truth):
    """Up to six lesions; the label follows noisy-or, the volume alone, or a shared origin."""
    n = int(rng.integers(0, 7))
    scores, volumes = rng.uniform(0.3, 1, n), np.exp(rng.normal(7, 1.2, n))
    hu = rng.normal(250, 120, n)
    if truth == "noisy_or":
        p_lung = rng.beta(0.6, 2.2, n)
        label = rng.random() < (noisy_or(scores, p_lung) if n else 0.3)
    elif truth == "size":
        p_lung = rng.beta(2, 2, n)
        label = rng.random() < (_expit(1.5 * (np.log(volumes.sum()) - 8.5)) if n else 0.3)
    else:  # lesions of one patient are of one origin, and p is far too sure of itself
        label = rng.random() < 0.5
        p_lung = _expit(3 * rng.normal(0.5 if label else -0.5, 1.2, n))
    return PatientLesions(scores, p_lung, volumes, hu), int(label)


def _cohort(truth, n, seed, folds=True):
    rng = np.random.default_rng(seed)
    return [LabelledPatient(*_patient(rng, truth), k % 5 if folds else None) for k in range(n)]


def _log_loss(rule, patients):
    p = np.clip([rule.probability(item.lesions) for item in patients], 1e-3, 1 - 1e-3)
    return -np.mean(np.log(np.where([item.label == 1 for item in patients], p, 1 - p)))


def test_no_lesion_gives_zero():
    assert noisy_or([], []) == 0.0


def test_one_lesion_counts_by_score_times_probability():
    assert noisy_or([0.5], [0.8]) == pytest.approx(0.4)


def test_lesions_combine_as_independent_causes_in_any_order():
    assert noisy_or([0.5, 1.0], [0.8, 0.5]) == pytest.approx(1 - 0.6 * 0.5)
    assert noisy_or([1.0, 0.5], [0.5, 0.8]) == pytest.approx(1 - 0.6 * 0.5)


def test_a_certain_lesion_settles_the_patient():
    assert noisy_or([1.0, 0.1], [1.0, 0.0]) == 1.0


def test_tensors_are_taken_as_sequences():
    assert noisy_or(torch.tensor([0.5]), torch.tensor([0.5])) == pytest.approx(0.25)


def test_lists_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        noisy_or([0.5, 0.5], [0.5])


def test_the_rules_on_a_patient_with_two_lesions():
    assert NoisyOr(0.1).probability(TWO) == pytest.approx(1 - (1 - 0.4) * (1 - 0.36))
    assert Maximum(0.1).probability(TWO) == pytest.approx(0.4)
    head = PooledHead((0.0, 0.0, 0.0, 1.0, 0.01, 0.0), -7.0, 0.1)
    logit = math.log(0.64 * 1000 + 0.16 * 500) + 0.01 * 180 - 7
    assert head.probability(TWO) == pytest.approx(_expit(logit))


def test_pooled_scalars_weigh_lesions_by_squared_score():
    # squared scores .64 and .16: shares .8 and .2
    expected = {
        "logit_noisy_or": math.log(0.616 / 0.384),
        "mean_logit_p_lung": 0.8 * 0 + 0.2 * math.log(9),
        "logit_p_lung_of_strongest": 0.0,
        "log_volume_mm3": math.log(720),
        "mean_hu": 180.0,
        "log1p_expected_count": math.log(1.8),
    }
    assert tuple(expected) == POOLED_SCALARS
    assert pool(TWO) == pytest.approx(list(expected.values()))


def test_a_noisy_or_head_is_nested_in_the_pooled_head():
    head = PooledHead((1.0, 0.0, 0.0, 0.0, 0.0, 0.0), 0.0, 0.1)
    assert head.probability(TWO) == pytest.approx(NoisyOr(0.1).probability(TWO))


@pytest.mark.parametrize("fit", FITS.values())
def test_nothing_found_gives_the_smoothed_rate_among_such_patients(fit):
    empty = [LabelledPatient(NONE_FOUND, label) for label in (1, 0, 0, None)]
    rule = fit([item for item in _cohort("size", 60, 0) if item.lesions.found] + empty)
    assert rule.no_lesion_probability == 2 / 5
    assert rule.probability(NONE_FOUND) == 2 / 5
    zero_score = PatientLesions(*np.array([[0.0], [0.9], [1000.0], [200.0]]))
    assert rule.probability(zero_score) == 2 / 5


def test_no_patient_without_lesions_gives_one_half():
    assert fit_noisy_or([]).no_lesion_probability == 0.5
    assert fit_maximum([LabelledPatient(TWO, 1)]).no_lesion_probability == 0.5


def test_unknown_labels_are_left_out_of_every_fit():
    known = _cohort("size", 80, 1)
    rng = np.random.default_rng(2)
    unknown = [LabelledPatient(_patient(rng, "size")[0], None, k % 5) for k in range(30)]
    for fit in FITS.values():
        assert fit(known + unknown) == fit(known)
    assert choose_rule(known + unknown) == choose_rule(known)


def test_many_weak_candidates_do_not_outvote_one_sure_lesion():
    weak = np.array([[0.02] * 50, [0.01] * 50, [200.0] * 50, [900.0] * 50])
    sure = np.array([[0.9], [0.8], [4000.0], [150.0]])
    alone = pool(PatientLesions(*sure))
    among = pool(PatientLesions(*np.hstack([weak, sure])))
    assert np.abs(among - alone)[[0, 1, 2, 3, 5]].max() < 0.2
    assert abs(among[4] - alone[4]) < 20


def test_lesions_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        PatientLesions(np.ones(2), np.ones(2), np.ones(2), np.ones(1))
    with pytest.raises(ValueError, match="one shape"):
        PatientLesions(*np.ones((4, 2, 1)))
    with pytest.raises(ValueError, match="NaN"):
        PatientLesions(np.ones(1), np.ones(1), np.ones(1), np.full(1, np.nan))


@pytest.mark.parametrize("wanting", ["patients", "class"])
def test_a_head_needs_patients_of_both_classes(wanting):
    patients = [item for item in _cohort("origin", 120, 0) if item.lesions.found]
    lung, other = ([p for p in patients if p.label == label] for label in (1, 0))
    enough, few = {"patients": (10, 9), "class": (20, 4)}[wanting]
    with pytest.raises(DataError, match=rf"{few} with and {enough} without .* keep noisy-or"):
        fit_head(lung[:few] + other[:enough])
    fit_head(lung[: few + 1] + other[:enough])


def test_the_head_is_the_minimum_of_the_penalised_log_loss():
    patients = [item for item in _cohort("size", 90, 3) if item.lesions.found]
    sign = np.array([1 if item.label == 1 else -1 for item in patients])
    x = np.array([pool(item.lesions) for item in patients])
    z = (x - x.mean(0)) / x.std(0)

    def objective(v):
        return 0.5 * v[1:] @ v[1:] + np.logaddexp(0, -sign * (v[0] + z @ v[1:])).sum()

    best = minimize(objective, np.zeros(7), method="BFGS", options={"gtol": 1e-7}).x
    head = fit_head(patients)
    assert np.array(head.weights) * x.std(0) == pytest.approx(best[1:], abs=1e-4)
    got = [head.probability(item.lesions) for item in patients]
    assert got == pytest.approx(_expit(best[0] + z @ best[1:]), abs=1e-4)
    assert np.ptp(got) > 0.3


def test_a_scalar_that_never_varies_does_not_disturb_the_head():
    patients = [
        LabelledPatient(
            PatientLesions(
                item.lesions.scores,
                item.lesions.p_lung,
                item.lesions.volume_mm3,
                np.full(item.lesions.scores.shape, 123.4),
            ),
            item.label,
        )
        for item in _cohort("size", 90, 3)
    ]
    head = fit_head(patients)
    assert abs(head.weights[4]) < 1e-3
    other_hu = PatientLesions(TWO.scores, TWO.p_lung, TWO.volume_mm3, np.full(2, 300.0))
    assert head.probability(other_hu) == pytest.approx(head.probability(TWO), abs=0.05)


def test_the_head_is_deterministic_and_goes_through_json():
    patients = _cohort("origin", 90, 4)
    head = fit_head(patients)
    assert head == fit_head(patients)
    again = json.loads(json.dumps(asdict(head)))
    assert PooledHead(**{**again, "weights": tuple(again["weights"])}) == head
    assert len(head.weights) + 2 < 20


@pytest.mark.parametrize("truth", ["origin", "size"])
def test_the_head_wins_where_noisy_or_is_wrong(truth):
    patients, unseen = _cohort(truth, 200, 5), _cohort(truth, 1000, 6)
    choice = choose_rule(patients)
    assert choice.name == "head"
    assert choice.rule == fit_head(patients)
    assert _log_loss(choice.rule, unseen) < _log_loss(fit_noisy_or(patients), unseen) - 0.1
    assert "head beats noisy_or" in choice.reason


@pytest.mark.parametrize("seed", range(5))
def test_noisy_or_stays_where_labels_follow_it(seed):
    patients = _cohort("noisy_or", 200, seed)
    choice = choose_rule(patients)
    assert (choice.name, choice.rule) == ("noisy_or", fit_noisy_or(patients))
    assert [item.name for item in choice.compared] == ["noisy_or", "maximum", "head"]


def test_the_compared_losses_are_those_of_rules_fitted_on_the_other_folds():
    patients = _cohort("size", 100, 7)
    per_rule = {name: np.empty(100) for name in FITS}
    for row, held_out in enumerate(patients):
        others = [item for item in patients if item.fold != held_out.fold]
        for name, fit in FITS.items():
            per_rule[name][row] = _log_loss(fit(others), [held_out])
    for item in choose_rule(patients).compared:
        gains = per_rule["noisy_or"] - per_rule[item.name]
        assert item.log_loss == pytest.approx(per_rule[item.name].mean())
        assert item.gain == pytest.approx(gains.mean())
        assert item.gain_standard_error == pytest.approx(np.sqrt(gains.var(ddof=1) / 100))


def test_a_gain_within_one_standard_error_changes_nothing(monkeypatch):
    # One patient of 25 differs: the gain is one standard error, for any size of the difference.
    monkeypatch.setitem(FITS, "noisy_or", lambda patients: NoisyOr(0.4))
    monkeypatch.setitem(FITS, "maximum", lambda patients: Maximum(0.4))
    monkeypatch.setitem(FITS, "head", lambda patients: NoisyOr(0.4))
    pair = PatientLesions(*np.array([[1.0, 1.0], [0.5, 0.5], [9.0, 9.0], [9.0, 9.0]]))
    empty = [LabelledPatient(NONE_FOUND, k % 2, k % 5) for k in range(24)]
    once = choose_rule([*empty, LabelledPatient(pair, 0, 0)])
    maximum = once.compared[1]
    assert maximum.gain == pytest.approx(maximum.gain_standard_error)
    assert maximum.gain > 0.001
    assert once.name == "noisy_or"
    often = choose_rule([*empty, *(LabelledPatient(pair, 0, k) for k in range(5))])
    assert often.name == "maximum"


def test_scans_of_a_patient_count_together():
    patients = _cohort("head", 100, 7)
    each = choose_rule(patients).compared
    doubled = [replace(item, patient_id=str(k)) for k, item in enumerate(patients) for _ in "ab"]
    for alone, twice in zip(each, choose_rule(doubled).compared, strict=True):
        assert twice.gain == pytest.approx(alone.gain, rel=0.1)
        error = pytest.approx(alone.gain_standard_error, rel=0.1)
        assert twice.gain_standard_error == error
    few = [item for item in doubled if int(item.patient_id or 0) < MIN_PATIENTS - 1]
    assert f"{MIN_PATIENTS - 1} patients" in choose_rule(few).reason


def test_rounding_is_no_gain():
    rng = np.random.default_rng(8)
    patients = []
    for k in range(60):  # one lesion each: noisy-or and the maximum differ by rounding only
        scores, p_lung = rng.random((2, 1))
        lesions = PatientLesions(scores, p_lung, np.ones(1), np.ones(1))
        patients.append(LabelledPatient(lesions, int(rng.random() < scores[0] * p_lung[0]), k % 5))
    choice = choose_rule(patients)
    assert choice.compared[1].gain == pytest.approx(0, abs=1e-12)
    assert choice.name != "maximum"


class _Remembers:
    """Knows the patients it was fitted on by heart and guesses all others."""

    no_lesion_probability = 0.5

    def __init__(self, patients):
        self.labels = {id(item.lesions): item.label for item in patients}

    def probability(self, lesions):
        return float(self.labels.get(id(lesions), 0.5))


@pytest.mark.parametrize("folds", [True, False])
def test_a_rule_that_remembers_its_patients_gains_nothing(folds, monkeypatch):
    patients = _cohort("noisy_or", 100, 0, folds)
    assert (out_of_fold(_Remembers, patients) == 0.5).all()
    monkeypatch.setitem(FITS, "head", _Remembers)
    choice = choose_rule(patients)
    assert choice.name == "noisy_or"
    assert choice.compared[2].log_loss == pytest.approx(math.log(2))


def test_the_whole_fold_is_left_out_and_nothing_else():
    patients = _cohort("size", 50, 0)
    fitted_on = []

    def fit(training):
        fitted_on.append(training)
        return NoisyOr(0.5)

    out_of_fold(fit, patients)
    assert len(fitted_on) == 5
    for training in fitted_on:
        left_out = {item.fold for item in patients} - {item.fold for item in training}
        assert len(left_out) == 1
        assert len(training) == 40


@pytest.mark.parametrize(
    "folds",
    [(None,), (3,), (0, 1, None)],
    ids=["no folds", "only fold 3 was trained", "some without"],
)
def test_without_two_folds_patients_are_dealt_by_label(folds):
    labels = [1, 0, 0, 0, 0] * 5  # dealt in their order alone, one group would get all the 1s
    fitted_on = []

    def fit(training):
        fitted_on.append([item.label for item in training])
        return NoisyOr(0.5)

    patients = [
        LabelledPatient(TWO, label, folds[k % len(folds)]) for k, label in enumerate(labels)
    ]
    assert out_of_fold(fit, patients) == pytest.approx(np.full(25, 0.616))
    assert [(len(part), sum(part)) for part in fitted_on] == [(20, 4)] * 5


def test_few_patients_keep_noisy_or_and_say_so():
    choice = choose_rule(_cohort("origin", 19, 0))
    assert (choice.name, choice.compared) == ("noisy_or", ())
    assert "19 patients" in choice.reason
    assert choose_rule([]).rule == NoisyOr(0.5)


def test_a_head_that_cannot_be_fitted_on_a_fold_is_left_out_and_said():
    patients = [item for item in _cohort("origin", 200, 0) if item.label == 0]
    choice = choose_rule(patients)
    assert [item.name for item in choice.compared] == ["noisy_or", "maximum"]
    assert "head left out: too few patients" in choice.reason
