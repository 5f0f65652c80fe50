"""Voxels of the segments of a DICOM SEG on the grid of a scan.

Frames are placed by their position, orientation and pixel size. Any grid will do whose voxels are
voxels of the scan: on its slices, flipped, cut out, or cut along other axes. Nothing is resampled.
"""

from collections.abc import Collection, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.pixels.utils import pixel_array

from bonemet_auto.convert.annotations import (
    GRID_TOLERANCE,
    Dataset,
    IndexArray,
    parsing,
    require_inside,
)
from bonemet_auto.errors import DataError
from bonemet_auto.geometry import Geometry

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


def read_segments(
    path: Path, numbers: Collection[int], geometry: Geometry
) -> dict[int, IndexArray]:
    """Voxels of segments by number, without those that hold none.

    Fractional segments are taken where their value is half of the highest one or more.

    Raises:
        DataError: it is damaged, or its voxels are not those of the scan.
    """
    found: dict[int, list[IndexArray]] = {}
    with parsing("SEG"):
        segmentation = pydicom.dcmread(path)
        for index, frame in enumerate(segmentation.PerFrameFunctionalGroupsSequence):
            for number, mask in _masks(segmentation, frame, index, numbers):
                if mask.any():
                    placed = _place(mask, _plane(segmentation, frame), geometry)
                    require_inside(placed, geometry, f"segment {number}")
                    found.setdefault(number, []).append(placed)
    return {number: _each_once(parts, geometry) for number, parts in found.items()}


def _each_once(parts: Sequence[IndexArray], geometry: Geometry) -> IndexArray:
    flat = np.ravel_multi_index(tuple(np.concatenate(parts).T), geometry.shape)
    return np.stack(np.unravel_index(np.unique(flat), geometry.shape), axis=-1).astype(np.int32)


def _masks(
    segmentation: Dataset, frame: Dataset, index: int, numbers: Collection[int]
) -> Iterator[tuple[int, BoolArray]]:
    """(rows, columns) masks of one frame by segment."""
    if segmentation.SegmentationType == "LABELMAP":
        values = _pixels(segmentation, index)
        yield from ((number, values == number) for number in numbers)
        return
    identified = _group(segmentation, frame, "SegmentIdentificationSequence")
    number = int(identified.ReferencedSegmentNumber)
    if number not in numbers:
        return
    values = _pixels(segmentation, index)
    if segmentation.SegmentationType == "FRACTIONAL":
        yield number, 2 * values.astype(np.int32) >= int(segmentation.MaximumFractionalValue)
    else:
        yield number, values > 0


def _pixels(segmentation: Dataset, index: int) -> npt.NDArray[Any]:
    """(rows, columns) values of one frame."""
    shape = int(segmentation.Rows), int(segmentation.Columns)
    syntax = segmentation.file_meta.TransferSyntaxUID
    if segmentation.BitsAllocated != 1 or syntax.is_encapsulated:
        return np.asarray(pixel_array(segmentation, index=index, raw=True))
    # Frames of single bits need not begin with a byte, which pydicom's reader of frames expects.
    first, count = index * shape[0] * shape[1], shape[0] * shape[1]
    packed = np.frombuffer(segmentation.PixelData, np.uint8)[first // 8 : -(-(first + count) // 8)]
    bits = np.unpackbits(packed, bitorder="little")
    return bits[first % 8 : first % 8 + count].reshape(shape)


def _plane(segmentation: Dataset, frame: Dataset) -> FloatArray:
    """(3, 3) mm: centre of the first pixel, the step from row to row, and from column to column."""
    placed = _group(segmentation, frame, "PlanePositionSequence")
    turned = _group(segmentation, frame, "PlaneOrientationSequence")
    measured = _group(segmentation, frame, "PixelMeasuresSequence")
    along_x, along_y = np.reshape(np.asarray(turned.ImageOrientationPatient, np.float64), (2, 3))
    row_mm, column_mm = (float(value) for value in measured.PixelSpacing)
    position = np.asarray(placed.ImagePositionPatient, dtype=np.float64)
    return np.stack([position, along_y * row_mm, along_x * column_mm])


def _group(segmentation: Dataset, frame: Dataset, name: str) -> Dataset:
    """What a frame says of itself, or the whole object of all frames."""
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    return (frame.get(name) or shared[name].value)[0]


def _place(mask: BoolArray, plane: FloatArray, geometry: Geometry) -> IndexArray:
    """Voxels of the scan under the pixels of a mask.

    Raises:
        DataError: they are not the same voxels.
    """
    start = geometry.lps_to_index(plane[0])
    exact = geometry.lps_to_index(plane[0] + plane[1:]) - start
    steps = np.rint(exact)
    corners = np.array(list(product((0, mask.shape[0] - 1), (0, mask.shape[1] - 1))))
    off = start - np.rint(start) + corners @ (exact - steps)
    is_signed_axes = (np.abs(steps).sum(axis=1) == 1).all() and steps[0] @ steps[1] == 0
    if not is_signed_axes or np.abs(off).max() > GRID_TOLERANCE:
        raise DataError(
            "a SEG lies on another grid than its CT (other pixel sizes or angles, or between the "
            "slices), and nothing is resampled here. Export it on the grid of the CT."
        )
    pixels = np.argwhere(mask) @ steps + np.rint(start)
    return np.asarray(pixels, dtype=np.int32)
