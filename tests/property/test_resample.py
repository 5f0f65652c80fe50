"""Changes of grid against slow references, over random grids."""

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from bonemet_auto.resample import (
    GridMap,
    cubic_matrix,
    resample_cubic,
    resample_hu,
    resample_instances,
    resample_probability,
)

edges = st.integers(1, 40)
shapes = st.tuples(edges, edges, edges)
seeds = st.integers(0, 2**16)


@st.composite
def grids(draw: st.DrawFn) -> GridMap:
    start, crop, shape = draw(shapes), draw(shapes), draw(shapes)
    shape = tuple(min(max(n, c // 4), 4 * c) for n, c in zip(shape, crop, strict=True))
    return GridMap(start, crop, shape)


def resampled_slowly(line: np.ndarray, m: int) -> np.ndarray:
    """The spline of one axis at the new centres, or its mean around them where they are fewer."""
    n, step = len(line), len(line) / m
    width = np.sqrt(max(0.0, step**2 - 1))
    values = []
    for new in range(m):
        total, weight = 0.0, 0.0
        for part in range(9):
            low, high = (
                max(-width / 2, min(width / 2, (e / 9 - 0.5) * step)) for e in (part, part + 1)
            )
            share = (high - low) if width else float(part == 4)
            centre = (new + (part + 0.5) / 9) * step - 0.5
            at = ndimage.map_coordinates(line, [[centre]], order=3, mode="nearest")[0]
            total, weight = total + share * at, weight + share
        values.append(total / weight)
    return np.array(values) if n > 1 else np.repeat(line, m)


@given(shapes, shapes, seeds)
@settings(max_examples=40, deadline=None)
def test_cubic_resampling_equals_a_slow_one(shape, target, seed):
    rng = np.random.default_rng(seed)
    lines = [rng.integers(-1024, 3072, n).astype(np.float64) for n in shape]
    z, y, x = (resampled_slowly(line, m) for line, m in zip(lines, target, strict=True))
    # A sum of three axes keeps its form: each axis is resampled alone, and weights sum to 1.
    volume = sum(np.ix_(*lines)) / 3
    reference = sum(np.ix_(z, y, x)) / 3
    np.testing.assert_allclose(resample_cubic(volume, target), reference, atol=0.02)


@given(shapes, shapes, seeds)
@settings(max_examples=60, deadline=None)
def test_on_finer_grids_cubic_resampling_equals_scipy(shape, more, seed):
    hu = np.random.default_rng(seed).integers(-1024, 3072, shape).astype(np.int16)
    target = tuple(n + m - 1 for n, m in zip(shape, more, strict=True))
    # scipy leaves single-voxel axes alone when the zoom is asked for by factor, so repeat them.
    reference = hu.astype(np.float64)
    for axis, (n, m) in enumerate(zip(shape, target, strict=True)):
        zoom = [1.0, 1.0, 1.0]
        zoom[axis] = m / n
        reference = (
            np.repeat(reference, m, axis)
            if n == 1
            else ndimage.zoom(reference, zoom, order=3, mode="nearest", grid_mode=True)
        )
    np.testing.assert_allclose(resample_cubic(hu, target), reference, atol=0.01)
    stored = resample_hu(hu, target)
    assert stored.dtype == np.int16
    assert np.abs(stored - np.clip(reference, -1024, 3071)).max() <= 0.51


@given(st.integers(40, 200), st.floats(1.0, 4.0))
@settings(max_examples=40, deadline=None)
def test_coarser_voxels_average_the_noise_of_what_they_cover(n, step):
    m = max(10, round(n / step))
    power = (cubic_matrix(n, m) ** 2).sum(axis=1)[2:-2].mean()
    assert power < 1.15 * m / n


def test_one_voxel_less_changes_next_to_nothing():
    exact = ndimage.zoom(np.eye(200), (199 / 200, 1), order=3, mode="nearest", grid_mode=True)
    assert np.abs(cubic_matrix(200, 199) - exact).max() < 0.01


@given(grids(), seeds)
@settings(max_examples=60, deadline=None)
def test_coordinates_go_there_and_back(grid, seed):
    boxes = np.random.default_rng(seed).uniform(-5, 60, (4, 6))
    np.testing.assert_allclose(grid.to_original(grid.to_stored(boxes)), boxes, atol=1e-9)
    np.testing.assert_allclose(grid.to_original([0.0, 0.0, 0.0]), grid.crop_start)
    np.testing.assert_allclose(
        grid.to_original(grid.shape), np.add(grid.crop_start, grid.crop_shape)
    )


def ellipsoid(shape, centre, radius):
    offsets = np.indices(shape).reshape(3, -1).T + 0.5 - centre
    return (((offsets / radius) ** 2).sum(1) <= 1).reshape(shape)


def place(inside, grid):
    """A lesion of the crop, as instance 3 of the whole scan."""
    instances = np.zeros(np.add(grid.crop_start, grid.crop_shape), np.uint16)
    instances[tuple(slice(s, None) for s in grid.crop_start)][inside] = 3
    return instances


def half_step(grid):
    """Half a voxel of the coarser of the two grids, in voxels of the scan."""
    return 0.5 * np.maximum(1, np.asarray(grid.crop_shape) / np.asarray(grid.shape)) + 1e-6


@given(grids(), seeds)
@settings(max_examples=80, deadline=None)
def test_no_lesion_vanishes_or_leaves_its_place(grid, seed):
    """The centre of a thin oblique lesion may move further: where it loses planes is not where it
    loses them along another axis. Its extent may not."""
    random = np.random.default_rng(seed)
    crop = np.asarray(grid.crop_shape)
    inside = ellipsoid(grid.crop_shape, random.uniform(0, crop), random.uniform(0.2, 8, 3))
    inside[tuple(random.integers(0, crop))] |= not inside.any()
    instances = place(inside, grid)
    voxels = np.argwhere(instances == 3)
    centres = grid.to_original(np.argwhere(resample_instances(instances, grid) == 3) + 0.5)
    assert len(centres)
    assert (centres >= voxels.min(0) - half_step(grid)).all()
    assert (centres <= voxels.max(0) + 1 + half_step(grid)).all()


@given(grids(), seeds)
@settings(max_examples=80, deadline=None)
def test_no_thick_lesion_moves_by_more_than_half_a_voxel(grid, seed):
    """Thick: at least two voxels of the coarser grid from centre to surface, and wholly inside."""
    random = np.random.default_rng(seed)
    crop, least = np.asarray(grid.crop_shape), 4 * half_step(grid)
    assume((crop >= 2 * least).all())
    radius = random.uniform(least, crop / 2)
    inside = ellipsoid(grid.crop_shape, random.uniform(radius, crop - radius), radius)
    instances = place(inside, grid)
    stored = resample_instances(instances, grid)
    true_centre = np.argwhere(instances == 3).mean(0) + 0.5
    stored_centre = grid.to_original(np.argwhere(stored == 3).mean(0) + 0.5)
    assert (np.abs(stored_centre - true_centre) <= half_step(grid)).all()


@given(grids(), seeds)
@settings(max_examples=80, deadline=None)
def test_no_box_moves_by_more_than_half_a_voxel(grid, seed):
    """On the way in and on the way back."""
    random = np.random.default_rng(seed)
    low = random.integers(0, grid.crop_shape)
    high = random.integers(low + 1, np.asarray(grid.crop_shape) + 1)
    inside = np.zeros(grid.crop_shape, bool)
    inside[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    instances, allowed = place(inside, grid), half_step(grid)
    true_centre = np.argwhere(instances == 3).mean(0) + 0.5

    stored = resample_instances(instances, grid)
    assert stored.shape == grid.shape and set(np.unique(stored)) <= {0, 3}
    stored_centre = grid.to_original(np.argwhere(stored == 3).mean(0) + 0.5)
    assert (np.abs(stored_centre - true_centre) <= allowed).all()

    where = ndimage.find_objects(stored)[2]
    start = tuple(along.start for along in where)
    back, back_start = resample_probability((stored[where] == 3).astype(np.float32), start, grid)
    centre = (np.argwhere(back >= back.max() / 2) + 0.5 + back_start).mean(0)
    assert (np.abs(centre - true_centre) <= 2 * allowed).all()


@given(grids(), seeds)
@settings(max_examples=60, deadline=None)
def test_the_probability_of_a_crop_equals_that_of_the_whole_volume(grid, seed):
    """A crop surrounded by zeros and the whole map with the same values agree, voxel by voxel."""
    random = np.random.default_rng(seed)
    start = tuple(int(random.integers(0, n)) for n in grid.shape)
    stop = tuple(int(random.integers(s + 1, n + 1)) for s, n in zip(start, grid.shape, strict=True))
    where = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    whole = np.zeros(grid.shape, np.float32)
    whole[where] = random.random(whole[where].shape)
    expected, origin = resample_probability(whole, (0, 0, 0), grid)
    assert origin == grid.crop_start and expected.shape == grid.crop_shape
    part, part_start = resample_probability(whole[where], start, grid)
    offset = np.subtract(part_start, grid.crop_start)
    within = tuple(slice(o, o + n) for o, n in zip(offset, part.shape, strict=True))
    np.testing.assert_allclose(part, expected[within], atol=1e-6)
    assert expected.min() >= 0 and expected.max() <= 1 + 1e-6


def test_neighbours_keep_their_own_voxels():
    instances = np.zeros((6, 6, 6), np.uint16)
    instances[1, 1, 1], instances[1, 1, 2], instances[:, 3:] = 1, 2, 7
    stored = resample_instances(instances, GridMap((0, 0, 0), (6, 6, 6), (2, 2, 2)))
    assert set(np.unique(stored)) >= {1, 2, 7}
