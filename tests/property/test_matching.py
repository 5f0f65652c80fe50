import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bonemet_auto.model.anchors import grid_anchors
from bonemet_auto.model.matching import atss_match, sample_negatives
from tests.property.slow_boxes import any_box, awkward_boxes, iou, tensor

CROWDED = st.lists(any_box(-2, 14, 8), max_size=5)
AWKWARD = awkward_boxes(max_size=5)
GRID = st.tuples(*[st.integers(1, 3)] * 3)
SIZES = torch.tensor([[4.0, 4, 4], [8.0, 6, 4]])


def slow_atss(levels, boxes, k):
    """ATSS box by box and anchor by anchor, as its docstring tells it, in fractions.

    Returns the matches, and whether an overlap is exactly the threshold: then rounding decides.
    """
    anchors = [row for level in levels for row in level]
    overlaps = [[iou(anchor, box) for anchor in anchors] for box in boxes]
    claims, undecided = {}, False
    for g, box in enumerate(boxes):
        candidates, offset = [], 0
        for level in levels:
            order = sorted(range(len(level)), key=lambda i, level=level: (away(level[i], box), i))
            candidates += [offset + i for i in order[:k]]
            offset += len(level)
        among = [overlaps[g][i] for i in candidates]
        mean = sum(among) / len(among)
        variance = sum((value - mean) ** 2 for value in among) / len(among)
        best = max(range(len(anchors)), key=lambda i, g=g: (overlaps[g][i], -i))
        for i in {*candidates, best}:
            above = overlaps[g][i] - mean
            if overlaps[g][i] > 0 and (i == best or (above >= 0 and above**2 >= variance)):
                claims.setdefault(i, []).append((i == best, overlaps[g][i], -g))
                undecided |= i != best and above**2 == variance
    return [-max(claims[i])[2] if i in claims else -1 for i in range(len(anchors))], undecided


def away(a, b):
    """Squared distance of the centres, times four."""
    return sum((a[axis] + a[axis + 3] - b[axis] - b[axis + 3]) ** 2 for axis in range(3))


@pytest.mark.parametrize("kind", [CROWDED, AWKWARD], ids=["crowded", "awkward"])
@settings(deadline=None)
@given(st.data(), GRID, GRID, st.integers(1, 5))
def test_matches_equal_the_slow_loop(kind, data, fine, coarse, k):
    boxes = data.draw(kind)
    levels = [grid_anchors(fine, (4, 4, 4), SIZES), grid_anchors(coarse, (8, 8, 8), 2 * SIZES)]
    expected, undecided = slow_atss([level.int().tolist() for level in levels], boxes, k)
    assume(not undecided)
    assert atss_match(levels, tensor(boxes), k).tolist() == expected


@settings(deadline=None)
@given(AWKWARD)
def test_a_box_goes_without_only_where_others_take_what_it_would_have_alone(boxes):
    levels = [grid_anchors((3, 3, 3), (4, 4, 4), SIZES)]
    matched, anchors = atss_match(levels, tensor(boxes)), levels[0].int().tolist()
    for anchor, g in zip(anchors, matched.tolist(), strict=True):
        assert g < 0 or iou(anchor, boxes[g]) > 0
    for g, box in enumerate(boxes):
        alone = atss_match(levels, tensor([box])) == 0
        assert alone.any() == any(iou(anchor, box) > 0 for anchor in anchors)
        assert g in matched or (matched[alone] >= 0).all()


def test_a_lesion_between_centres_gets_the_anchor_that_overlaps_it_most():
    anchors = [grid_anchors((2, 2, 2), (8, 8, 8), torch.tensor([[8.0, 8, 8]]))]
    matches = atss_match(anchors, torch.tensor([[0.0, 0, 5, 2, 2, 7.5]]))
    assert matches.tolist() == [0] + [-1] * 7


def test_an_anchor_claimed_twice_goes_to_the_higher_overlap():
    anchors = [torch.tensor([[0.0, 0, 0, 4, 4, 4]])]
    boxes = torch.tensor([[0.0, 0, 0, 4, 4, 2], [0.0, 0, 0, 4, 4, 3]])
    assert atss_match(anchors, boxes).tolist() == [1]


def test_a_box_keeps_its_best_anchor_though_another_box_overlaps_that_more():
    close = [[0.0, 0, 0, 4, 4, 4], [0.0, 0, 0, 4, 4, 4.5]]
    far = [[50.0, 50, 50, 51, 51, 51]] * 6  # low IoUs, so that the first box claims both close ones
    boxes = torch.tensor([[0.0, 0, 0, 4, 4, 4.5], [0.0, 0, 0, 4, 4, 1]])
    anchors = [torch.tensor(close + far)]
    assert atss_match(anchors, boxes[:1], k=8).tolist() == [0, 0] + [-1] * 6
    assert atss_match(anchors, boxes, k=8).tolist() == [1, 0] + [-1] * 6


def test_without_boxes_or_anchors_everything_is_background():
    anchors = [torch.rand(5, 6), torch.rand(0, 6)]
    assert atss_match(anchors, torch.zeros(0, 6)).tolist() == [-1] * 5
    assert atss_match([torch.zeros(0, 6)], torch.rand(2, 6)).shape == (0,)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 100), st.booleans()), max_size=30),
    st.integers(0, 6),
    st.integers(1, 4),
    st.integers(0, 2**31),
)
def test_negatives_are_distinct_and_drawn_from_the_hardest(anchors, wanted, factor, seed):
    scores = torch.tensor([float(score) for score, _ in anchors])
    negative = torch.tensor([flag for _, flag in anchors], dtype=torch.bool)

    def draw():
        generator = torch.Generator().manual_seed(seed)
        return sample_negatives(scores, negative, wanted, factor, generator).tolist()

    chosen = draw()
    available = sorted((score for score, flag in anchors if flag), reverse=True)
    assert len(chosen) == len(set(chosen)) == min(wanted, len(available))
    assert all(anchors[i][1] for i in chosen)
    assert all(anchors[i][0] >= available[: wanted * factor][-1] for i in chosen)
    assert draw() == chosen


def test_negatives_are_drawn_from_the_whole_pool_not_its_top():
    scores, every = torch.arange(20.0), torch.ones(20, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    draws = [sample_negatives(scores, every, 2, 5, generator) for _ in range(60)]
    assert set(torch.cat(draws).tolist()) == set(range(10, 20))
