"""Windows: coverage, weights and counts against slow obvious references."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bonemet_auto.inference.tiles import (
    Tiling,
    centre_weight,
    dilate_bone,
    lay_tiles,
    pad_to_patch,
    window_weight,
)

SHAPES = st.tuples(*[st.integers(1, 23)] * 3)
PATCHES = st.tuples(*[st.integers(1, 9)] * 3)
OVERLAPS = st.sampled_from([0.0, 0.25, 0.5, 0.75])


def _case(shape, patch, seed, share):
    rng = np.random.default_rng(seed)
    padded = pad_to_patch(np.zeros(shape, np.int16), patch).shape
    return padded, rng.random(shape) < share


def _slices(start, patch):
    return tuple(slice(s, s + p) for s, p in zip(start, patch, strict=True))


def _brute_count(tiling: Tiling, shape):
    count = np.zeros(shape, int)
    for start in tiling.windows:
        assert all(
            s >= 0 and s + p <= n for s, p, n in zip(start, tiling.patch, shape, strict=True)
        )
        count[_slices(start, tiling.patch)] += 1
    return count


@settings(max_examples=80, deadline=None)
@given(SHAPES, PATCHES, OVERLAPS, st.integers(0, 999), st.sampled_from([0.0, 0.002, 0.02, 0.5]))
def test_every_wanted_voxel_lies_in_a_kept_window(shape, patch, overlap, seed, share):
    padded, wanted = _case(shape, patch, seed, share)
    count = _brute_count(lay_tiles(padded, patch, overlap, wanted), padded)
    covered = count[tuple(slice(n) for n in shape)] > 0
    assert covered[wanted].all()
    if not wanted.any():
        assert covered.all()


@settings(max_examples=30, deadline=None)
@given(SHAPES, PATCHES, OVERLAPS)
def test_without_a_mask_windows_reach_both_ends_of_every_axis(shape, patch, overlap):
    padded, _ = _case(shape, patch, 0, 0)
    tiling = lay_tiles(padded, patch, overlap, None)
    for starts, size, length in zip(tiling.starts, patch, padded, strict=True):
        assert starts[0] == 0
        assert starts[-1] + size == length
        steps = np.diff(starts)
        assert ((steps > 0) & (steps <= max(1, size * (1 - overlap)) + 1)).all()
    assert (_brute_count(tiling, padded) > 0).all()


@settings(max_examples=40, deadline=None)
@given(SHAPES, PATCHES, OVERLAPS, st.integers(0, 999))
def test_separable_counts_and_weights_equal_an_explicit_buffer(shape, patch, overlap, seed):
    padded, wanted = _case(shape, patch, seed, 0.01)
    tiling = lay_tiles(padded, patch, overlap, wanted)
    rng = np.random.default_rng(seed)
    truth = rng.random(padded).astype(np.float32)
    weight, total = window_weight(patch), np.zeros(padded, np.float32)
    for start in tiling.windows:
        total[_slices(start, patch)] += weight * truth[_slices(start, patch)]
    tiling.divide_by_weight(total)
    count = _brute_count(tiling, padded)
    np.testing.assert_allclose(total, np.where(count > 0, truth, 0), rtol=1e-4, atol=1e-6)

    points = rng.integers(0, padded, (20, 3))
    np.testing.assert_array_equal(tiling.count_covering(points + 0.5), count[tuple(points.T)])


def test_windows_far_from_bone_are_left_out():
    bone = np.zeros((40, 40, 40), bool)
    bone[2, 2, 2] = bone[37, 37, 37] = True
    tiling = lay_tiles(bone.shape, (8, 8, 8), 0.5, bone)
    assert 0 < tiling.kept.sum() < tiling.kept.size / 10


def test_bone_grows_by_20_mm_in_every_direction_whatever_the_spacing():
    bone = np.zeros((11, 51, 41), bool)
    bone[5, 25, 20] = True
    grown = np.argwhere(dilate_bone(bone, (5.0, 1.0, 2.0)))
    np.testing.assert_array_equal(grown.min(0), [1, 5, 10])
    np.testing.assert_array_equal(grown.max(0), [9, 45, 30])


def test_short_axes_are_padded_with_air_on_the_far_side():
    padded = pad_to_patch(np.full((1, 5, 9), 40, np.int16), (4, 4, 4))
    assert padded.shape == (4, 5, 9)
    assert (padded[0] == 40).all()
    assert (padded[1:] == -1024).all()


def test_detections_at_a_window_face_count_half_as_much_as_central_ones():
    points = np.array([[8, 4, 2], [0, 4, 2], [8, 4, 3], [8, 8, 4]], float)
    np.testing.assert_allclose(centre_weight(points, (16, 8, 4)), [1, 0.5, 0.75, 0.5])


def test_the_centre_of_a_window_weighs_most_and_corners_keep_a_floor():
    weight = window_weight((8, 9, 10))
    assert weight.max() == pytest.approx(weight[4, 4, 5])
    assert weight.min() == pytest.approx(1e-6)
