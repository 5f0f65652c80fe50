"""Settings of a consolidated model, found on held-out cases."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize

from bonemet_auto.consolidation.gather import HeldOutCase, soften
from bonemet_auto.consolidation.settings import (
    TEMPERATURE_SPREAD,
    choose_outline,
    choose_smallest,
    find_settings,
    fit_temperature,
    settings_without,
)
from bonemet_auto.geometry import Geometry
from bonemet_auto.inference.export import counts
from bonemet_auto.inference.fuse import USUAL_OUTLINE, Outline
from bonemet_auto.inference.place import Lesion
from bonemet_auto.model.patient import Maximum, NoisyOr, PooledHead, rule_of

GRID = Geometry((4, 8, 8), (1.0, 1.0, 1.0))


def lesion(score=0.9, p_lung=0.8, volume_mm3=500.0):
    mask = np.ones((1, 1, 1), bool)
    return Lesion(score, p_lung, 0.7, 300.0, mask, (0, 0, 0), volume_mm3, (0.0, 0.0, 0.0))


def case(name, fold=0, real=(), false=(), is_lung=1, missed=0, label=None, dice=0.8, patient=None):
    """A case whose `real` lesions lie on annotated ones of one source."""
    found = [dice] * len(real) + [0.0] * len(false)
    sources = [is_lung] * len(real) + [-1] * len(false)
    return HeldOutCase(
        name, patient or name, fold, GRID, (*real, *false), (), np.array(found),
        np.array(sources, int), len(real) + missed, is_lung if label is None else label,
    )  # fmt: skip


def cohort(seed=0, folds=5, each=8):
    rng = np.random.default_rng(seed)
    cases = []
    for number in range(folds * each):
        is_lung = number % 2
        sure = [rng.beta(4, 2) if is_lung else rng.beta(2, 4) for _ in range(2)]
        real = [lesion(rng.beta(5, 2), p, rng.uniform(100, 5000)) for p in sure]
        false = [lesion(rng.beta(2, 5), rng.uniform(), rng.uniform(5, 300)) for _ in range(3)]
        cases.append(case(f"c{number}", number % folds, real, false, is_lung, missed=number % 3))
    return cases


@given(st.floats(0.001, 0.999), st.floats(0.3, 4))
def test_softening_divides_the_logit(p, temperature):
    logit = math.log(p / (1 - p)) / temperature
    assert soften(p, temperature) == pytest.approx(1 / (1 + math.exp(-logit)))
    if temperature > 1:
        assert soften(soften(p, temperature), 1 / temperature) == pytest.approx(p)


def test_a_temperature_is_the_best_of_a_fine_grid():
    cases = cohort(seed=3)
    p = np.array([x.p_lung for c in cases for x in c.lesions])
    y = np.array([source for c in cases for source in c.is_lung])
    p, y = p[y >= 0], y[y >= 0]

    def surprise(log_t):
        (log_t,) = np.atleast_1d(log_t).tolist()
        softened = np.array([soften(value, math.exp(log_t)) for value in p])
        likelihood = np.where(y == 1, softened, 1 - softened)
        return -np.log(likelihood).sum() + 0.5 * (log_t / TEMPERATURE_SPREAD) ** 2

    best = optimize.brute(surprise, [slice(-1.5, 1.5, 0.005)], finish=None)
    assert math.log(fit_temperature(cases)) == pytest.approx(float(best), abs=0.01)


def test_a_network_that_is_too_sure_is_softened_and_few_lesions_hardly_count():
    wrong = [case("a", real=[lesion(p_lung=0.99)], is_lung=n % 2) for n in range(40)]
    assert fit_temperature(wrong) > 2
    assert 1 < fit_temperature(wrong[:2]) < fit_temperature(wrong)
    right = [
        case("a", real=[lesion(p_lung=0.6 if n % 2 else 0.4)], is_lung=n % 2) for n in range(40)
    ]
    assert fit_temperature(right) < 1
    assert fit_temperature([case("a", false=[lesion()])]) == 1


def test_small_lesions_go_only_where_that_clearly_helps():
    noisy = [
        case(f"c{n}", real=[lesion(0.5 + 0.01 * (n % 7))], false=[lesion(0.9, volume_mm3=30)] * 3)
        for n in range(30)
    ]
    assert choose_smallest(noisy) == 50.0
    small_and_real = [
        case(f"c{n}", real=[lesion(0.9, volume_mm3=30)], false=[lesion(0.5)]) for n in range(30)
    ]
    assert choose_smallest(small_and_real) == 0.0
    assert choose_smallest([case("a"), case("b")]) == 0.0


OTHER = Outline(0.25, 0.4)


def test_scans_of_one_patient_are_no_more_evidence_than_one_scan():
    def drawn(patients):
        both = {}
        for outline, gains in {USUAL_OUTLINE: (0, 0), OTHER: (0.15, -0.1)}.items():
            both[outline] = [
                case(f"{n}{k}", real=[lesion()], dice=0.7 + gains[k], patient=patients(n, k))
                for n in range(40)
                for k in range(2)
            ]
        return both

    assert choose_outline(drawn(lambda n, k: f"{n}{k}")) == OTHER
    assert choose_outline(drawn(lambda n, k: str(k))) == USUAL_OUTLINE


def test_masks_are_drawn_in_another_way_only_where_that_clearly_helps():
    def drawn(gains):
        usual = [case(f"c{n}", real=[lesion(0.9)], missed=1) for n in range(len(gains))]
        other = [
            case(f"c{n}", real=[lesion(0.9)], missed=1, dice=0.8 + gain)
            for n, gain in enumerate(gains)
        ]
        return {USUAL_OUTLINE: usual, OTHER: other}

    assert choose_outline(drawn([0.05] * 20)) == OTHER
    assert choose_outline(drawn([0.3] + [-0.01] * 19)) == USUAL_OUTLINE, "within an error"
    assert choose_outline(drawn([-0.05] * 20)) == USUAL_OUTLINE
    assert choose_outline({USUAL_OUTLINE: [case("a")], OTHER: [case("a")]}) == USUAL_OUTLINE


def test_of_the_outlines_only_what_is_reported_counts():
    """Half the lesions lie below the threshold that false positives ask for."""

    def drawn(sure, doubtful):
        return [
            case("a", real=[lesion(0.9)], false=[lesion(0.5)], dice=sure) if n % 2
            else case("a", real=[lesion(0.1)], false=[lesion(0.5)], dice=doubtful)
            for n in range(20)
        ]  # fmt: skip

    assert choose_outline({USUAL_OUTLINE: drawn(0.6, 0.2), OTHER: drawn(0.5, 0.9)}) == USUAL_OUTLINE
    assert choose_outline({USUAL_OUTLINE: drawn(0.6, 0.9), OTHER: drawn(0.7, 0.2)}) == OTHER


def test_the_outline_that_was_chosen_comes_with_its_cases_and_its_model():
    usual = cohort()
    other = [replace(c, dice=np.where(c.dice > 0, 0.95, 0)) for c in usual]
    point = find_settings({USUAL_OUTLINE: usual, OTHER: other}).point
    assert (point.mask_weight, point.mask_threshold) == (0.25, 0.4)


def test_settings_without_a_fold_do_not_see_it():
    cases = cohort()
    spoilt = [
        case(c.case, 2, false=[lesion(1.0, 0.5, 1.0)] * 9, is_lung=1 - c.patient_label)
        if c.fold == 2
        else c
        for c in cases
    ]
    cases, spoilt = {USUAL_OUTLINE: cases}, {USUAL_OUTLINE: spoilt}
    assert settings_without(2, cases) == settings_without(2, spoilt)
    assert settings_without(1, cases) != settings_without(1, spoilt)
    without = settings_without(2, cases).temperatures
    others = [without[fold] for fold in (0, 1, 3, 4)]
    assert without[2] == pytest.approx(float(np.prod(others)) ** (1 / 4))


def test_settings_keep_the_false_positives_that_are_allowed():
    cases = cohort()
    settings = find_settings({USUAL_OUTLINE: cases})
    point = settings.point
    reported = [
        (hit, x)
        for c in cases
        for hit, x in zip(c.dice > 0, c.lesions, strict=True)
        if counts(x, point)
    ]
    false = sum(not hit for hit, _ in reported)
    assert false <= 0.5 * len(cases) and point.fp_per_scan == pytest.approx(false / len(cases))
    total = sum(c.n_reference for c in cases)
    assert point.sensitivity == pytest.approx((len(reported) - false) / total)
    assert "40 cases of 5 folds" in point.rule and settings.reason
    assert set(settings.temperatures) == set(range(5))


def test_a_rule_comes_back_from_its_record():
    point = find_settings({USUAL_OUTLINE: cohort()}).point
    for name, kind in (("noisy_or", NoisyOr), ("maximum", Maximum)):
        record = point.patient_rule.model_copy(update={"name": name})
        assert isinstance(rule_of(point.model_copy(update={"patient_rule": record})), kind)
    head = point.patient_rule.model_copy(
        update={"name": "head", "weights": (1.0, 0, 0, 0, 0, 0), "intercept": 0.5}
    )
    rule = rule_of(point.model_copy(update={"patient_rule": head}))
    assert isinstance(rule, PooledHead)
    assert rule.no_lesion_probability == point.no_lesion_probability


def test_one_case_is_enough_to_end():
    settings = find_settings({USUAL_OUTLINE: [case("a", real=[lesion()])]})
    assert 0 <= settings.point.score_threshold <= 0.9
    assert settings.point.patient_rule.name == "noisy_or"
