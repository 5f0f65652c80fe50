import math

import pytest
import torch

from bonemet_auto.model.losses import dense_loss, dice_loss, mean_over, quality_loss, source_loss


def test_dice_is_the_mean_over_the_windows_that_hold_a_lesion():
    logits = torch.tensor([[2.0, -1.0, 0.5], [-3.0, 0.0, 1.0], [0.3, -0.4, 2.0]])
    target = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    p = [[1 / (1 + math.exp(-v)) for v in row] for row in logits.tolist()]
    first = 1 - (2 * (p[0][0] + p[0][2]) + 1) / (sum(p[0]) + 2 + 1)
    third = 1 - (2 * p[2][1] + 1) / (sum(p[2]) + 1 + 1)
    assert dice_loss(logits, target).item() == pytest.approx((first + third) / 2)


def test_a_small_lesion_counts_as_much_as_a_large_one():
    large, small = torch.zeros(2, 1000), torch.zeros(2, 1000)
    large[0, :900], small[1, :3] = 1, 1
    right, target = (large + small) * 2 - 1, large + small
    miss_small = right.clone()
    miss_small[1] = -1
    miss_large = right.clone()
    miss_large[0] = -1
    missed = [dice_loss(40 * logits, target).item() for logits in (miss_small, miss_large)]
    assert missed[0] == pytest.approx(missed[1], abs=0.15) and min(missed) > 0.3


def test_a_right_answer_costs_nothing_and_a_wrong_one_much():
    target = torch.zeros(4, 5, 6)
    target[1:3, 2:4, 1:5] = 1
    right = (target * 2 - 1) * 40
    assert dense_loss(right, target).item() == pytest.approx(0, abs=1e-5)
    assert dense_loss(-right, target).item() > 10


def test_windows_without_lesion_have_a_finite_loss_that_pushes_down():
    logits = torch.zeros(2, 4, 4, 4, requires_grad=True)
    loss = dense_loss(logits, torch.zeros(2, 4, 4, 4))
    loss.backward()
    assert torch.isfinite(loss) and (logits.grad > 0).all()
    silent = dense_loss(torch.full((2, 4, 4, 4), -40.0), torch.zeros(2, 4, 4, 4))
    assert silent.item() == pytest.approx(0, abs=1e-5)


def test_extreme_logits_stay_finite():
    target = torch.tensor([[1.0, 0.0]])
    logits = torch.tensor([[-1e4, 1e4]], requires_grad=True)
    dense_loss(logits, target).backward()
    assert torch.isfinite(logits.grad).all()


def test_the_mean_of_nothing_is_nothing():
    assert mean_over(torch.empty(0), 0).item() == 0
    assert mean_over(torch.tensor([1.0, 2.0]), 4).item() == 0.75


def test_both_sources_weigh_the_same_however_many_there_are():
    logits = torch.tensor([0.3, -0.2, 1.5, 0.7], requires_grad=True)
    is_lung = torch.tensor([1, 0, 0, -1])
    bce = [math.log1p(math.exp(-0.3)), math.log1p(math.exp(-0.2)), math.log1p(math.exp(1.5))]
    loss = source_loss(logits, is_lung)
    assert loss.item() == pytest.approx(0.5 * bce[0] + 0.25 * (bce[1] + bce[2]), rel=1e-5)
    loss.backward()
    assert logits.grad[3] == 0 and (logits.grad[:3] != 0).all()


@pytest.mark.parametrize("is_lung", [[1, 1], [0, 0], [-1, -1], []])
def test_one_source_alone_and_unknown_sources_are_ordinary(is_lung):
    logits = torch.zeros(len(is_lung), requires_grad=True)
    loss = source_loss(logits, torch.tensor(is_lung, dtype=torch.long))
    loss.backward()
    known = bool(is_lung) and is_lung[0] >= 0
    assert loss.item() == pytest.approx(0.5 * math.log(2) if known else 0)
    assert torch.isfinite(logits.grad).all()


def test_the_quality_loss_is_least_at_the_dice_of_the_mask():
    target = torch.zeros(2, 4, 4, 4)
    target[:, :2] = 1
    mask = torch.full((2, 4, 4, 4), -1.0)
    mask[0, :2], mask[1, 1:3] = 1, 1
    dice = torch.tensor([1.0, (2 * 16 + 1) / (64 + 1)])
    estimates = torch.linspace(0.01, 0.99, 99)
    for row in range(2):
        one = slice(row, row + 1)
        losses = [quality_loss(e.logit()[None], mask[one], target[one]) for e in estimates]
        best = estimates[torch.stack(losses).argmin()].item()
    assert best == pytest.approx(dice[row].item(), abs=0.011)
