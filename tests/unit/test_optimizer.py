import copy

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from bonemet_auto.model.mask_rcnn import build_model
from bonemet_auto.training.optimizer import MUON_RATE, Muon, MuonAdamW, is_matrix, orthogonalise
from tests.unit.training_fakes import training_plan

PLAN = training_plan()
TRAINING = PLAN.training.model_copy(update={"learning_rate": 0.01, "weight_decay": 0.3})


def polar(matrix):
    """The nearest matrix with orthonormal rows or columns, by decomposition."""
    u, _, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    return u @ v


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 24), st.integers(1, 24), st.integers(0, 1000), st.floats(1e-4, 1e4))
@example(128, 300, 0, 1.0)
@example(200, 96, 0, 1e-4)
def test_an_orthogonalised_matrix_lies_near_the_polar_factor(rows, columns, seed, size):
    torch.manual_seed(seed)
    # No singular value near zero: those are lifted only after more iterations.
    spread = torch.linspace(0.3, 1, min(rows, columns)).double()
    u, _, v = torch.linalg.svd(torch.randn(rows, columns).double(), full_matrices=False)
    matrix = (size * (u * spread) @ v).float()
    found = orthogonalise(matrix).double()
    assert found.shape == matrix.shape
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.6 and values.max() < 1.3
    torch.testing.assert_close(found, polar(matrix), rtol=0, atol=0.35)


def test_nothing_to_learn_from_moves_nothing_but_the_decay():
    weight = nn.Parameter(torch.ones(8, 3, 3, 3, 3))
    weight.grad = torch.zeros_like(weight)
    Muon([weight], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(weight.data, torch.full_like(weight, 0.95))


def test_the_size_of_the_gradient_does_not_matter():
    torch.manual_seed(0)
    gradient, moved = torch.randn(8, 4, 3, 3, 3), []
    for size in (1e-3, 1e3):
        weight = nn.Parameter(torch.zeros(8, 4, 3, 3, 3))
        weight.grad = gradient * size
        Muon([weight], lr=0.1, weight_decay=0.0).step()
        moved.append(weight.data)
    torch.testing.assert_close(moved[0], moved[1])
    assert (moved[0] * gradient).sum() < 0


def test_every_parameter_is_taken_once_and_only_weights_decay():
    model = build_model(PLAN.network)
    optimizer = MuonAdamW(model, TRAINING)
    (matrices,) = optimizer.muon.param_groups
    decayed, others = optimizer.adamw.param_groups
    taken = [id(p) for group in (matrices, decayed, others) for p in group["params"]]
    assert sorted(taken) == sorted(id(p) for p in model.parameters())
    assert all(p.ndim > 1 for group in (matrices, decayed) for p in group["params"])
    assert [g["weight_decay"] for g in (matrices, decayed, others)] == [0.3, 0.3, 0.0]
    depthwise = [m.depthwise.weight for m in model.modules() if hasattr(m, "depthwise")]
    assert depthwise and not any(is_matrix(p) for p in depthwise)
    assert not is_matrix(model.dense.logit.weight) and is_matrix(
        model.neck.down_convs[0].conv.weight
    )


def test_both_parts_follow_the_schedule():
    optimizer = MuonAdamW(build_model(PLAN.network), TRAINING)
    optimizer.step(0.002)
    assert optimizer.learning_rate == 0.002
    assert optimizer.muon.param_groups[0]["lr"] == pytest.approx(0.002 * MUON_RATE)


def test_a_restored_optimizer_goes_on_bit_by_bit():
    def steps(model, optimizer, numbers):
        for number in numbers:
            torch.manual_seed(number)
            for p in model.parameters():
                p.grad = torch.randn_like(p)
            optimizer.step(0.01)

    model = nn.Sequential(nn.Linear(6, 9), nn.LayerNorm(9), nn.Linear(9, 2))
    optimizer = MuonAdamW(model, TRAINING)
    steps(model, optimizer, range(3))
    other = copy.deepcopy(model)
    restored = MuonAdamW(other, TRAINING)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(model, optimizer, range(3, 6))
    steps(other, restored, range(3, 6))
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)
