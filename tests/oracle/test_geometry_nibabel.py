"""Our grid and nibabel's affine put every voxel at one place."""

from itertools import permutations, product

import numpy as np
import pytest

from bonemet_auto.geometry import Geometry

nib = pytest.importorskip("nibabel")
pytestmark = pytest.mark.oracle

SHAPE, SPACING_MM, ORIGIN_MM = (4, 5, 6), (3.0, 0.7, 1.1), (12.0, -30.0, 250.0)
AXES = np.eye(3)


def image_of(grid, array):
    """A nibabel image (x, y, z) of an array (z, y, x), by the convention of NIfTI: RAS."""
    affine = np.eye(4)
    for column, axis in enumerate((2, 1, 0)):
        affine[:3, column] = np.multiply(grid.direction[axis], grid.spacing_mm[axis])
    affine[:3, 3] = grid.origin_lps_mm
    return nib.Nifti1Image(array.T, np.diag([-1.0, -1, 1, 1]) @ affine)


def to_lps(points_ras):
    return np.asarray(points_ras) * [-1, -1, 1]


@pytest.mark.parametrize("seed", range(5))
def test_voxels_of_an_oblique_grid_lie_where_the_affine_says(seed):
    rng = np.random.default_rng(seed)
    axes, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    grid = Geometry(SHAPE, SPACING_MM, ORIGIN_MM, tuple(map(tuple, axes)))
    affine = image_of(grid, np.zeros(SHAPE, np.uint8)).affine
    index = rng.uniform(-5, 9, (20, 3))
    there = nib.affines.apply_affine(affine, index[:, ::-1])
    np.testing.assert_allclose(grid.index_to_lps(index), to_lps(there), atol=1e-9)
    back = nib.affines.apply_affine(np.linalg.inv(affine), there)[:, ::-1]
    np.testing.assert_allclose(grid.lps_to_index(to_lps(there)), back, atol=1e-9)
    np.testing.assert_allclose(nib.affines.voxel_sizes(affine), grid.spacing_mm[::-1])


def test_the_plain_direction_is_lps():
    image = image_of(Geometry(SHAPE, SPACING_MM), np.zeros(SHAPE, np.uint8))
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_a_marked_voxel_keeps_its_place_when_nibabel_reorients_the_image(order):
    for signs in product((1, -1), repeat=3):
        direction = tuple(tuple(AXES[axis] * sign) for axis, sign in zip(order, signs, strict=True))
        grid = Geometry(SHAPE, SPACING_MM, ORIGIN_MM, direction)
        codes = nib.aff2axcodes(image_of(grid, np.zeros(SHAPE, np.uint8)).affine)
        assert grid.orientation == "".join(codes)
        marked = np.zeros(SHAPE, np.uint8)
        marked[1, 3, 4] = 1
        upright = nib.as_closest_canonical(image_of(grid, marked))
        where = np.argwhere(np.asarray(upright.dataobj))[0]
        there = nib.affines.apply_affine(upright.affine, where)
        np.testing.assert_allclose(grid.index_to_lps((1, 3, 4)), to_lps(there), atol=1e-9)
