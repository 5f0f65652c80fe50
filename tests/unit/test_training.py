import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from bonemet_auto.checkpoint import (
    CHECKPOINT_NAME,
    Progress,
    load_checkpoint,
    progress_of,
)
from bonemet_auto.data.loader import PatchDataset
from bonemet_auto.errors import ModelError
from bonemet_auto.model.mask_rcnn import build_model
from bonemet_auto.training import budget, log
from bonemet_auto.training import trainer as trainer_module
from bonemet_auto.training.log import TrainingLog
from bonemet_auto.training.loop import epoch_ends
from bonemet_auto.training.schedule import DENSE_LOSSES, DETECTION_LOSSES, LOSS_WEIGHTS
from bonemet_auto.training.trainer import Trainer, update_average
from tests.unit.training_fakes import box_batch, train_here, training_plan, write_stored_case

CPU = torch.device("cpu")
DRAW = log._draw
SHAPE = (8, 16, 16)
PLAN = training_plan(SHAPE)
WINDOWS = [([(1, 3, 4, 5, 9, 10)], [1]), ([(3, 8, 4, 7, 13, 11)], [0])]


@pytest.fixture(scope="module", autouse=True)
def no_pictures():
    """Drawing takes longer than training here."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(log, "_draw", lambda table, path: path.write_bytes(b"no picture"))
        yield


def make_model(seed=0, network=PLAN.network):
    torch.manual_seed(seed)
    return build_model(network)


def make_trainer(total=10, seed=0, **settings):
    plan = PLAN.training.model_copy(update=settings)
    return Trainer(make_model(), plan, len(WINDOWS), total, seed, CPU)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_step_depends_on_seed_and_number_and_not_on_what_was_drawn_before():
    results = []
    for seed, number, draws in ((0, 3, 0), (0, 3, 100), (1, 3, 0), (0, 4, 0)):
        trainer = make_trainer(seed=seed)
        torch.rand(draws + 1)
        np.random.rand(draws + 1)
        trainer.step(number, box_batch(SHAPE, WINDOWS))
        results.append(weights(trainer.model))
    assert same(results[0], results[1])
    assert not same(results[0], results[2]) and not same(results[0], results[3])


class Recorder(nn.Module):
    """Keeps the seeds that each step is given."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seeds = []

    def forward(self, images, targets, generator, dense_only=False):
        self.seeds.append(generator.initial_seed())
        return {"dense_entropy": self.weight.sum()}


def test_every_step_of_every_run_has_draws_of_its_own():
    seen = []
    for seed in (0, 0, 1):
        trainer = Trainer(Recorder(), PLAN.training, len(WINDOWS), 9, seed, CPU)
        for number in range(9):
            trainer.step(number, box_batch(SHAPE, WINDOWS))
        seen.append(trainer.model.seeds)
    assert seen[0] == seen[1]
    assert len(set(seen[0] + seen[2])) == len(seen[0] + seen[2])


def test_the_weights_of_the_fusion_neck_are_logged_after_every_epoch(tmp_path):
    folder = tmp_path / "cases"
    write_stored_case(folder, "a")
    dataset = PatchDataset(folder, ["a"], PLAN, 0)
    train_here(make_model(), PLAN, dataset, tmp_path, Progress(0, 4, 2, 0))
    table = pd.read_csv(tmp_path / "metrics.csv")
    sums = [["down0_lateral", "down0_coarser"], ["up1_lateral", "up1_downward", "up1_finer"]]
    for names in sums:
        np.testing.assert_allclose(table[names].mean(axis=1), 1, rtol=1e-4)
    assert (table["down0_lateral"].diff()[1:] != 0).all()


def test_a_step_returns_the_losses_without_their_graph_and_lowers_them_in_the_long_run():
    trainer, batch = make_trainer(total=30, learning_rate=5e-3), box_batch(SHAPE, WINDOWS)
    losses = [trainer.step(number, batch) for number in range(30)]
    assert set(losses[0]) == set(DENSE_LOSSES) and set(losses[-1]) == set(LOSS_WEIGHTS)
    assert not any(loss.requires_grad for loss in losses[0].values())
    assert losses[-1]["dense_dice"] < losses[0]["dense_dice"] - 0.1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_step_losses_and_cases(value):
    trainer, batch = make_trainer(), box_batch(SHAPE, WINDOWS)
    batch.images[1, 0, 4, 8, 8] = value
    before = weights(trainer.model)
    with pytest.raises(ModelError) as refused:
        trainer.step(7, batch)
    said = str(refused.value)
    assert "step 7" in said and "case_0, case_1" in said and "dense_entropy nan" in said
    assert same(before, weights(trainer.model))


class Root(nn.Module):
    """Its loss is finite at 0, its gradient is not."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images, targets, generator, dense_only=False):
        return {"dense_entropy": self.weight.abs().sqrt().sum()}


def test_a_gradient_that_is_not_finite_spoils_no_weights():
    trainer = Trainer(Root(), PLAN.training, len(WINDOWS), 10, 0, CPU)
    with pytest.raises(ModelError, match="case_0, case_1"):
        trainer.step(0, box_batch(SHAPE, WINDOWS))
    assert trainer.model.weight.item() == 0 and trainer.ema.weight.item() == 0


def test_large_gradients_are_clipped(monkeypatch):
    monkeypatch.setattr(trainer_module, "MAX_GRADIENT_NORM", 1e-3)
    trainer = make_trainer()
    trainer.step(9, box_batch(SHAPE, WINDOWS))
    gradients = [p.grad.norm() for p in trainer.model.parameters() if p.grad is not None]
    assert torch.stack(gradients).norm() == pytest.approx(1e-3, rel=1e-3)


def test_the_average_moves_towards_the_model_by_the_rest_of_the_decay():
    model, average = nn.Linear(2, 2), nn.Linear(2, 2)
    expected = {
        name: 0.75 * a + 0.25 * b
        for (name, a), b in zip(weights(average).items(), weights(model).values(), strict=True)
    }
    update_average(average, model, 0.75)
    for name, value in average.state_dict().items():
        torch.testing.assert_close(value, expected[name])


def test_the_average_is_no_alias_of_the_model_and_learns_nothing_itself():
    trainer = make_trainer()
    trainer.step(0, box_batch(SHAPE, WINDOWS))
    assert not same(weights(trainer.model), weights(trainer.ema))
    assert not trainer.ema.training and not any(p.requires_grad for p in trainer.ema.parameters())


@pytest.mark.parametrize(
    ("steps", "epochs", "ends"),
    [(10, 3, [3, 6, 10]), (2, 5, [1, 2]), (1, 1, [1]), (6, 6, [1, 2, 3, 4, 5, 6])],
)
def test_epochs_share_the_steps_and_none_is_empty(steps, epochs, ends):
    assert epoch_ends(steps, epochs) == ends


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cases")
    write_stored_case(folder, "a", seed=1)
    write_stored_case(folder, "b", (9, 20, 18), [((1, 2, 2, 4, 6, 7), False)], seed=2)
    return folder


def run(cases, folder, total=6, epochs=3, seed=0, resume=False):
    dataset = PatchDataset(cases, ["a", "b"], PLAN, seed)
    progress = Progress(0, total, epochs, seed)
    return train_here(make_model(seed), PLAN, dataset, folder, progress, resume)


class StoppedError(Exception):
    pass


def stop_after(monkeypatch, n_steps):
    """Break off in the middle of the step after `n_steps`."""
    step, done = Trainer.step, itertools.count()

    def counted(self, *given):
        if next(done) == n_steps:
            raise StoppedError
        return step(self, *given)

    monkeypatch.setattr(Trainer, "step", counted)


@pytest.fixture(scope="module")
def straight(cases, tmp_path_factory):
    """An uninterrupted run: its folder and its averaged network."""
    folder = tmp_path_factory.mktemp("straight")
    return folder, run(cases, folder)


def test_the_same_seed_gives_bit_equal_weights(cases, straight, tmp_path):
    folder, average = straight
    assert same(weights(average), weights(run(cases, tmp_path)))
    one, other = (load_checkpoint(place, CPU) for place in (folder, tmp_path))
    assert same(one["model"], other["model"])
    assert not same(weights(average), weights(run(cases, tmp_path / "other", seed=1)))


@pytest.mark.parametrize("n_steps", [2, 3, 5])
def test_a_run_that_was_broken_off_ends_as_if_it_had_not_been(
    cases, straight, tmp_path, monkeypatch, n_steps
):
    with monkeypatch.context() as patched:
        stop_after(patched, n_steps)
        with pytest.raises(StoppedError):
            run(cases, tmp_path)
    assert progress_of(load_checkpoint(tmp_path, CPU)).step == n_steps // 2 * 2
    average = run(cases, tmp_path, total=99, resume=True)
    assert same(weights(average), weights(straight[1]))
    table = pd.read_csv(tmp_path / "metrics.csv")
    assert table["epoch"].tolist() == [0, 1, 2] and table["step"].tolist() == [2, 4, 6]


def test_a_finished_run_resumes_to_itself(cases, straight, tmp_path):
    folder, average = straight
    before = (folder / CHECKPOINT_NAME).read_bytes()
    assert same(weights(average), weights(run(cases, folder, resume=True)))
    assert (folder / CHECKPOINT_NAME).read_bytes() == before


def test_metrics_have_a_row_per_epoch_with_all_losses(straight):
    table = pd.read_csv(straight[0] / "metrics.csv")
    assert table["epoch"].tolist() == [0, 1, 2]
    columns = {*LOSS_WEIGHTS, "learning_rate", "step_s", "loader_wait_s", "step"}
    assert columns <= set(table.columns) and table[1:].notna().all().all()
    first = set(table.columns[table.loc[0].notna()])
    assert columns - first == set(DETECTION_LOSSES), "the dense branch learns alone at first"


@pytest.mark.filterwarnings("error")
def test_the_curves_are_drawn_from_the_first_epoch_on_even_of_losses_that_are_zero(tmp_path):
    row = dict.fromkeys(LOSS_WEIGHTS, 0.0) | {"step_s": 1.0, "loader_wait_s": 0.0}
    rows = [
        row | {"epoch": epoch, "learning_rate": 0.1, "dense_entropy": 0.5} for epoch in range(2)
    ]
    for n in (1, 2):
        DRAW(pd.DataFrame(rows[:n]), tmp_path / "a.png")
        assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_rows_after_the_checkpoint_are_written_anew(tmp_path):
    row = {"learning_rate": 0.1, "step_s": 1.0, "loader_wait_s": 0.0, "dense_entropy": 0.5}
    first = TrainingLog(tmp_path, 0)
    for epoch in range(3):
        first.add({"epoch": epoch, **row}, None)
    resumed = TrainingLog(tmp_path, first_epoch=2)
    resumed.add({"epoch": 2, **row, "dense_entropy": 0.25}, None)
    table = pd.read_csv(tmp_path / "metrics.csv")
    assert table["epoch"].tolist() == [0, 1, 2] and table["dense_entropy"].tolist() == [
        0.5,
        0.5,
        0.25,
    ]
    fresh = TrainingLog(tmp_path, first_epoch=0)
    fresh.add({"epoch": 0, **row}, None)
    assert len(pd.read_csv(tmp_path / "metrics.csv")) == 1


def test_tensorboard_gets_every_epoch_once_also_after_a_resume(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    row = {"learning_rate": 0.1, "step_s": 1.0, "loader_wait_s": 0.0, "dense_entropy": 0.5}
    first = TrainingLog(tmp_path, 0, tensorboard=True)
    for epoch in range(3):
        first.add({"epoch": epoch, "step": 10 * (epoch + 1), **row}, None)
    TrainingLog(tmp_path, 2, tensorboard=True).add(
        {"epoch": 2, "step": 30, **row, "dense_entropy": 0.25}, None
    )
    events = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    seen = [(event.step, event.value) for event in events.Scalars("dense_entropy")]
    assert seen == [(10, 0.5), (20, 0.5), (30, 0.25)]


def test_a_checkpoint_of_another_network_is_refused(cases, tmp_path):
    run(cases, tmp_path, total=1, epochs=1)
    wider = PLAN.network.model_copy(update={"neck_width": 10})
    dataset = PatchDataset(cases, ["a", "b"], PLAN, 0)
    with pytest.raises(ModelError, match=r"checkpoint_last.pt.*plan"):
        train_here(make_model(0, wider), PLAN, dataset, tmp_path, None, resume=True)


def test_the_budget_run_really_trains_and_leaves_no_trace(cases):
    dataset = PatchDataset(cases, ["a", "b"], PLAN, 0)
    assert budget.steps_for_budget(PLAN, dataset, [], CPU, 0, 1000.0) > 10
