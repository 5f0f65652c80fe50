import itertools

import pytest
import torch

from bonemet_auto.errors import UsageError
from bonemet_auto.training import budget
from bonemet_auto.training.schedule import is_dense_only
from tests.unit.training_fakes import stored_case, training_plan

CPU = torch.device("cpu")
PLAN = training_plan((8, 16, 16))


class Clock:
    """Time passes only in the steps and forwards of a fake trainer."""

    def __init__(self, step_s, forward_s):
        self.now, self.step_s, self.forward_s = 0.0, step_s, forward_s
        self.ema, self.device = self, CPU

    def perf_counter(self):
        return self.now

    def step(self, number, batch):
        self.now += self.step_s

    def detect(self, image):
        self.now += self.forward_s


@pytest.fixture
def clock(monkeypatch):
    clock = Clock(step_s=0.5, forward_s=0.1)
    monkeypatch.setattr(budget, "time", clock)
    monkeypatch.setattr(budget, "Trainer", lambda *_, **__: clock)
    monkeypatch.setattr(budget, "batches", lambda *_: itertools.repeat(None))
    return clock


def steps_for(budget_s, validation=(), plan=PLAN):
    return budget.steps_for_budget(plan, None, validation, CPU, 0, budget_s)


def test_a_budget_buys_steps_after_measuring_validation_and_reserve(clock):
    steps = steps_for(1000)
    assert 0.9 * 1000 / 0.5 < steps < 1000 / 0.5
    case = stored_case("a", (8, 16, 16 + 99 * 8))
    assert budget.n_windows(case, PLAN) == 100
    with_validation = steps_for(1000, [case] * 5)
    assert 500 * 0.1 / 0.5 <= steps - with_validation < 600 * 0.1 / 0.5


def test_everything_together_fits_the_budget(clock):
    case = stored_case("a", (40, 60, 60))
    started = clock.now
    steps = steps_for(300, [case] * 3)
    measuring_s = clock.now - started
    validation_s = 3 * budget.n_windows(case, PLAN) * clock.forward_s
    assert 250 < measuring_s + steps * clock.step_s + validation_s <= 300


def test_steps_of_the_dense_branch_alone_are_counted_as_what_they_cost(clock, monkeypatch):
    def step(number, batch):
        clock.now += 0.2 if is_dense_only(number, 1000) else 0.5

    monkeypatch.setattr(clock, "step", step)
    started = clock.now
    steps = steps_for(1000)
    for number in range(steps):
        clock.step(number * 1000 // steps, None)
    assert 950 < clock.now - started < 1000


@pytest.mark.parametrize("budget_s", [-5.0, 0.0, 1.0, 12.0])
def test_too_small_a_budget_is_refused_and_the_one_it_names_is_enough(clock, budget_s):
    case = stored_case("a", (40, 60, 60))
    with pytest.raises(UsageError) as refused:
        steps_for(budget_s, [case])
    said = str(refused.value)
    assert f"--time-budget of {budget_s:.0f} s" in said and "0.50 s" in said
    needed_s = float(said.split("at least ")[1].split(" s")[0])
    assert steps_for(needed_s, [case]) >= 10


@pytest.mark.parametrize(
    ("shape", "mirrors", "windows"),
    [((8, 16, 16), (), 1), ((1, 2, 3), (), 1), ((9, 16, 17), (), 4), ((12, 24, 24), (0, 2), 32)],
)
def test_windows_are_counted_axis_by_axis(shape, mirrors, windows):
    inference = PLAN.inference.model_copy(update={"mirror_axes": mirrors, "overlap": 0.5})
    plan = PLAN.model_copy(update={"inference": inference})
    assert budget.n_windows(stored_case("a", shape), plan) == windows


@pytest.mark.parametrize("left_s", [1.0, 50.0, 5000.0])
@pytest.mark.parametrize("step_s", [0.01, 0.5])
@pytest.mark.parametrize("epochs", [1, 3, 1000])
def test_figures_after_every_epoch_have_their_time(left_s, step_s, epochs):
    steps = budget.steps_in(left_s, step_s, epochs)
    drawn_s = budget.EPOCH_S * min(epochs, steps / budget.LEAST_STEPS)
    assert steps * step_s + drawn_s == pytest.approx(left_s)
