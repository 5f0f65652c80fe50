import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bonemet_auto.model.boxes import greedy_leaders, nms
from tests.property.slow_boxes import any_box, awkward_boxes, iou, tensor

# Whole voxels and thresholds that binary fractions hold: no test hangs on a rounding.
THRESHOLD = st.sampled_from([0.0, 0.125, 0.25, 0.5, 0.75])


# Five grades, so that many scores are equal.
GRADE = st.integers(0, 4).map(lambda grade: grade / 4)
CROWDED = st.lists(st.tuples(any_box(0, 6, 5), GRADE), max_size=25)
AWKWARD = awkward_boxes(max_size=20).flatmap(
    lambda boxes: st.tuples(*(st.tuples(st.just(box), GRADE) for box in boxes))
)


def greedy_loop(boxes, scores, threshold):
    """The definition: visit by score, join the first kept box that overlaps, else be kept."""
    kept, leaders = [], [-1] * len(boxes)
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        leaders[i] = next((j for j in kept if iou(boxes[j], boxes[i]) > threshold), i)
        if leaders[i] == i:
            kept.append(i)
    return leaders, kept


@pytest.mark.parametrize("kind", [CROWDED, AWKWARD], ids=["crowded", "awkward"])
@settings(deadline=None, max_examples=200)
@given(st.data(), THRESHOLD, st.sampled_from([1, 3, 256]))
def test_leaders_and_survivors_equal_the_greedy_loop(kind, data, threshold, block):
    scored = data.draw(kind)
    boxes, scores = [box for box, _ in scored], [score for _, score in scored]
    leaders, kept = greedy_loop(boxes, scores, threshold)
    found = tensor(boxes), torch.tensor(scores)
    assert greedy_leaders(*found, threshold, block).tolist() == leaders
    assert nms(*found, threshold).tolist() == kept


@pytest.mark.parametrize("spread", [8, 40])
def test_many_boxes_over_several_blocks_equal_the_greedy_loop(spread):
    generator = torch.Generator().manual_seed(spread)
    low = torch.randint(0, spread, (600, 3), generator=generator).float()
    boxes = torch.cat((low, low + torch.randint(0, 9, (600, 3), generator=generator)), dim=1)
    scores = torch.randint(0, 30, (600,), generator=generator) / 30
    leaders, kept = greedy_loop(boxes.int().tolist(), scores.tolist(), 0.25)
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
