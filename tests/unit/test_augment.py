import random

import numpy as np
import pytest
from scipy import ndimage

from bonemet_auto.data.augment import change_intensity, mirror, warp

LARGE, PATCH = (20, 24, 28), (16, 20, 22)
ISOTROPIC, COARSE_Z = (1.0, 1.0, 1.0), (3.0, 0.8, 0.8)


def seeded(seed):
    np.random.seed(seed)
    random.seed(seed)


def window(shape=LARGE):
    """A smooth image whose value says which of three separate lesions is where."""
    instances = np.zeros(shape, np.uint16)
    instances[3:8, 4:10, 4:9] = 7
    instances[10:15, 12:18, 15:21] = 300
    instances[9:13, 4:8, 18:22] = 65_000
    image = np.zeros(shape, np.float32)
    for value, number in ((1, 7), (2, 300), (3, 65_000)):
        image[instances == number] = value
    return image, instances


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("spacing_mm", [ISOTROPIC, COARSE_Z])
def test_warping_makes_no_new_ids_and_moves_image_and_ids_together(seed, spacing_mm):
    image, instances = window()
    seeded(seed)
    warped, ids = warp(image, instances, PATCH, spacing_mm)
    assert warped.shape == ids.shape == PATCH
    assert warped.dtype == np.float32 and ids.dtype == np.uint16
    assert set(np.unique(ids)) <= {0, 7, 300, 65_000}
    for value, number in ((1, 7), (2, 300), (3, 65_000)):
        core = ndimage.binary_erosion(ids == number)
        if core.any():
            assert np.median(warped[core]) == pytest.approx(value, abs=0.05)


def test_warping_varies_and_is_fixed_by_the_global_seeds():
    found = []
    for seed in (1, 1, 2):
        seeded(seed)
        found.append(warp(*window(), PATCH, ISOTROPIC)[0])
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])


@pytest.mark.parametrize("coarse", [0, 1, 2])
def test_slices_of_a_coarse_axis_are_not_tilted_but_turned_in_their_plane(coarse):
    """Along any axis: scans may be axial, coronal or sagittal."""
    spacing_mm = tuple(3.0 if axis == coarse else 0.8 for axis in range(3))
    position = np.indices(LARGE).astype(np.float32)
    nothing, plane = np.zeros(LARGE, np.uint16), tuple({0, 1, 2} - {coarse})
    tilted, turned = 0, 0
    for seed in range(10):
        seeded(seed)
        assert warp(position[coarse], nothing, PATCH, spacing_mm)[0].std(axis=plane).max() < 1e-3
        seeded(seed)
        across = warp(position[plane[0]], nothing, PATCH, spacing_mm)[0]
        turned += np.ptp(across, axis=plane[1]).max() > 1
        seeded(seed)
        tilted += warp(position[coarse], nothing, PATCH, ISOTROPIC)[0].std(axis=plane).max() > 0.1
    assert tilted > 5 and turned > 2


def test_lesions_keep_about_their_volume():
    ratios = []
    for seed in range(20):
        seeded(seed)
        _, ids = warp(*window((40, 40, 40)), (40, 40, 40), ISOTROPIC)
        if (ids == 300).any():
            ratios.append((ids == 300).sum() / (5 * 6 * 6))
    assert min(ratios) > 0.3 and max(ratios) < 3
    assert 0.7 < np.mean(ratios) < 1.5


@pytest.mark.parametrize("allowed", [(0, 1, 2), (2,), (0, 2), ()])
def test_mirroring_flips_boxes_with_the_image_on_every_axis_it_may(allowed):
    image, instances = window()
    seen = set()
    (box,) = ndimage.find_objects((instances == 7).astype(int))
    for seed in range(40):
        flipped, ids = mirror(image, instances, allowed, np.random.default_rng(seed))
        np.testing.assert_array_equal(flipped == 1, ids == 7)
        (found,) = ndimage.find_objects((ids == 7).astype(int))
        axes = []
        for axis, (old, new) in enumerate(zip(box, found, strict=True)):
            back = slice(LARGE[axis] - new.stop, LARGE[axis] - new.start)
            assert old in (new, back)
            axes.append(old != new)
        seen.add(tuple(axes))
        np.testing.assert_array_equal(np.flip(flipped, np.flatnonzero(axes)), image)
    assert len(seen) == 2 ** len(allowed)
    assert not any(axes[axis] for axes in seen for axis in {0, 1, 2} - set(allowed))


def test_intensity_changes_are_fixed_by_the_global_seeds_and_leave_the_input_alone():
    image = np.random.default_rng(0).normal(0, 1, (8, 9, 10)).astype(np.float32)
    before, changed = image.copy(), 0
    for seed in range(30):
        seeded(seed)
        one = change_intensity(image)
        seeded(seed)
        np.testing.assert_array_equal(one, change_intensity(image))
        assert one.shape == image.shape and one.dtype == np.float32 and np.isfinite(one).all()
        changed += not np.array_equal(one, image)
    np.testing.assert_array_equal(image, before)
    assert 5 < changed < 30


@pytest.mark.parametrize("value", [-1.1, 0.0, 2.5])
def test_a_flat_window_stays_finite(value):
    """All padding, or all saturated: contrast and gamma divide by the range."""
    flat = np.full((6, 7, 8), value, np.float32)
    for seed in range(60):
        seeded(seed)
        assert np.isfinite(change_intensity(flat)).all()
