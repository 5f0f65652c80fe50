"""Weighted box clustering against a plain loop, and the union of cut pieces."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bonemet_auto.inference.merge import (
    Boxes,
    Clusters,
    touches_inner_face,
    unite_cut_boxes,
    weighted_clusters,
)
from tests.property.slow_boxes import awkward_boxes


def _iou(a, b):
    edge = np.minimum(a[3:], b[3:]) - np.maximum(a[:3], b[:3])
    inter = np.prod(np.maximum(edge, 0))
    return inter / (np.prod(a[3:] - a[:3]) + np.prod(b[3:] - b[:3]) - inter)


def _slow_clusters(boxes, scores, weights, forwards, cut, expected, threshold):
    left = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    result = []
    while left:
        leader = boxes[left[0]]
        members = [i for i in left if i == left[0] or _iou(leader, boxes[i]) > threshold]
        left = [i for i in left if i not in members]
        w = np.array([_iou(leader, boxes[i]) * weights[i] for i in members])
        s = scores[members]
        placing = w * s
        if not all(cut[i] for i in members):
            placing = placing * [not cut[i] for i in members]
        box = (boxes[members] * placing[:, None]).sum(0) / placing.sum()
        looked = expected(((box[:3] + box[3:]) / 2)[None])[0]
        missing = max(0, looked - len({forwards[i] for i in members}))
        result.append((*box, (w * s).sum() / (w.sum() + missing * w.mean())))
    return np.array(result).reshape(-1, 7)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 60), st.integers(1, 6), st.integers(0, 9999))
def test_clusters_equal_a_plain_loop(n, n_objects, seed):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 60, (n_objects, 3))[rng.integers(0, n_objects, n)] + rng.normal(
        0, 1, (n, 3)
    )
    boxes = np.hstack([low, low + rng.uniform(3, 12, (n, 3))]).astype(np.float32)
    scores = rng.permutation(np.linspace(0.05, 0.95, n)).astype(np.float32)
    weights, forwards = rng.uniform(0.5, 1, n), rng.integers(0, 7, n)
    cut = rng.random(n) < 0.5

    def expected(points):
        return np.floor(points[:, 0] / 8).astype(np.int64).clip(0)

    found = Boxes(*map(torch.from_numpy, (boxes, scores, weights, forwards, cut)))
    fast = weighted_clusters(found, expected)
    slow = _slow_clusters(
        boxes.astype(float), scores.astype(float), weights, forwards, cut, expected, 0.3
    )
    got = np.column_stack([fast.boxes.numpy(), fast.scores.numpy()])
    np.testing.assert_allclose(got, slow, rtol=1e-5, atol=1e-5)


@st.composite
def _awkward_detections(draw, empty):
    """Boxes, and for each a score of a few, trust, the forward that found it, and if it is cut."""
    boxes = draw(awkward_boxes(max_size=12, empty=empty))
    about = st.tuples(
        st.integers(1, 4), st.sampled_from([0.5, 0.75, 1.0]), st.integers(0, 3), st.booleans()
    )
    rows = draw(st.lists(about, min_size=len(boxes), max_size=len(boxes)))
    scores, weights, forwards, cut = np.array(rows, float).reshape(-1, 4).T
    boxes = np.array(boxes, float).reshape(-1, 6)
    return boxes, scores / 4, weights, forwards.astype(int), cut.astype(bool)


def _clustered(boxes, scores, weights, forwards, cut, expected, threshold):
    columns = boxes.astype(np.float32), scores.astype(np.float32), weights, forwards, cut
    found = Boxes(*map(torch.from_numpy, columns))
    merged = weighted_clusters(found, expected, threshold)
    return np.column_stack([merged.boxes.numpy(), merged.scores.numpy()])


@settings(deadline=None)
@given(
    _awkward_detections(empty=False), st.sampled_from([0.0, 0.125, 0.25, 0.5]), st.integers(0, 5)
)
def test_clusters_of_awkward_boxes_with_tied_scores_equal_a_plain_loop(found, threshold, looked):
    def expected(points):
        return np.full(len(points), looked)

    slow = _slow_clusters(*found, expected, threshold)
    np.testing.assert_allclose(_clustered(*found, expected, threshold), slow, rtol=1e-9, atol=1e-9)


@settings(deadline=None)
@given(_awkward_detections(empty=True), st.sampled_from([0.0, 0.25]))
def test_boxes_without_volume_change_no_other_cluster(found, threshold):
    def expected(points):
        return np.full(len(points), 4)

    boxes = found[0]
    solid = (boxes[:, 3:] > boxes[:, :3]).all(axis=1)
    merged = _clustered(*found, expected, threshold)
    assert np.isfinite(merged).all()
    alone = _clustered(*(column[solid] for column in found), expected, threshold)
    np.testing.assert_allclose(merged[merged[:, 6] > 0], alone, rtol=1e-9, atol=1e-9)


def _found(rows, forwards):
    boxes = torch.tensor([row[:6] for row in rows], dtype=torch.float32)
    scores = torch.tensor([row[6] for row in rows])
    ones = torch.ones(len(rows))
    return Boxes(boxes, scores, ones, torch.tensor(forwards), torch.zeros(len(rows)).bool())


def test_a_lesion_that_half_of_the_forwards_miss_keeps_half_its_score():
    rows = [(0, 0, 0, 4, 4, 4, 0.8)] * 2
    found = _found(rows, [0, 1])
    all_saw = weighted_clusters(found, lambda points: np.full(len(points), 2))
    half_saw = weighted_clusters(found, lambda points: np.full(len(points), 4))
    assert all_saw.scores.tolist() == pytest.approx([0.8])
    assert half_saw.scores.tolist() == pytest.approx([0.4])


def test_two_boxes_of_one_forward_do_not_stand_for_two_forwards():
    found = _found([(0, 0, 0, 4, 4, 4, 0.8), (0, 0, 0, 4, 4, 4.1, 0.8)], [5, 5])
    merged = weighted_clusters(found, lambda points: np.full(len(points), 2))
    assert merged.scores.item() == pytest.approx(0.8 * 2 / 3, rel=0.01)


def test_only_faces_inside_the_scan_cut_a_box():
    boxes = torch.tensor([[0, 2, 2, 4, 4, 4], [2, 2, 2, 8, 4, 4], [2, 2, 2, 4, 4, 4]]).float()
    patch, shape = (8, 8, 8), (16, 8, 8)
    assert touches_inner_face(boxes, (0, 0, 0), patch, shape).tolist() == [False, True, False]
    assert touches_inner_face(boxes, (8, 0, 0), patch, shape).tolist() == [True, False, False]


def _clusters(rows, cut):
    table = torch.tensor(rows, dtype=torch.float64)
    return Clusters(table[:, :6], table[:, 6], torch.tensor(cut))


PIECES = [(0, 0, 0, 4, 4, 12, 0.9), (0, 0, 11, 4, 4, 24, 0.6), (0, 0, 20, 4, 4, 30, 0.7)]


def test_pieces_on_one_component_become_their_union_with_the_best_score():
    components = np.zeros((8, 8, 40), np.int32)
    components[:4, :4, :30] = 1
    united = unite_cut_boxes(_clusters(PIECES, [True] * 3), components)
    assert united.boxes.tolist() == [[0, 0, 0, 4, 4, 30]]
    assert united.scores.tolist() == [0.9]


@pytest.mark.parametrize("reason", ["components", "whole", "apart", "nothing"])
def test_boxes_stay_apart_without_a_reason_to_join(reason):
    components = np.zeros((8, 8, 40), np.int32)
    components[:4, :4, :30] = 0 if reason == "nothing" else 1
    rows, cut = [PIECES[0], PIECES[1]], [True, True]
    if reason == "components":
        components[:4, :4, 12:30] = 2
    if reason == "whole":
        cut = [False, False]
    if reason == "apart":
        rows[1] = (0, 0, 16, 4, 4, 24, 0.6)
    assert len(unite_cut_boxes(_clusters(rows, cut), components).scores) == 2


def test_a_piece_of_a_lesion_that_some_window_saw_whole_is_left_out():
    components = np.ones((8, 8, 40), np.int32)
    rows = [(0, 0, 0, 6, 6, 20, 0.5), (0, 0, 0, 6, 6, 5, 0.9)]
    kept = unite_cut_boxes(_clusters(rows, [False, True]), components)
    assert kept.boxes.tolist() == [list(rows[0][:6])]
