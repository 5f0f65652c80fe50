import pytest
import torch
from torch import nn

from bonemet_auto.model import rpn as rpn_module
from bonemet_auto.model.boxes import pairwise_iou
from bonemet_auto.model.rpn import RegionProposalNetwork

WINDOW = (8, 16, 12)
STRIDES = ((1, 2, 2), (2, 4, 4))
SIZES = (((3.0, 4.0, 5.0), (2.0, 3.0, 3.0)), ((5.0, 8.0, 6.0), (6.0, 6.0, 9.0)))


def make_rpn(width=3):
    torch.manual_seed(0)
    return RegionProposalNetwork(width, STRIDES, SIZES)


def features(n=2, width=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(
            n, width, *(w // s for w, s in zip(WINDOW, stride, strict=True)), generator=generator
        )
        for stride in STRIDES
    ]


def run(rpn, n=2, probability=None):
    if probability is None:
        probability = torch.full((n, 1, *WINDOW), 0.1)
    return rpn(features(n), probability)


def test_every_anchor_has_a_score_and_a_shift():
    output = run(make_rpn())
    assert [len(level) for level in output.anchors] == [8 * 8 * 6 * 2, 4 * 4 * 3 * 2]
    n_anchors = sum(map(len, output.anchors))
    assert output.objectness.shape == (2, n_anchors) and output.deltas.shape == (2, n_anchors, 6)
    with torch.autocast("cpu", torch.bfloat16):
        output = run(make_rpn())
    assert output.objectness.dtype == output.deltas.dtype == torch.float32


def test_lesions_are_held_for_rare_at_the_start():
    assert 0.002 < run(make_rpn()).objectness.sigmoid().mean() < 0.15


class Evidence(nn.Module):
    """Instead of the convolution: hands the pooled probability on."""

    def __init__(self, channel):
        super().__init__()
        self.channel = channel

    def forward(self, x):
        return x[:, self.channel : self.channel + 1]


def seeing_rpn(channel, size):
    """Objectness is the pooled probability, of one of the anchor sizes only."""
    rpn = make_rpn()
    rpn.conv = Evidence(channel)
    rpn.objectness = nn.Conv3d(1, 2, 1)
    rpn.deltas = nn.Conv3d(1, 12, 1)
    for p in (*rpn.objectness.parameters(), *rpn.deltas.parameters()):
        p.data.zero_()
    rpn.objectness.weight.data[size] = 1
    return rpn


@pytest.mark.parametrize("pooled", [3, 4], ids=["mean", "maximum"])
@pytest.mark.parametrize("size", [0, 1])
def test_the_best_proposal_lies_where_the_dense_branch_sees_a_lesion(pooled, size):
    probability = torch.zeros(2, 1, *WINDOW)
    probability[0, 0, 5, 8:10, 4:6] = 1
    output = run(seeing_rpn(pooled, size), probability=probability)
    (boxes, scores), (_, nothing) = make_rpn().proposals(output, WINDOW, 5)
    half = torch.tensor(SIZES[0][size]) / 2
    centre = torch.tensor([5.5, 9.0, 5.0])
    torch.testing.assert_close(boxes[0], torch.cat([centre - half, centre + half]))
    assert scores[0] == scores.max() and (nothing == 0.5).all()


def test_proposals_are_the_best_boxes_cut_to_the_window_without_near_copies():
    output = run(make_rpn())
    found = make_rpn().proposals(output, WINDOW, 7)
    for boxes, scores in found:
        assert boxes.shape == (7, 6) and (scores.diff() <= 0).all()
        assert (boxes >= 0).all() and (boxes <= torch.tensor([*WINDOW, *WINDOW])).all()
        overlap = pairwise_iou(boxes, boxes).fill_diagonal_(0)
        assert overlap.max() <= rpn_module.PROPOSAL_NMS_IOU + 1e-6
    assert not found[0][0].requires_grad
    assert found[0][1][0] == output.objectness[0].sigmoid().max()


def losses(output, boxes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return make_rpn().losses(output, boxes, generator)


ONE = torch.tensor([[2.0, 4.0, 4.0, 5.0, 8.0, 9.0]])
NONE = torch.zeros(0, 6)


def test_windows_without_lesions_teach_background_only():
    output = run(make_rpn())
    score, box = losses(output, [NONE, NONE])
    assert torch.isfinite(score) and score > 0 and box == 0
    (score + box).backward()


@pytest.mark.parametrize(
    "truth",
    [
        torch.tensor([[3.0, 3.0, 3.0, 4.0, 4.0, 4.0]]),
        torch.tensor([[0.0, 0.0, 0.0, 2.0, 3.0, 2.0]]),
        torch.tensor([[0.0, 0.0, 0.0, *map(float, WINDOW)]]),
        torch.cat([ONE, ONE + 3]),
    ],
    ids=["one voxel", "in a corner", "whole window", "two"],
)
def test_every_lesion_gives_a_finite_loss_and_gradient(truth):
    rpn = make_rpn()
    output = run(rpn)
    score, box = losses(output, [truth, NONE])
    assert torch.isfinite(score) and 0 < box < 2
    (score + box).backward()
    for name, p in rpn.named_parameters():
        assert torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0, name


def test_a_shift_onto_the_lesion_lowers_the_box_loss_to_nothing():
    output = run(make_rpn())
    truth = torch.cat([output.anchors[0][300:301], output.anchors[1][20:21]])
    output.deltas.data.zero_()
    matched_itself = losses(output, [truth[:1], NONE])[1]
    output.deltas.data.fill_(0.3)
    assert losses(output, [truth[:1], NONE])[1] > matched_itself + 0.1


def test_negatives_are_drawn_by_the_generator():
    output = run(make_rpn())
    assert losses(output, [ONE, NONE], 1)[0] == losses(output, [ONE, NONE], 1)[0]
    assert len({losses(output, [ONE, NONE], seed)[0].item() for seed in range(4)}) > 1


def test_the_dense_probability_gets_no_gradient_back_through_the_model():
    probability = torch.full((2, 1, *WINDOW), 0.1)
    maps = [item.requires_grad_() for item in features()]
    output = make_rpn()(maps, probability)
    score, box = losses(output, [ONE, NONE])
    (score + box).backward()
    assert probability.grad is None and all(item.grad.abs().sum() > 0 for item in maps)
