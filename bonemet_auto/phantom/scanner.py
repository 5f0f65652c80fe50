"""Where a scan looks, how its grid lies in the patient, and what its detector adds."""

from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from bonemet_auto.geometry import Geometry, Index, Triple
from bonemet_auto.phantom.canvas import Array

Size = Literal["small", "medium", "clinical"]
Region = Literal["thoracic", "lumbar", "pelvis", "hip"]

REGIONS: tuple[Region, ...] = ("thoracic", "lumbar", "pelvis", "hip")
VOXELS_PER_AXIS = {"small": (64, 96), "medium": (96, 128)}

_CENTRE_RANGES_MM: dict[str, tuple[Triple, Triple]] = {
    "thoracic": ((-25, -5, 220), (25, 20, 370)),
    "lumbar": ((-15, -5, 30), (15, 20, 140)),
    "pelvis": ((-55, 5, -75), (55, 25, -10)),
    "hip": ((90, -15, -150), (112, 8, -110)),
}
_TRUNK_MM = (-190.0, 430.0)


def draw_window(
    size: Size, region: Region, scale: float, rng: np.random.Generator
) -> tuple[Index, Triple, Triple]:
    """Shape (z, y, x), spacing (z, y, x) and first voxel centre (x, y, z mm) of a scan.

    Small and medium windows are centred on bone of `region`; a clinical one holds most of a trunk.
    """
    if size == "clinical":
        return _clinical_window(scale, rng)
    low, high = VOXELS_PER_AXIS[size]
    in_plane = float(rng.uniform(0.7, 1.2))
    spacing = (float(rng.uniform(1.0, 3.0)), in_plane, in_plane)
    shape = tuple(int(count) for count in rng.integers(low, high + 1, size=3))
    near, far = _CENTRE_RANGES_MM[region]
    centre = rng.uniform(near, far) * scale
    if region == "hip" and rng.uniform() < 0.5:
        centre[0] = -centre[0]
    extent = np.asarray(shape[::-1]) * spacing[::-1]
    x, y, z = (float(value) for value in centre - extent / 2)
    return (shape[0], shape[1], shape[2]), spacing, (x, y, z)


def _clinical_window(scale: float, rng: np.random.Generator) -> tuple[Index, Triple, Triple]:
    rows, columns = int(rng.integers(330, 400)), int(rng.integers(400, 450))
    in_plane = float(rng.uniform(0.95, 1.05)) * scale
    slice_mm = float(rng.uniform(1.5, 2.2))
    trunk_mm = (_TRUNK_MM[1] - _TRUNK_MM[0]) * scale
    slices = min(int(rng.integers(260, 340)), int(trunk_mm / slice_mm))
    room = trunk_mm - slices * slice_mm
    z = _TRUNK_MM[0] * scale + float(rng.uniform(0, 1)) * room
    x = -columns * in_plane / 2 + float(rng.normal(0, 5))
    y = -55 * scale - rows * in_plane / 2 + float(rng.normal(0, 5))
    return (slices, rows, columns), (slice_mm, in_plane, in_plane), (x, y, z)


def orient(
    shape: Index,
    spacing_mm: Triple,
    low_mm: Triple,
    rng: np.random.Generator,
) -> tuple[tuple[bool, bool, bool], Geometry]:
    """Draw the axes to reverse and the grid that results: flips, and a tilt of a few degrees."""
    flips = (bool(rng.uniform() < 0.3), bool(rng.uniform() < 0.3), bool(rng.uniform() < 0.3))
    angles = rng.normal(0, np.deg2rad(4), size=3) * (rng.uniform() < 0.5)
    axes = _rotation(angles)
    steps = axes * np.asarray(spacing_mm)[:, None]
    origin = np.asarray(low_mm)
    for axis, flip in enumerate(flips):
        if flip:
            origin = origin + steps[axis] * (shape[axis] - 1)
            axes[axis] = -axes[axis]
    z, y, x = (_triple(row) for row in axes)
    geometry = Geometry(shape, spacing_mm, _triple(origin), (z, y, x))
    return flips, geometry


def _rotation(angles: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Unit vectors of the array axes z, y, x after small turns about x, y and z."""
    (ca, cb, cc), (sa, sb, sc) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, ca, -sa], [0, sa, ca]])
    about_y = np.array([[cb, 0, sb], [0, 1, 0], [-sb, 0, cb]])
    about_z = np.array([[cc, -sc, 0], [sc, cc, 0], [0, 0, 1]])
    x, y, z = np.einsum("ij,jk,kl->li", about_z, about_y, about_x)
    return np.stack([z, y, x])


def _triple(values: npt.NDArray[np.float64]) -> Triple:
    x, y, z = (float(value) for value in values)
    return (x, y, z)


def blur(hu: Array, spacing_mm: Triple, sharpness_mm: float) -> Array:
    """Point spread of the scanner: `sharpness_mm` (sd) in the plane, the slice profile along z."""
    sigma = (0.3, sharpness_mm / spacing_mm[1], sharpness_mm / spacing_mm[2])
    return np.asarray(ndimage.gaussian_filter(hu, sigma, truncate=3), dtype=np.float32)


def scanner_noise(
    rng: np.random.Generator, shape: Index, sd_hu: float, grain_voxel: float
) -> Array:
    """Correlated noise (z, y, x) of a given sd, without the low frequencies that CT lacks."""
    white = rng.standard_normal(shape, dtype=np.float32)
    fine = ndimage.gaussian_filter(white, (0.35, grain_voxel, grain_voxel), truncate=3)
    for plane in fine:
        plane -= 0.5 * ndimage.gaussian_filter(plane, 3 * grain_voxel, truncate=3)
    return np.asarray(fine * np.float32(sd_hu / max(float(fine.std()), 1e-6)), dtype=np.float32)
