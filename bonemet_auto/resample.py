"""Change of voxel grid: HU volumes, instance maps, probabilities and coordinates.

One convention everywhere: voxel `i` spans `[i, i + 1)`, so a crop of `n` voxels and its resampled
version of `m` voxels share their outer faces and `original = crop_start + stored * n / m`.

HU volumes go through cubic B-splines, and where voxels become wider, through the mean over what the
wider voxel covers more: docs/adr/0019-coarser-voxels-average.md. A resampled axis is a linear map
of the axis alone, so the whole operator, prefilter and border included, is one matrix per axis; its
rows are non-zero in a narrow band only, and the volume is multiplied band by band (15 times faster
than evaluating the spline voxel by voxel, with the same result).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from bonemet_auto.geometry import Index

Float32Array = npt.NDArray[np.float32]
Int16Array = npt.NDArray[np.int16]
UInt16Array = npt.NDArray[np.uint16]

HU_RANGE = (-1024, 3071)
_SLAB = 64
_ROWS = 128
_NEGLIGIBLE = 1e-7
_ROUNDING = 1e-5
_POINTS = 9
"""At which the spline is read within a new voxel that is wider than the old ones."""


@dataclass(frozen=True)
class GridMap:
    """How a stored grid lies in the original one (z, y, x).

    Attributes:
        crop_start: first original voxel of the crop that was stored.
        crop_shape: original voxels of that crop.
        shape: stored voxels that it became.
    """

    crop_start: Index
    crop_shape: Index
    shape: Index

    def to_original(self, coordinates: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Map points (..., 3) or boxes (..., 6) of the stored grid to the original grid."""
        triples, form = _as_triples(coordinates)
        return (np.asarray(self.crop_start) + triples * self._step()).reshape(form)

    def to_stored(self, coordinates: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Map points (..., 3) or boxes (..., 6) of the original grid to the stored grid."""
        triples, form = _as_triples(coordinates)
        return ((triples - np.asarray(self.crop_start)) / self._step()).reshape(form)

    def _step(self) -> npt.NDArray[np.float64]:
        return np.asarray(self.crop_shape, dtype=np.float64) / np.asarray(self.shape)


def resample_hu(hu: Int16Array, shape: Index) -> Int16Array:
    """Resample a CT with cubic B-splines; rounded and saturated at -1024 and 3071 HU.

    Args:
        hu: (Z, Y, X) int16.
        shape: voxels of the result; the outer faces of both grids coincide.
    """
    resampled = np.empty(shape, dtype=np.int16)
    _resample_into(hu, resampled)
    return resampled


def resample_cubic(volume: npt.NDArray[np.generic], shape: Index) -> Float32Array:
    """Resample a (Z, Y, X) volume with cubic B-splines; float32, not rounded, not clipped."""
    resampled = np.empty(shape, dtype=np.float32)
    _resample_into(volume, resampled)
    return resampled


def resample_instances(instances: UInt16Array, grid: GridMap) -> UInt16Array:
    """Resample an instance map, lesion by lesion within its box.

    Each lesion is interpolated linearly as a 0/1 mask and kept where it reaches half of its highest
    value. That value is 1 unless the lesion is thinner than a voxel, so no lesion vanishes or loses
    its thin parts. Small lesions go first and large neighbours yield to them.

    Args:
        instances: (Z, Y, X) ids on the original grid, uncropped.
        grid: where the result lies.

    Returns:
        Ids on `grid.shape`. Ids wholly outside the crop are absent.
    """
    inside = instances[_slices(grid.crop_start, np.add(grid.crop_start, grid.crop_shape))]
    resampled = np.zeros(grid.shape, dtype=np.uint16)
    found = [(i, box) for i, box in enumerate(ndimage.find_objects(inside), start=1) if box]
    for instance, box in sorted(found, key=lambda item: _box_volume(item[1])):
        start, share = _share_of_lesion(inside[box] == instance, box, grid)
        target = resampled[_slices(start, np.add(start, share.shape))]
        mask = (share >= 0.5 * share.max() - _ROUNDING) & (target == 0)
        if not mask.any():
            mask = _one_voxel(share, target == 0)
        target[mask] = instance
    return resampled


def resample_probability(
    probability: Float32Array, start: Index, grid: GridMap
) -> tuple[Float32Array, Index]:
    """Bring a crop of a stored probability map to the original grid, linearly.

    Probability outside the given crop counts as 0. Meant for one lesion at a time: nothing of the
    size of the volume is made.

    Args:
        probability: (z, y, x) float32 crop of the stored grid.
        start: stored index of its first voxel; all of it must lie inside `grid.shape`.
        grid: the grids.

    Returns:
        The probability on the smallest original crop that covers it, and that crop's start in the
        original (uncropped) volume.
    """
    stop = np.add(start, probability.shape)
    first = np.floor(grid.to_original(start) + _NEGLIGIBLE).astype(int)
    last = np.ceil(grid.to_original(stop) - _NEGLIGIBLE).astype(int)
    result: npt.NDArray[np.float32] = probability
    for axis in range(3):
        step = grid.shape[axis] / grid.crop_shape[axis]
        centres = np.arange(first[axis], last[axis]) + 0.5 - grid.crop_start[axis]
        weights = linear_weights(centres * step, step, grid.shape[axis])
        result = _along(result, weights[:, start[axis] : stop[axis]], axis)
    return result, (int(first[0]), int(first[1]), int(first[2]))


def linear_weights(positions: npt.NDArray[np.floating], step: float, n: int) -> Float32Array:
    """Weights of linear interpolation on a finer grid, of averaging on a coarser one.

    A new voxel wider than an old one takes the mean of what it covers, so that nothing is skipped;
    voxels beyond the ends repeat the end.

    Args:
        positions: (M,) centres of new voxels, in old voxels where voxel i spans [i, i + 1).
        step: old voxels per new voxel.
        n: old voxels along the axis.

    Returns:
        (M, n) float32; rows sum to 1.
    """
    old = np.arange(n)
    if step >= 1:
        low, high = positions[:, None] - step / 2, positions[:, None] + step / 2
        weights = np.maximum(0, np.minimum(old + 1, high) - np.maximum(old, low))
    else:
        inside = np.clip(positions, 0.5, n - 0.5)
        weights = np.maximum(0, 1 - np.abs(inside[:, None] - (old + 0.5)))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def cubic_matrix(n: int, m: int) -> Float32Array:
    """(m, n) operator from n samples of an axis to m.

    On a finer grid that of `scipy.ndimage.zoom` of order 3. On one r times coarser the mean of the
    spline over sqrt(r^2 - 1) old voxels around each new centre: with the width that old voxels have
    themselves that makes the width of a new one, and noise between the centres is not skipped.
    """
    if n == 1:
        return np.ones((m, 1), dtype=np.float32)
    step = n / m
    matrix = np.zeros((m, n))
    for place, weight in _points(step) if m < n else [(0.5, 1.0)]:
        # Each point of all new voxels at once: no matrix of all points is made.
        matrix += weight * ndimage.affine_transform(
            np.eye(n), (step, 1), (place * step - 0.5, 0), (m, n), order=3, mode="nearest"
        )
    return matrix.astype(np.float32)


def _points(step: float) -> Iterator[tuple[float, float]]:
    """Places within a new voxel that is `step` old ones wide, in its widths, and their weights."""
    half = 0.5 * np.sqrt(1 - 1 / step**2)
    edges = np.linspace(0, 1, _POINTS + 1)
    covered = np.diff(np.clip(edges, 0.5 - half, 0.5 + half))
    for place, share in zip(edges[:-1] + 0.5 / _POINTS, covered, strict=True):
        if share > 0:
            yield float(place), float(share / covered.sum())


def _resample_into(volume: npt.NDArray[np.generic], resampled: npt.NDArray[np.generic]) -> None:
    """All three axes, block of rows by block: no float32 copy of the whole volume is made.

    The rows that a block needs overlap with its neighbours', so their columns are computed twice.
    """
    depth, height, width = (
        None if n == m else cubic_matrix(n, m)
        for n, m in zip(volume.shape, resampled.shape, strict=True)
    )
    for row in range(0, resampled.shape[1], _ROWS):
        rows = slice(row, row + _ROWS)
        used, matrix = (rows, None) if height is None else _band(height[rows])
        block = _along(volume[:, used].astype(np.float32, order="C"), width, 2)
        block = _along(_along(block, matrix, 1), depth, 0)
        if resampled.dtype == np.int16:
            np.clip(np.rint(block, out=block), *HU_RANGE, out=block)
        resampled[:, rows] = block


def _band(rows: Float32Array) -> tuple[slice, Float32Array]:
    """Which columns some rows of a banded matrix use, and the part of the rows in them."""
    used = np.flatnonzero((np.abs(rows) > _NEGLIGIBLE).any(axis=0))
    band = slice(int(used[0]), int(used[-1]) + 1) if used.size else slice(0, 0)
    return band, rows[:, band]


def _along(array: Float32Array, matrix: Float32Array | None, axis: int) -> Float32Array:
    """Apply an (m, n) matrix along one axis, in blocks of rows that skip what is off the band."""
    if matrix is None:
        return array
    before, n, after = (
        int(np.prod(array.shape[:axis])),
        array.shape[axis],
        int(np.prod(array.shape[axis + 1 :])),
    )
    m = len(matrix)
    source = array.reshape(before, n, after)
    result = np.empty((before, m, after), dtype=np.float32)
    for row in range(0, m, _SLAB):
        band, weights = _band(matrix[row : row + _SLAB])
        if after == 1:
            result[:, row : row + _SLAB, 0] = source[:, band, 0] @ weights.T
        else:
            result[:, row : row + _SLAB] = weights @ source[:, band]
    return result.reshape(*array.shape[:axis], m, *array.shape[axis + 1 :])


def _share_of_lesion(
    mask: npt.NDArray[np.bool_], box: tuple[slice, ...], grid: GridMap
) -> tuple[Index, Float32Array]:
    """Linear interpolation of one lesion's mask on the stored voxels around it, and their start."""
    share: Float32Array = mask.astype(np.float32)
    start = []
    for axis, along in enumerate(box):
        n, m = grid.crop_shape[axis], grid.shape[axis]
        step = n / m
        first = max(0, int(np.floor(along.start / step)) - 1)
        last = min(m, int(np.ceil(along.stop / step)) + 1)
        centres = (np.arange(first, last) + 0.5) * step
        weights = linear_weights(centres, step, n)[:, along]
        share = _along(share, weights, axis)
        start.append(first)
    return (start[0], start[1], start[2]), share


def _one_voxel(share: Float32Array, free: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """For a lesion whose place is taken: the nearest free voxel, or its own if none is free."""
    most = np.unravel_index(int(share.argmax()), share.shape)
    distance = sum((axis - at) ** 2 for axis, at in zip(np.indices(share.shape), most, strict=True))
    nearest = int(np.where(free, distance, np.inf).argmin()) if free.any() else int(share.argmax())
    mask = np.zeros(share.size, dtype=bool)
    mask[nearest] = True
    return mask.reshape(share.shape)


def _as_triples(
    coordinates: npt.ArrayLike,
) -> tuple[npt.NDArray[np.float64], tuple[int, ...]]:
    values = np.asarray(coordinates, dtype=np.float64)
    return values.reshape(*values.shape[:-1], values.shape[-1] // 3, 3), values.shape


def _slices(start: npt.ArrayLike, stop: npt.ArrayLike) -> tuple[slice, ...]:
    pairs = zip(np.asarray(start).tolist(), np.asarray(stop).tolist(), strict=True)
    return tuple(slice(a, b) for a, b in pairs)


def _box_volume(box: tuple[slice, ...]) -> int:
    return int(np.prod([along.stop - along.start for along in box]))
