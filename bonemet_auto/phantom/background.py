"""Bone of real CTs, for planting lesions where no anatomy has to be drawn."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from bonemet_auto import images
from bonemet_auto.errors import DataError
from bonemet_auto.geometry import Geometry, Triple
from bonemet_auto.phantom.canvas import Array

BONE_HU = 150.0
_SMALLEST_PART_MM3 = 3000.0
_CLOSING_MM = 4.0
_CANAL_HU = (-20.0, 60.0)
_LARGEST_CROP_SHARE = 0.15


def bone_mask(hu: Array, spacing_mm: Triple) -> npt.NDArray[np.bool_]:
    """Whole bones (z, y, x), marrow included: smooth, threshold, large parts, close, fill."""
    smooth = ndimage.gaussian_filter(hu, [0.7 / step for step in spacing_mm])
    parts, _ = ndimage.label(smooth > BONE_HU)
    volumes_mm3 = np.bincount(parts.ravel()) * float(np.prod(spacing_mm))
    keep = volumes_mm3 >= min(_SMALLEST_PART_MM3, volumes_mm3[1:].max(initial=0.0))
    keep[0] = False
    bone: npt.NDArray[np.bool_] = keep[parts]
    if not bone.any():
        return bone
    wide = ndimage.distance_transform_edt(~bone, spacing_mm) <= _CLOSING_MM / 2
    closed = ndimage.distance_transform_edt(wide, spacing_mm) > _CLOSING_MM / 2
    return _with_marrow(closed | bone, smooth)


def _with_marrow(bone: npt.NDArray[np.bool_], smooth_hu: Array) -> npt.NDArray[np.bool_]:
    """Fill what bone encloses, plane by plane, but for holes as dense as a spinal canal."""
    filled = np.stack([ndimage.binary_fill_holes(plane) for plane in bone])
    holes = filled & ~bone
    one_plane = np.zeros((3, 3, 3), dtype=bool)
    one_plane[1] = True
    parts, count = ndimage.label(holes, one_plane)
    mean_hu = np.asarray(ndimage.mean(smooth_hu, parts, np.arange(count + 1)))
    low, high = _CANAL_HU
    is_marrow = (mean_hu < low) | (mean_hu > high)
    is_marrow[0] = False
    return np.asarray(bone | is_marrow[parts])


def draw_background(path: Path, rng: np.random.Generator) -> tuple[Array, Geometry]:
    """Read a CT and vary it a little: crop at the borders, mirror, stretch and shift of HU.

    Raises:
        DataError: no readable CT.
    """
    volume = images.read_hu(path)
    hu = volume.array.astype(np.float32)
    if hu.max() < BONE_HU:
        raise DataError(
            f"{path} holds no voxel above {BONE_HU:.0f} HU, so there is no bone to plant lesions "
            "into. Give CTs in Hounsfield units that show bone."
        )
    cut = [sorted(rng.uniform(0, _LARGEST_CROP_SHARE / 2, size=2)) for _ in range(3)]
    starts = [int(n * c[0]) for n, c in zip(hu.shape, cut, strict=True)]
    stops = [n - int(n * c[1]) for n, c in zip(hu.shape, cut, strict=True)]
    z, y, x = (slice(a, b) for a, b in zip(starts, stops, strict=True))
    hu = hu[z, y, x]
    if rng.uniform() < 0.5:
        hu = hu[:, :, ::-1]
    hu = np.ascontiguousarray(hu * rng.uniform(0.97, 1.03) + rng.normal(0, 4), dtype=np.float32)
    ox, oy, oz = (float(v) for v in volume.geometry.index_to_lps(starts))
    geometry = volume.geometry
    return hu, Geometry(hu.shape, geometry.spacing_mm, (ox, oy, oz), geometry.direction)


def noise_sd(hu: Array) -> float:
    """Sd (HU) of the noise of a scan, from differences of neighbours in soft tissue."""
    middle = hu[:, :, 1:-1]
    ripple = (2 * middle - hu[:, :, :-2] - hu[:, :, 2:]) / np.sqrt(6)
    soft = ripple[(middle > -150) & (middle < 120)]
    return float(1.4826 * np.median(np.abs(soft))) if soft.size else 10.0
