"""Rules for a patient: any order of the lesions, and any values, give one finite answer."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bonemet_auto.model.patient import (
    LabelledPatient,
    Maximum,
    NoisyOr,
    PatientLesions,
    PooledHead,
    fit_head,
    pool,
)

HEAD = PooledHead((0.7, -0.4, 0.3, 0.5, -0.01, 1.1), -3.0, 0.2)
RULES = (NoisyOr(0.2), Maximum(0.2), HEAD)

_unit = st.floats(0, 1)
_lesion = st.tuples(
    _unit | st.sampled_from([0.0, 5e-324, 1e-200, 0.5, 1.0]),
    _unit | st.sampled_from([0.0, 5e-324, 0.5, 1.0]),
    st.floats(0, 1e5) | st.sampled_from([0.0, 1e-300, 1e308, np.inf]),
    st.floats(-1024, 3071) | st.sampled_from([-1e308, 1e308, np.inf]),
)
_lesions = st.lists(_lesion, max_size=12)


def _patient(rows):
    return PatientLesions(*np.array(rows, dtype=np.float64).reshape(-1, 4).T)


@given(_lesions, st.randoms(use_true_random=False))
@example([(0.5, 0.1, 10.0, 0.0), (0.5, 0.9, 20.0, 0.0)], None)
def test_the_order_of_lesions_does_not_matter(rows, random):
    shuffled = rows[::-1]
    if random is not None:
        random.shuffle(shuffled)
    for rule in RULES:
        assert rule.probability(_patient(shuffled)) == pytest.approx(
            rule.probability(_patient(rows)), abs=1e-9
        )


@given(_lesions, st.integers(0, 5))
def test_candidates_with_score_zero_change_nothing(rows, n):
    more = rows + [(0.0, 1.0, 1e6, 3000.0)] * n
    for rule in RULES:
        assert rule.probability(_patient(more)) == pytest.approx(
            rule.probability(_patient(rows)), abs=1e-9
        )


@given(_lesions)
def test_every_value_gives_a_probability(rows):
    lesions = _patient(rows)
    for rule in (*RULES, PooledHead((1e6,) * 6, -1e6, 0.2), PooledHead((-1e6,) * 6, 1e6, 0.2)):
        assert 0 <= rule.probability(lesions) <= 1
    if lesions.found:
        assert np.isfinite(pool(lesions)).all()


@given(st.lists(st.lists(_lesion, min_size=1, max_size=4), min_size=30, max_size=40))
def test_a_head_fitted_on_extreme_values_is_finite(cohort):
    ordinary = [(0.5, 0.5, 100.0, 200.0)]
    patients = [LabelledPatient(_patient(rows + ordinary), k % 2) for k, rows in enumerate(cohort)]
    head = fit_head(patients)
    assert np.isfinite([*head.weights, head.intercept]).all()
    assert all(0 <= head.probability(item.lesions) <= 1 for item in patients)
