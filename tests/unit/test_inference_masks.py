"""Fused masks on the planned grid, windows of the second stage, and the contest for voxels."""

import numpy as np
import pytest
import torch

from bonemet_auto.geometry import Geometry
from bonemet_auto.images import Volume
from bonemet_auto.inference.batches import BatchSize
from bonemet_auto.inference.describe import Description, describe_lesions, share_windows
from bonemet_auto.inference.fuse import (
    CERTAIN,
    Candidate,
    drawn,
    fuse,
    given_a_lesion,
    label_components,
    paste_mask,
)
from bonemet_auto.inference.place import place_lesions
from bonemet_auto.resample import GridMap
from tests.unit.inference_fakes import BlobNetwork

SHAPE = (12, 12, 24)
GRID = GridMap((0, 0, 0), SHAPE, SHAPE)
SCAN = Volume(
    np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE), Geometry(SHAPE, (1.0, 1.0, 1.0))
)
BOX = np.array([2.0, 2, 2, 8, 8, 8])


def _dense(*boxes):
    dense = np.full(SHAPE, 0.01, np.float32)
    for z0, y0, x0, z1, y1, x1 in boxes:
        dense[z0:z1, y0:y1, x0:x1] = 0.95
    return dense


def _whole(probability):
    return Description(np.full((4, 4, 4), probability, np.float32), 0.5, 0.5, 0.7)


def _held(candidate):
    mask = np.zeros(SHAPE, bool)
    mask[candidate.region] = drawn(candidate)
    return mask


def test_a_lesion_outgrows_a_tight_box_but_does_not_pick_up_its_neighbour():
    dense = _dense((2, 2, 2, 8, 8, 9), (9, 2, 2, 12, 8, 8))
    held = _held(fuse(dense, BOX, _whole(0.9), 0.8))
    assert held[2:8, 2:8, 2:9].all()
    assert held.sum() == 6 * 6 * 7


@pytest.mark.parametrize(
    ("outline", "dense", "kept"), [(0.9, 0.3, True), (0.3, 0.9, True), (0.2, 0.7, False)]
)
def test_inside_the_box_outline_and_dense_branch_count_alike(outline, dense, kept):
    probability = np.full(SHAPE, dense, np.float32)
    probability[4, 4, 4] = 0.95
    held = _held(fuse(probability, BOX, _whole(outline), 0.8))
    assert held[2:4, 2:8, 2:8].all() == kept


def test_a_doubtful_lesion_keeps_the_outline_of_a_sure_one():
    sure, doubtful = _dense((3, 3, 3, 6, 6, 6)), _dense()
    doubtful[3:6, 3:6, 3:6] = 0.1
    held = [_held(fuse(dense, BOX, _whole(0.4), 0.8)) for dense in (sure, doubtful)]
    np.testing.assert_array_equal(*held)


def test_a_lesion_taken_for_given_raises_all_odds_alike():
    dense = np.random.default_rng(0).uniform(0, 0.3, (5, 6, 7)).astype(np.float32)
    given = given_a_lesion(dense, float(dense.max()))
    assert given.max() == pytest.approx(CERTAIN)
    odds = [p / (1 - p) for p in (dense.astype(float), given.astype(float))]
    ratio = odds[1] / odds[0]
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-4)


@pytest.mark.parametrize("surest", [CERTAIN, 0.97, 1.0])
def test_what_is_certain_stays_as_it_is(surest):
    dense = np.array([[[0.0, 0.5, surest]]], np.float32)
    np.testing.assert_array_equal(given_a_lesion(dense, surest), dense)


def test_a_lesion_without_outline_takes_the_dense_mask():
    dense = _dense((3, 3, 3, 6, 6, 6))
    held = _held(fuse(dense, BOX, Description(None, 0.5, 0.5, 0.7), 0.8))
    np.testing.assert_array_equal(held, dense > 0.5)


@pytest.mark.parametrize(
    ("box_score", "centred", "score"),
    [(0.8, 0.5, 0.75), (0.0, 0.5, 1.45 / 3), (1.0, 0.9, 0.95), (0.5, 0.8, 0.75)],
)
def test_detector_second_look_and_dense_branch_score_a_lesion_alike(box_score, centred, score):
    dense = _dense((3, 3, 3, 6, 6, 6))
    found = fuse(dense, BOX, Description(None, 0.5, centred, 0.7), box_score)
    assert found.score == pytest.approx(score)


def test_a_box_that_the_others_deny_never_exceeds_a_third():
    nothing = np.zeros(SHAPE, np.float32)
    assert fuse(nothing, BOX, Description(None, 0.5, 0.0, 0.7), 1.0).score == pytest.approx(1 / 3)


def test_a_pasted_outline_follows_its_bins():
    mask = np.zeros((2, 2, 2), np.float32)
    mask[1] = 1
    pasted = paste_mask(
        mask, np.array([2.0, 2, 2, 10, 4, 4]), np.zeros(3, int), np.array([12, 4, 4])
    )
    assert (np.diff(pasted[:, 3, 3]) >= 0).all()
    assert pasted[3, 3, 3] == 0
    assert pasted[8, 3, 3] == 1
    assert pasted[5, 3, 3] + pasted[6, 3, 3] == pytest.approx(1)


def test_components_join_over_faces_only():
    dense = _dense((0, 0, 0, 2, 2, 2), (2, 2, 2, 4, 4, 4))
    assert label_components(dense).max() == 2


def _candidate(score, low, high):
    size = np.subtract(high, low)
    box = np.array([*low, *high], float)
    return Candidate(score, 0.5, 0.7, box, tuple(low), np.full(size, 0.9, np.float32), None)


def test_a_lesion_seen_twice_comes_out_once_without_a_sliver():
    twice = [_candidate(0.9, (2, 2, 2), (8, 8, 8)), _candidate(0.4, (2, 2, 3), (8, 8, 9))]
    (lesion,) = place_lesions(twice, GRID, SCAN)
    assert (lesion.score, lesion.box) == (0.9, (2, 2, 2, 8, 8, 8))
    assert lesion.mean_hu == pytest.approx(SCAN.array[2:8, 2:8, 2:8].mean())
    assert lesion.mask_quality == 0.7


def test_lesions_that_overlap_a_little_share_the_voxels_by_score():
    pair = [_candidate(0.4, (2, 2, 2), (8, 8, 8)), _candidate(0.9, (2, 2, 6), (8, 8, 12))]
    strong, weak = place_lesions(pair, GRID, SCAN)
    assert strong.box == (2, 2, 6, 8, 8, 12)
    assert weak.box == (2, 2, 2, 8, 8, 6)


def _describe(boxes, patch=(8, 8, 8)):
    hu = np.full(SHAPE, 700, np.int16)
    return describe_lesions(
        hu,
        np.array(boxes, float),
        patch,
        [BlobNetwork()],
        lambda crop: crop.astype(np.float32) / 1000,
        BatchSize(2),
        torch.device("cpu"),
    )


def test_only_lesions_that_fit_into_a_window_are_outlined():
    small, large = _describe([(0, 0, 0, 8, 8, 8), (0, 0, 4, 8, 8, 13)])
    assert small.mask.shape == (8, 8, 8)
    assert large.mask is None
    assert large.p_lung == pytest.approx(0.8)


def test_each_lesion_gets_a_window_that_holds_it_and_neighbours_share():
    rng = np.random.default_rng(0)
    shape, patch = (40, 40, 60), (16, 16, 24)
    low = rng.uniform(0, np.subtract(shape, 6), (30, 3))
    boxes = np.hstack([low, low + rng.uniform(1, 6, (30, 3))])
    plan = share_windows(boxes, patch, shape)
    assert sorted(i for _, members in plan for i in members) == list(range(30))
    assert len(plan) < 30
    for start, members in plan:
        assert all(0 <= s <= n - p for s, p, n in zip(start, patch, shape, strict=True))
        assert (boxes[members, :3] >= start).all()
        assert (boxes[members, 3:] <= np.add(start, patch)).all()
