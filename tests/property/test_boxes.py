import itertools
import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bonemet_auto.model.boxes import (
    LOG_SIZE_LIMIT,
    box_volumes,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    paired_giou,
    pairwise_iou,
)
from tests.property.slow_boxes import awkward_boxes, giou, iou, overlap, tensor


@settings(deadline=None)
@given(awkward_boxes(), awkward_boxes())
def test_iou_equals_the_pair_by_pair_one_and_is_symmetric(a, b):
    found = pairwise_iou(tensor(a), tensor(b))
    expected = torch.tensor([[float(iou(p, q)) for q in b] for p in a]).reshape(len(a), len(b))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found, pairwise_iou(tensor(b), tensor(a)).t())


@settings(deadline=None)
@given(awkward_boxes(max_size=5))
def test_giou_of_all_pairs_equals_the_one_in_fractions_and_is_symmetric(boxes):
    pairs = list(itertools.product(boxes, repeat=2))
    a, b = tensor([p for p, _ in pairs]), tensor([q for _, q in pairs])
    found = paired_giou(a, b)
    torch.testing.assert_close(found, torch.tensor([float(giou(p, q)) for p, q in pairs]))
    torch.testing.assert_close(found, paired_giou(b, a))
    assert ((found >= -1) & (found <= 1)).all()


@settings(deadline=None)
@given(awkward_boxes(max_size=4))
def test_giou_has_a_finite_gradient_for_all_boxes(boxes):
    pairs = list(itertools.product(boxes, repeat=2))
    a = tensor([p for p, _ in pairs]).requires_grad_()
    paired_giou(a, tensor([q for _, q in pairs])).sum().backward()
    assert a.grad.isfinite().all()


def test_overlaps_are_computed_in_float32_for_half_precision_boxes():
    boxes = torch.tensor([[0, 0, 0, 100, 100, 100.0]], dtype=torch.float16)
    assert box_volumes(boxes).item() == 1e6
    assert pairwise_iou(boxes, boxes).item() == 1
    assert paired_giou(boxes, boxes).item() == 1


def test_an_inverted_box_has_no_volume():
    assert box_volumes(torch.tensor([[5.0, 5, 5, 0, 0, 0], [0, 0, 9, 1, 1, 0]])).tolist() == [0, 0]


@settings(deadline=None)
@given(awkward_boxes())
def test_clipped_boxes_lie_in_the_image_and_keep_what_was_inside(boxes):
    image = [0, 0, 0, 5, 6, 7]
    clipped = clip_boxes(tensor(boxes), image[3:])
    assert box_volumes(clipped).tolist() == [overlap(box, image) for box in boxes]
    assert (clipped >= 0).all()
    assert (clipped <= torch.tensor([5, 6, 7] * 2)).all()


SIZED_BOX = st.tuples(*[st.floats(-50, 50)] * 3, *[st.floats(4, 16)] * 3).map(
    lambda b: [b[0], b[1], b[2], b[0] + b[3], b[1] + b[4], b[2] + b[5]]
)


@settings(deadline=None)
@given(st.lists(st.tuples(SIZED_BOX, SIZED_BOX), max_size=6))
def test_decoding_undoes_encoding(pairs):
    boxes, anchors = tensor([p for p, _ in pairs]), tensor([q for _, q in pairs])
    decoded = decode_boxes(encode_boxes(boxes, anchors), anchors)
    torch.testing.assert_close(decoded, boxes, atol=1e-3, rtol=1e-5)


def test_codes_are_centre_offsets_in_anchor_edges_then_log_sizes():
    anchor = torch.tensor([[0.0, 0, 0, 2, 4, 8]])
    box = torch.tensor([[1.0, 1, 1, 5, 9, 17]])  # centre 3 5 9, size 4 8 16
    expected = torch.tensor([[1.0, 0.75, 0.625, *[math.log(2)] * 3]])
    torch.testing.assert_close(encode_boxes(box, anchor), expected)


def test_wild_deltas_decode_to_bounded_boxes():
    anchors = torch.tensor([[0.0, 0, 0, 2, 2, 2]] * 2)
    deltas = torch.tensor([[0.0, 0, 0, 1e9, 1e9, 1e9], [0.0, 0, 0, -1e9, -1e9, -1e9]])
    decoded = decode_boxes(deltas, anchors)
    edges = decoded[:, 3:] - decoded[:, :3]
    limit = math.exp(LOG_SIZE_LIMIT)
    torch.testing.assert_close(edges, torch.tensor([[2 * limit] * 3, [2 / limit] * 3]))
