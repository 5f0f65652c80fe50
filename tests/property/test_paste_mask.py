"""A mask of bins laid back over voxels, against reading it voxel by voxel."""

import itertools
import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bonemet_auto.inference.describe import Description
from bonemet_auto.inference.fuse import USUAL_OUTLINE, fuse, fused_probability, paste_mask
from tests.property.slow_boxes import WINDOW, awkward_boxes, volume

BINS = st.tuples(*[st.integers(1, 4)] * 3)
SEED = st.integers(0, 99)
FULL = Description(np.ones((2, 2, 2), np.float32), p_lung=0.5, score=0.5, mask_quality=0.5)


@st.composite
def pasted_boxes(draw):
    """A box, and the voxels from low to high to paste it on: around it, or all of the window."""
    box = draw(awkward_boxes(max_size=3).filter(len))[-1]
    shift = draw(st.sampled_from([0.0, 0.25, 0.5]))
    box = np.array(box, float) + shift
    if draw(st.booleans()):
        return box, np.zeros(3, int), np.array(WINDOW)
    rim = draw(st.integers(0, 2))
    return box, np.floor(box[:3]).astype(int) - rim, np.ceil(box[3:]).astype(int) + rim


def read(mask, point):
    """Linear reading at a point in bins, edge values outside: the eight bins around it."""
    total = 0.0
    for corner in itertools.product((0, 1), repeat=3):
        weight, at = 1.0, []
        for place, upper, bins in zip(point, corner, mask.shape, strict=True):
            place = min(max(place, 0.0), bins - 1.0)
            low = math.floor(place)
            weight *= place - low if upper else 1 - (place - low)
            at.append(min(low + upper, bins - 1))
        total += weight * mask[tuple(at)]
    return total


def slow_paste(mask, box, low, high):
    pasted = np.zeros(high - low)
    for voxel in np.ndindex(pasted.shape):
        centre = low + np.array(voxel) + 0.5
        edges = np.maximum(box[3:] - box[:3], 1e-3)
        pasted[voxel] = read(mask, (centre - box[:3]) / edges * mask.shape - 0.5)
    return pasted


def random_mask(bins, seed):
    return np.random.default_rng(seed).random(bins).astype(np.float32)


@settings(deadline=None, max_examples=40)
@given(pasted_boxes(), BINS, SEED)
def test_a_pasted_mask_equals_the_one_read_voxel_by_voxel(place, bins, seed):
    mask = random_mask(bins, seed)
    pasted = paste_mask(mask, *place)
    assert pasted.dtype == np.float32
    np.testing.assert_allclose(pasted, slow_paste(mask, *place), atol=1e-5)


@settings(deadline=None)
@given(awkward_boxes(max_size=3, empty=False).filter(len), SEED)
def test_a_mask_of_one_bin_per_voxel_comes_back_as_it_is(boxes, seed):
    low, high = np.array(boxes[-1][:3]), np.array(boxes[-1][3:])
    mask = random_mask(high - low, seed)
    np.testing.assert_allclose(paste_mask(mask, np.array(boxes[-1], float), low, high), mask)


@settings(deadline=None)
@given(pasted_boxes(), BINS)
def test_a_uniform_mask_is_pasted_uniformly(place, bins):
    pasted = paste_mask(np.full(bins, 0.625, np.float32), *place)
    np.testing.assert_allclose(pasted, np.full(place[2] - place[1], 0.625), atol=1e-6)


@settings(deadline=None)
@given(awkward_boxes(empty=False), st.sampled_from([0.0, 0.25, 0.5]))
def test_where_the_dense_branch_is_silent_a_full_mask_fills_its_box_to_the_voxel(boxes, shift):
    """Voxel centres decide, the upper face excluded; half a voxel may lie off on either side."""
    dense = np.zeros(WINDOW, np.float32)
    for corners in boxes:
        box = np.clip(np.array(corners, float) + shift, 0, [*WINDOW, *WINDOW])
        if not volume(box):
            continue  # outside the window; `fuse` asks for boxes inside
        candidate = fuse(dense, box, FULL, 0.5)
        held = np.zeros(WINDOW)
        held[candidate.region] = fused_probability(candidate, USUAL_OUTLINE)
        centres = [np.arange(n) + 0.5 for n in WINDOW]
        inside = [(c >= a) & (c < b) for c, a, b in zip(centres, box[:3], box[3:], strict=True)]
        expected = np.einsum("z,y,x->zyx", *inside)
        if expected.any():
            np.testing.assert_array_equal(held > 0, expected)
        else:
            assert (held > 0).sum() >= 1
