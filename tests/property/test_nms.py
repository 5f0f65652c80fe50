import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bonemet_auto.model.boxes import greedy_leaders, nms, pairwise_iou

# Whole voxels and thresholds that binary fractions hold: no test hangs on a rounding.
THRESHOLD = st.sampled_from([0.0, 0.125, 0.25, 0.5, 0.75])
SCORED_BOX = st.tuples(*[st.integers(0, 6)] * 3, *[st.integers(0, 5)] * 3, st.integers(0, 4)).map(
    lambda b: ([b[0], b[1], b[2], b[0] + b[3], b[1] + b[4], b[2] + b[5]], b[6] / 4)
)


def split(scored):
    boxes = torch.tensor([box for box, _ in scored], dtype=torch.float32).reshape(-1, 6)
    return boxes, torch.tensor([score for _, score in scored], dtype=torch.float32)


def greedy_loop(boxes, scores, threshold):
    """The definition: visit by score, join the first kept box that overlaps, else be kept."""
    overlap = pairwise_iou(boxes, boxes)
    kept, leaders = [], [-1] * len(boxes)
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i].item(), i)):
        leaders[i] = next((j for j in kept if overlap[j, i] > threshold), i)
        if leaders[i] == i:
            kept.append(i)
    return leaders, kept


@settings(deadline=None)
@given(st.lists(SCORED_BOX, max_size=25), THRESHOLD, st.sampled_from([1, 3, 256]))
def test_leaders_and_survivors_equal_the_greedy_loop(scored, threshold, block):
    boxes, scores = split(scored)
    leaders, kept = greedy_loop(boxes, scores, threshold)
    assert greedy_leaders(boxes, scores, threshold, block).tolist() == leaders
    assert nms(boxes, scores, threshold).tolist() == kept


@pytest.mark.parametrize("spread", [8, 40])
def test_many_boxes_over_several_blocks_equal_the_greedy_loop(spread):
    generator = torch.Generator().manual_seed(spread)
    low = torch.randint(0, spread, (600, 3), generator=generator).float()
    boxes = torch.cat((low, low + torch.randint(0, 9, (600, 3), generator=generator)), dim=1)
    scores = torch.randint(0, 30, (600,), generator=generator) / 30
    leaders, kept = greedy_loop(boxes, scores, 0.25)
    assert greedy_leaders(boxes, scores, 0.25).tolist() == leaders
    assert nms(boxes, scores, 0.25).tolist() == kept


def test_duplicates_follow_the_first_and_chains_are_not_merged():
    a, b, c = [0.0, 0, 0, 4, 4, 4], [0.0, 0, 2, 4, 4, 6], [0.0, 0, 4, 4, 4, 8]
    boxes = torch.tensor([c, b, a, a])
    scores = torch.tensor([0.5, 0.7, 0.9, 0.9])
    # b overlaps a and is gone, so c, which overlaps only b, stays.
    assert greedy_leaders(boxes, scores, 0.25).tolist() == [0, 2, 2, 2]
    assert nms(boxes, scores, 0.25).tolist() == [2, 0]


def test_no_boxes_give_no_survivors():
    assert nms(torch.zeros(0, 6), torch.zeros(0), 0.5).shape == (0,)
    assert greedy_leaders(torch.zeros(0, 6), torch.zeros(0), 0.5).dtype == torch.long
