"""Where the windows lie on a scan, how they are weighted, and how many of them see a place.

A grid of windows is the outer product of three lists of starts. Everything about it is therefore
separable: the weights of the windows that were kept sum to a small tensor product, which is worked
out slice by slice where it is needed, and no second volume is ever held for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from bonemet_auto.fingerprint import BONE_MARGIN_MM
from bonemet_auto.geometry import Index, Triple

PADDING_HU = -1024
_WEIGHT_FLOOR = 1e-2
_LEAST_CENTRE_WEIGHT = 0.5

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Tiling:
    """A grid of equal windows over a volume, of which some may be left out.

    Attributes:
        patch: voxels of a window along (z, y, x).
        starts: first voxels of the windows along z, y and x, rising.
        kept: (nz, ny, nx) bool, the windows to be run.
    """

    patch: Index
    starts: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    kept: BoolArray

    @property
    def windows(self) -> list[Index]:
        """Starts of the windows to be run, in (z, y, x) order."""
        z, y, x = self.starts
        return [(z[i], y[j], x[k]) for i, j, k in np.argwhere(self.kept).tolist()]

    def count_covering(self, points: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
        """(N,) number of kept windows that hold each of (N, 3) points in voxels."""
        inside = [
            (points[:, axis, None] >= begin) & (points[:, axis, None] < begin + size)
            for axis, (begin, size) in enumerate(
                (np.asarray(starts), size)
                for starts, size in zip(self.starts, self.patch, strict=True)
            )
        ]
        over_x = np.einsum("zyx,nx->nzy", self.kept.astype(np.int64), inside[2].astype(np.int64))
        return np.einsum(
            "nzy,ny,nz->n", over_x, inside[1].astype(np.int64), inside[0].astype(np.int64)
        )

    def divide_by_weight(self, total: FloatArray) -> None:
        """Turn a weighted sum over the kept windows into their weighted mean, in place.

        Args:
            total: (Z, Y, X) sum of window outputs times `window_weight`; places that no window
                saw stay 0.
        """
        along_z, along_y, along_x = (
            _axis_weights(starts, size, length)
            for starts, size, length in zip(self.starts, self.patch, total.shape, strict=True)
        )
        kept = self.kept.astype(np.float64)
        for z in range(total.shape[0]):
            weight = along_y.T @ np.tensordot(along_z[:, z], kept, axes=1) @ along_x
            seen = weight > 0
            np.divide(total[z], weight, out=total[z], where=seen, casting="same_kind")


def axis_weight(size: int) -> FloatArray:
    """(size,) Gaussian weight along one axis of a window, with a floor; 1 at the centre."""
    offset = np.arange(size) - (size - 1) / 2
    return np.maximum(np.exp(-0.5 * (offset / (size / 8)) ** 2), _WEIGHT_FLOOR).astype(np.float32)


def window_weight(patch: Index) -> FloatArray:
    """(Z, Y, X) weight of each voxel of a window: the product of three `axis_weight`."""
    z, y, x = (axis_weight(size) for size in patch)
    return z[:, None, None] * y[None, :, None] * x[None, None, :]


def centre_weight(points: npt.NDArray[np.floating], patch: Index) -> npt.NDArray[np.float64]:
    """(N,) trust in detections at (N, 3) points of a window: 1 at its centre, 0.5 at its faces."""
    half = np.asarray(patch) / 2
    away = np.abs(points - half) / half
    nearest_face = away.max(axis=1).clip(0, 1)
    return np.asarray(1 - (1 - _LEAST_CENTRE_WEIGHT) * nearest_face, dtype=np.float64)


def padded_shape(shape: Sequence[int], patch: Index) -> Index:
    """Voxels (z, y, x) of a scan that holds a window on each axis."""
    z, y, x = (max(length, size) for length, size in zip(shape, patch, strict=True))
    return (z, y, x)


def pad_to_patch(hu: npt.NDArray[np.int16], patch: Index) -> npt.NDArray[np.int16]:
    """Fill axes shorter than the patch with air on the far side; other scans pass unchanged."""
    target = padded_shape(hu.shape, patch)
    if hu.shape == target:
        return hu
    missing = [(0, size - length) for size, length in zip(target, hu.shape, strict=True)]
    return np.pad(hu, missing, constant_values=PADDING_HU)


def dilate_bone(bone: BoolArray, spacing_mm: Triple) -> BoolArray:
    """Grow a bone mask by `BONE_MARGIN_MM` along each axis (a box: it holds the ball)."""
    grown = bone.view(np.uint8)
    for axis, spacing in enumerate(spacing_mm):
        reach = int(np.ceil(BONE_MARGIN_MM / spacing))
        grown = ndimage.maximum_filter1d(grown, 2 * reach + 1, axis=axis, mode="constant")
    return grown.view(np.bool_)


def lay_tiles(shape: Index, patch: Index, overlap: float, wanted: BoolArray | None) -> Tiling:
    """Lay windows over a volume, or over the part of it that is wanted.

    Every wanted voxel is covered: the cores of the windows (the places nearer to a window's centre
    than to any other's) partition the bounding box of what is wanted, and a window is left out only
    if its core holds nothing wanted.

    Args:
        shape: (z, y, x) of the volume, at least `patch` on each axis.
        patch: (z, y, x) of a window.
        overlap: least share of a window that its neighbour covers, in [0, 1).
        wanted: bool volume of at most `shape`, or None (or nothing set) for the whole volume.
    """
    if wanted is None or not wanted.any():
        wanted = np.broadcast_to(np.True_, shape)
    bounds = _bounds(wanted)
    starts, edges = [], []
    for (begin, end), size, length in zip(bounds, patch, shape, strict=True):
        axis_starts = _axis_starts(begin, end, size, length, overlap)
        starts.append(axis_starts)
        middles = [(a + b + size) // 2 for a, b in zip(axis_starts, axis_starts[1:], strict=False)]
        edges.append([begin, *middles])
    kept = wanted[tuple(slice(begin, end) for begin, end in bounds)]
    for axis, (begin, _) in enumerate(bounds):
        kept = np.logical_or.reduceat(kept, np.asarray(edges[axis]) - begin, axis=axis)
    return Tiling(patch, (starts[0], starts[1], starts[2]), kept)


def _bounds(mask: BoolArray) -> list[tuple[int, int]]:
    found = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        hits = np.flatnonzero(mask.any(axis=others))
        found.append((int(hits[0]), int(hits[-1]) + 1))
    return found


def _axis_starts(begin: int, end: int, size: int, length: int, overlap: float) -> tuple[int, ...]:
    if end - begin <= size:
        centred = (begin + end - size) // 2
        return (min(max(centred, 0), length - size),)
    step = max(1, int(size * (1 - overlap)))
    count = -(-(end - begin - size) // step) + 1
    return tuple(int(start) for start in np.linspace(begin, end - size, count).round())


def _axis_weights(starts: tuple[int, ...], size: int, length: int) -> npt.NDArray[np.float64]:
    """(windows, length) weight of each window at each voxel of one axis."""
    weights = np.zeros((len(starts), length))
    for row, start in zip(weights, starts, strict=True):
        row[start : start + size] = axis_weight(size)
    return weights
