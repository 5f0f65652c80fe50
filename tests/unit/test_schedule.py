from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bonemet_auto.training.schedule import (
    DETECTION_LOSSES,
    LOSS_WEIGHTS,
    ema_decay,
    is_dense_only,
    learning_rate,
    loss_weights,
)

totals = st.one_of(st.integers(1, 20), st.integers(21, 400))


@settings(max_examples=40, deadline=None)
@given(totals, st.floats(0, 0.99))
def test_the_rate_rises_to_its_peak_and_then_falls_and_is_never_zero(total, warmup_share):
    rates = [learning_rate(step, total, 0.1, warmup_share) for step in range(total)]
    top = rates.index(max(rates))
    assert all(a < b for a, b in zip(rates[:top], rates[1 : top + 1], strict=True))
    assert all(a >= b for a, b in zip(rates[top:], rates[top + 1 :], strict=False))
    assert min(rates) > 0 and max(rates) == pytest.approx(0.1)
    assert abs(top - total * warmup_share) <= 2


def test_the_rate_ends_near_nothing():
    assert learning_rate(999, 1000, 0.1, 0.05) < 0.1 * 0.02


@settings(max_examples=40, deadline=None)
@given(totals)
def test_detection_losses_fade_in_and_the_dense_loss_is_always_on(total):
    weights = [loss_weights(step, total) for step in range(total)]
    for name in LOSS_WEIGHTS:
        values = [item[name] for item in weights]
        assert all(0 <= a <= b <= LOSS_WEIGHTS[name] for a, b in pairwise(values))
        if name not in DETECTION_LOSSES:
            assert set(values) == {LOSS_WEIGHTS[name]}
    if total >= 10:
        assert weights[total * 6 // 10] == pytest.approx(LOSS_WEIGHTS)


@settings(max_examples=40, deadline=None)
@given(totals)
def test_the_average_forgets_its_start_and_never_looks_back_far(total):
    decays = [ema_decay(step, total) for step in range(total)]
    assert all(0 <= a <= b < 1 for a, b in pairwise(decays))
    left_of_the_start = 1.0
    for decay in decays:
        left_of_the_start *= decay
    assert left_of_the_start < 0.2
    assert 1 / (1 - decays[-1]) <= max(2.0, 0.2 * total) + 1e-6


@pytest.mark.parametrize("total", [1, 10, 1000])
def test_detection_losses_are_left_out_exactly_while_they_have_no_weight(total):
    for step in range(total):
        weights = loss_weights(step, total)
        assert is_dense_only(step, total) == all(weights[name] == 0 for name in DETECTION_LOSSES)
