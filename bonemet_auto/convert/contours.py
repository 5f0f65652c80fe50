"""Voxels within the contours of an RTSTRUCT on the grid of a scan.

A voxel belongs to a region if its centre lies inside, by the even-odd rule over all contours of
the region in that slice, or on a contour. So holes may be drawn as contours of their own or through
a keyhole, and contours that tools trace along the centres of outer voxels keep these.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
from skimage.measure import grid_points_in_poly

from bonemet_auto.convert.annotations import (
    GRID_TOLERANCE,
    Dataset,
    IndexArray,
    contours_of,
    parsing,
    require_inside,
)
from bonemet_auto.errors import DataError
from bonemet_auto.geometry import Geometry

_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_SNAP_DECIMALS = 3
"""Of a voxel: coordinates are written with few digits, and 1e-12 decides what lies on a line."""

_INSIDE = 1

FloatArray = npt.NDArray[np.float64]


def read_contours(
    path: Path, numbers: Collection[int], geometry: Geometry
) -> dict[int, IndexArray]:
    """Voxels of ROIs by number, without those that have no contour.

    Points that mark a place are passed over. Contours may be so small that they hold no voxel.

    Raises:
        DataError: it is damaged, or a contour is open, or does not lie in one slice.
    """
    slices: dict[int, dict[int, list[FloatArray]]] = {}
    with parsing("RTSTRUCT"):
        for number, contour in contours_of(pydicom.dcmread(path)):
            if number not in numbers or not contour.get("ContourData"):
                continue
            if contour.ContourGeometricType == "POINT":
                continue
            z, points = _in_slice(contour, number, geometry)
            slices.setdefault(number, defaultdict(list))[z].append(points)
    return {
        number: np.concatenate([_fill(z, contours) for z, contours in sorted(by_slice.items())])
        for number, by_slice in slices.items()
    }


def _in_slice(contour: Dataset, number: int, geometry: Geometry) -> tuple[int, FloatArray]:
    """The slice of a contour, and its (N, 2) corners y, x in voxels."""
    if contour.ContourGeometricType not in _CLOSED:
        raise DataError(f"ROI {number} has an open contour. Close it, or leave the ROI out.")
    points_mm = np.asarray(contour.ContourData, dtype=np.float64).reshape(-1, 3)
    points = geometry.lps_to_index(points_mm)
    require_inside(points, geometry, f"ROI {number}")
    z = float(np.median(points[:, 0]))
    if np.ptp(points[:, 0]) > 2 * GRID_TOLERANCE:
        raise DataError(
            f"ROI {number} has a contour whose points leave the plane of the slices by "
            f"{np.ptp(points[:, 0]):.2f} of their distance (drawn on another view or series?). "
            "Export the contours on the slices of the CT, or as a SEG."
        )
    if abs(z - round(z)) > GRID_TOLERANCE:
        raise DataError(
            f"ROI {number} has a contour {abs(z - round(z)):.2f} of a slice away from the nearest "
            "slice (drawn on another series?). Export the contours on the slices of the CT."
        )
    return round(z), np.round(points[:, 1:], _SNAP_DECIMALS)


def _fill(z: int, contours: Sequence[FloatArray]) -> IndexArray:
    """Voxels of one slice within contours."""
    every = np.concatenate(contours)
    low = np.floor(every.min(axis=0)).astype(np.int64)
    shape = np.ceil(every.max(axis=0)).astype(np.int64) - low + 1
    filled = np.zeros(shape, dtype=bool)
    # A contour that stands there twice would cancel itself.
    for contour in {points.tobytes(): points for points in contours}.values():
        filled ^= grid_points_in_poly(tuple(shape), contour - low, binarize=False) == _INSIDE
    for contour in contours:
        y, x = (_centres_on(contour) - low).T
        filled[y, x] = True
    pixels = np.argwhere(filled) + low
    return np.insert(pixels, 0, z, axis=1).astype(np.int32)


def _centres_on(contour: FloatArray) -> npt.NDArray[np.int64]:
    """(N, 2) voxel centres y, x on the closed line through these corners."""
    found = [np.rint(contour)[(contour == np.rint(contour)).all(axis=1)]]
    for start, end in zip(contour, np.roll(contour, -1, axis=0), strict=True):
        axis = int(np.abs(end - start).argmax())
        if start[axis] == end[axis]:
            continue
        low, high = sorted((start[axis], end[axis]))
        along = np.arange(np.ceil(low), np.floor(high) + 1)
        share = (along - start[axis]) / (end[axis] - start[axis])
        line = start + share[:, None] * (end - start)
        near = np.abs(line - np.rint(line)).max(axis=1) < 10**-_SNAP_DECIMALS
        found.append(np.rint(line[near]))
    return np.concatenate(found).astype(np.int64)
