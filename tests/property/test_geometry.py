"""Geometry against its definition, voxel by voxel, on random oblique grids."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bonemet_auto.geometry import Geometry


@st.composite
def grids(draw, least=1):
    """Any orthonormal direction, mirrored ones too; at least so many voxels along each axis."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    axes, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    axes *= rng.choice([-1, 1], size=(3, 1))
    return Geometry(
        draw(st.tuples(*[st.integers(least, 40)] * 3)),
        tuple(rng.uniform(0.3, 6, 3).tolist()),
        tuple(rng.uniform(-900, 900, 3).tolist()),
        tuple(map(tuple, axes.tolist())),
    )


def place(grid, index):
    """Where voxel `index` lies: from the origin along each axis, step by step."""
    point = list(grid.origin_lps_mm)
    for axis in range(3):
        for k in range(3):
            point[k] += index[axis] * grid.spacing_mm[axis] * grid.direction[axis][k]
    return point


@settings(max_examples=50, deadline=None)
@given(grids(), st.lists(st.tuples(*[st.floats(-50, 50)] * 3), min_size=1, max_size=5))
def test_points_are_where_the_axes_lead_and_come_back(grid, points):
    mapped = grid.index_to_lps(points)
    np.testing.assert_allclose(mapped, [place(grid, point) for point in points], atol=1e-8)
    np.testing.assert_allclose(grid.lps_to_index(mapped), points, atol=1e-8)
    np.testing.assert_allclose(grid.index_to_lps(points[0]), mapped[0])


@settings(max_examples=50, deadline=None)
@given(grids(), st.tuples(*[st.integers(0, 9)] * 3), st.tuples(*[st.integers(0, 9)] * 3))
def test_box_corners_are_the_outer_corners_of_its_voxels(grid, low, size):
    high = tuple(a + n for a, n in zip(low, size, strict=True))
    corners = grid.box_corners_lps((*low, *high))
    expected = [
        place(grid, [edge - 0.5 for edge in corner])
        for corner in product(*zip(low, high, strict=True))
    ]
    assert corners.shape == (8, 3)
    np.testing.assert_allclose(sorted(corners.tolist()), sorted(expected), atol=1e-8)


@settings(max_examples=50, deadline=None)
@given(grids())
def test_a_voxel_box_has_the_volume_of_a_voxel(grid):
    corners = grid.box_corners_lps((2, 3, 4, 3, 4, 5))
    edges = corners[[1, 2, 4]] - corners[0]
    assert abs(np.linalg.det(edges)) == pytest.approx(grid.voxel_volume_mm3)


@settings(max_examples=50, deadline=None)
@given(grids(), st.integers(0, 2**32))
def test_float_noise_is_no_mismatch(grid, seed):
    rng = np.random.default_rng(seed)

    def noisy(values):
        return np.asarray(values) * (1 + 1e-8 * rng.normal(size=np.shape(values)))

    other = Geometry(
        grid.shape,
        tuple(noisy(grid.spacing_mm)),
        tuple(noisy(grid.origin_lps_mm)),
        tuple(map(tuple, noisy(grid.direction))),
    )
    assert grid.mismatch(other) is None and other.mismatch(grid) is None


@settings(max_examples=50, deadline=None)
@given(grids(least=4), st.integers(0, 2))
def test_a_mirrored_axis_is_a_mismatch(grid, axis):
    direction = [list(row) for row in grid.direction]
    direction[axis] = [-value for value in direction[axis]]
    found = grid.mismatch(replace(grid, direction=tuple(map(tuple, direction))))
    assert found is not None and "direction" in found


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([(0, 2, 1), (1, 0, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)]), st.integers(4, 40))
def test_exchanged_axes_of_a_cube_are_a_mismatch(order, edge):
    grid = Geometry((edge,) * 3, (1.5, 1.5, 1.5), (3.0, 4.0, 5.0))
    turned = replace(grid, direction=tuple(grid.direction[axis] for axis in order))
    found = grid.mismatch(turned)
    assert found is not None and "direction" in found


@settings(max_examples=50, deadline=None)
@given(grids(least=4), st.integers(0, 2), st.floats(0.2, 30))
def test_a_shift_of_a_fifth_of_a_voxel_is_a_mismatch_that_names_the_origin(grid, axis, voxels):
    index = np.zeros(3)
    index[axis] = voxels * max(grid.spacing_mm) / grid.spacing_mm[axis]
    shifted = replace(grid, origin_lps_mm=tuple(grid.index_to_lps(index).tolist()))
    assert "origin" in str(grid.mismatch(shifted))


@settings(max_examples=50, deadline=None)
@given(grids(least=4))
def test_other_shapes_and_spacings_are_named_with_both_values(grid):
    z, y, x = grid.shape
    found = grid.mismatch(replace(grid, shape=(z + 1, y, x)))
    assert found is not None and f"{(z + 1, y, x)} against {grid.shape}" in found
    wider = tuple(edge * 1.01 for edge in grid.spacing_mm)
    found = grid.mismatch(replace(grid, spacing_mm=wider))
    assert found is not None and "spacing" in found and f"{wider[0]:.4g}" in found
