import pytest
import torch

from bonemet_auto.model.fpn import (
    DenseBranch,
    FeaturePyramid,
    FusionNeck,
    WeightedSum,
    upsample_to,
)

STRIDES = ((1, 2, 2), (2, 2, 2), (1, 2, 2), (2, 2, 2), (2, 1, 1))
WIDTHS = (4, 6, 8, 10, 12)


def make_maps(n, requires_grad=False):
    cell, maps = torch.tensor([8, 16, 16]), []
    for width, stride in zip(WIDTHS[:n], STRIDES[:n], strict=True):
        cell = cell // torch.tensor(stride)
        maps.append(torch.randn(2, width, *cell.tolist(), requires_grad=requires_grad))
    return maps


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_the_neck_keeps_every_stage_and_brings_them_to_one_width(n):
    maps = make_maps(n)
    fused = FusionNeck(WIDTHS[:n], STRIDES[:n], 5)(maps)
    assert [f.shape for f in fused] == [(2, 5, *m.shape[2:]) for m in maps]


def test_three_stages_are_fused_down_and_up_as_drawn():
    torch.manual_seed(0)
    neck, maps = FusionNeck(WIDTHS[:3], STRIDES[:3], 5), make_maps(3)
    a, b, c = (project(x) for project, x in zip(neck.lateral, maps, strict=True))
    b_down = neck.down_convs[1](b + upsample_to(c, b.shape[2:]))
    a_down = neck.down_convs[0](a + upsample_to(b_down, a.shape[2:]))
    b_up = neck.up_convs[0](b + b_down + neck.strided[0](a_down))
    c_up = neck.up_convs[1](c + c + neck.strided[1](b_up))
    for found, expected in zip(neck(maps), (a_down, b_up, c_up), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_every_fused_map_reads_every_stage(level):
    maps = make_maps(4, requires_grad=True)
    torch.manual_seed(0)
    fused = FusionNeck(WIDTHS[:4], STRIDES[:4], 5)(maps)
    fused[level].square().sum().backward()
    assert all(item.grad is not None and item.grad.abs().sum() > 0 for item in maps)


def test_all_parameters_of_the_neck_learn():
    neck = FusionNeck(WIDTHS[:3], STRIDES[:3], 5)
    sum(item.square().sum() for item in neck(make_maps(3))).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in neck.parameters())


def test_a_weighted_sum_starts_as_the_plain_sum_and_never_subtracts():
    maps = [torch.randn(1, 2, 3, 3, 3) for _ in range(3)]
    summed = WeightedSum(3)
    torch.testing.assert_close(summed(maps), maps[0] + maps[1] + maps[2])
    summed.logits.data = torch.tensor([5.0, -40.0, 1.0])
    ones = [torch.full((1, 1, 1, 1, 1), float(k)) for k in (1, 10, 100)]
    weights = torch.tensor([5.0, -40.0, 1.0]).softmax(0) * 3
    assert (weights >= 0).all()
    torch.testing.assert_close(
        summed(ones).flatten(), (weights * torch.tensor([1.0, 10.0, 100.0])).sum()[None]
    )


@pytest.mark.parametrize("stride", [(1, 2, 2), (2, 2, 2), (1, 1, 1), (2, 4, 4)])
def test_the_dense_branch_answers_for_every_voxel_and_expects_few_lesions(stride):
    torch.manual_seed(0)
    skip = torch.relu(torch.randn(2, 4, 8, 16, 12))
    finest = torch.randn(2, 6, *(n // s for n, s in zip((8, 16, 12), stride, strict=True)))
    branch = DenseBranch(6, 4, stride)
    with torch.autocast("cpu", torch.bfloat16):
        assert branch(skip, finest).dtype == torch.float32
    logits = branch(skip, finest)
    assert logits.shape == (2, 8, 16, 12)
    assert 0.005 < logits.sigmoid().mean() < 0.2


def test_a_cell_of_the_finest_map_reaches_its_own_voxels():
    branch = DenseBranch(1, 1, (1, 2, 2))
    for p in branch.parameters():
        p.data.zero_()
    branch.expand.weight.data.fill_(1)
    branch.merge.conv.weight.data[0, 0, 1, 1, 1] = 1
    branch.merge.norm.weight.data.fill_(1)
    branch.logit.weight.data.fill_(1)
    finest = torch.zeros(1, 1, 3, 4, 5)
    finest[0, 0, 1, 2, 3] = 7
    logits = branch(torch.zeros(1, 1, 3, 8, 10), finest)[0]
    lit = torch.nonzero(logits > 0)
    assert lit.tolist() == [[1, y, x] for y in (4, 5) for x in (6, 7)]


def test_upsampling_repeats_cells():
    x = torch.arange(4.0).view(1, 1, 1, 2, 2)
    assert upsample_to(x, (2, 4, 2))[0, 0, 1].tolist() == [[0, 1], [0, 1], [2, 3], [2, 3]]


@pytest.mark.parametrize("n", [1, 2, 4])
def test_the_plain_pyramid_has_the_same_shapes_and_reads_coarser_stages_only(n):
    maps = make_maps(n, requires_grad=True)
    pyramid = FeaturePyramid(WIDTHS[:n], 5)(maps)
    assert [f.shape for f in pyramid] == [(2, 5, *m.shape[2:]) for m in maps]
    pyramid[-1].square().sum().backward()
    assert [item.grad is not None for item in maps] == [False] * (n - 1) + [True]


def test_the_weights_of_the_neck_are_told_by_name_and_have_mean_one():
    neck = FusionNeck(WIDTHS[:3], STRIDES[:3], 5)
    assert set(neck.weights().values()) == {1.0}
    with torch.no_grad():
        neck.up_sums[1].logits.copy_(torch.tensor([2.0, 0.0, -1.0]))
    told = neck.weights()
    assert len(told) == 2 * 2 + 2 * 3
    inputs = [told[f"up2_{name}"] for name in ("lateral", "downward", "finer")]
    assert inputs == sorted(inputs, reverse=True) and sum(inputs) == pytest.approx(3)
    assert told["down0_coarser"] == told["up1_finer"] == 1
