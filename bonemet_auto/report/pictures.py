"""Three planes through a scan as a radiologist expects them, with outlines to draw over them.

Pixels stay pixels (8-bit grey PNG in a bone window); outlines and boxes are kept as millimetres in
the picture, so that a page can draw them sharply at any size.
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from skimage.measure import find_contours

from bonemet_auto.geometry import Geometry, Index
from bonemet_auto.result_schema import LesionRecord
from bonemet_auto.upright import Turn, turn_of

WINDOW_LEVEL_HU, WINDOW_WIDTH_HU = 400, 1500
FIELD_MM = 100.0
"""Widest field of view: about three vertebrae."""

InstanceMap = npt.NDArray[np.uint16]
Hu = npt.NDArray[np.int16]
Line = npt.NDArray[np.float64]
AnyType = TypeVar("AnyType", bound=np.generic)

# Patient axes here are (superior, posterior, left). Each plane: the axis that it cuts, the axes of
# its rows and columns, whether rows run downwards, and the letters at its left and right edge.
# That is the radiological view: the patient's left is on the right.
_PLANES = {
    "axial": (0, 1, 2, True, ("R", "L")),
    "coronal": (1, 0, 2, False, ("R", "L")),
    "sagittal": (2, 0, 1, False, ("A", "P")),
}


@dataclass(frozen=True)
class BoxMark:
    """A predicted box where it crosses the plane, in mm, with its label."""

    left_mm: float
    top_mm: float
    width_mm: float
    height_mm: float
    label: str


@dataclass(frozen=True)
class View:
    """One plane: grey pixels, their extent, and what lies over them in mm from the top left.

    Attributes:
        plane: axial, coronal or sagittal.
        grey: (rows, columns) uint8.
        width_mm: extent along the columns.
        height_mm: extent along the rows.
        edges: letters at the left and right edge (R, L, A, P).
        reference: closed (n, 2) outlines x, y of annotated lesions.
        predicted: the same of predicted lesions.
        boxes: their boxes.
    """

    plane: str
    grey: npt.NDArray[np.uint8]
    width_mm: float
    height_mm: float
    edges: tuple[str, str]
    reference: tuple[Line, ...]
    predicted: tuple[Line, ...]
    boxes: tuple[BoxMark, ...]


def centre_of(instances: InstanceMap, instance: int) -> Index:
    """The voxel of a lesion that is nearest to its centre (a ring's centre is none of it)."""
    voxels = np.argwhere(instances == instance)
    distances = np.abs(voxels - voxels.mean(axis=0)).sum(axis=1)
    z, y, x = voxels[distances.argmin()].tolist()
    return (z, y, x)


def three_views(
    hu: Hu,
    geometry: Geometry,
    centre: Index,
    reference: InstanceMap | None,
    predicted: InstanceMap,
    lesions: Sequence[LesionRecord],
    field_mm: float = FIELD_MM,
) -> list[View]:
    """Axial, coronal and sagittal plane through a voxel.

    Args:
        hu: scan (z, y, x).
        geometry: its grid, which the maps share.
        centre: voxel in all three planes.
        reference: annotated instances, if there are any.
        predicted: predicted instances.
        lesions: their records; `id` is the value in the map.
        field_mm: widest field of view.
    """
    axes = turn_of(geometry)
    views = []
    for plane in _PLANES:
        frame = _Frame.of(plane, axes, centre, field_mm)
        grey = bone_window(frame.cut_out(hu))
        views.append(
            View(
                plane=plane,
                grey=grey,
                width_mm=grey.shape[1] * frame.step_mm[1],
                height_mm=grey.shape[0] * frame.step_mm[0],
                edges=_PLANES[plane][-1],
                reference=() if reference is None else frame.outlines(reference),
                predicted=frame.outlines(predicted),
                boxes=tuple(mark for each in lesions if (mark := frame.mark(each)) is not None),
            )
        )
    return views


@dataclass(frozen=True)
class _Frame:
    """One plane's field of view: slices along the patient axes, the cut one an index."""

    axes: Turn
    cut: int
    row: int
    column: int
    downwards: bool
    at: int
    rows: slice
    columns: slice

    @classmethod
    def of(cls, plane: str, axes: Turn, centre: Index, field_mm: float) -> "_Frame":
        cut, row, column, downwards, _ = _PLANES[plane]
        at = axes.index(centre)
        rows, columns = (_field(axes, axis, int(at[axis]), field_mm) for axis in (row, column))
        return cls(axes, cut, row, column, downwards, int(at[cut]), rows, columns)

    @property
    def step_mm(self) -> tuple[float, float]:
        """Height and width of a pixel."""
        return self.axes.spacing_mm[self.row], self.axes.spacing_mm[self.column]

    def cut_out(self, array: npt.NDArray[AnyType]) -> npt.NDArray[AnyType]:
        """(rows, columns) of an array (z, y, x), top row first."""
        window: list[slice | int] = [self.at] * 3
        window[self.row], window[self.column] = self.rows, self.columns
        plane = self.axes.view(array)[tuple(window)]
        return plane if self.downwards else plane[::-1]

    def outlines(self, instances: InstanceMap) -> tuple[Line, ...]:
        """Outlines of every instance, as (n, 2) x, y in mm from the top left."""
        plane = self.cut_out(instances)
        lines: list[Line] = []
        for instance in np.unique(plane[plane != 0]):
            padded = np.pad(plane == instance, 1).astype(np.float32)
            # Contour points count from voxel centres, and padding has moved them by one voxel.
            lines += [
                ((contour - 0.5) * self.step_mm)[:, ::-1] for contour in find_contours(padded, 0.5)
            ]
        return tuple(lines)

    def mark(self, lesion: LesionRecord) -> BoxMark | None:
        """A lesion's box, or None where it does not reach into the picture."""
        low, high = self.axes.box(lesion.box_voxel_zyx)
        if not low[self.cut] <= self.at < high[self.cut]:
            return None
        top, bottom = low[self.row] - self.rows.start, high[self.row] - self.rows.start
        if not self.downwards:
            top, bottom = _length(self.rows) - bottom, _length(self.rows) - top
        left, right = low[self.column] - self.columns.start, high[self.column] - self.columns.start
        if bottom <= 0 or right <= 0 or top >= _length(self.rows) or left >= _length(self.columns):
            return None
        row_mm, column_mm = self.step_mm
        return BoxMark(
            float(left * column_mm),
            float(top * row_mm),
            float((right - left) * column_mm),
            float((bottom - top) * row_mm),
            f"#{lesion.id} {lesion.score:.2f}",
        )


def _length(voxels: slice) -> int:
    return int(voxels.stop - voxels.start)


def _field(axes: Turn, axis: int, at: int, field_mm: float) -> slice:
    """At most `field_mm` of an axis around a voxel, moved inwards at the scan's border."""
    size = axes.shape[axis]
    wanted = min(size, max(1, round(field_mm / axes.spacing_mm[axis])))
    start = min(max(0, at - wanted // 2), size - wanted)
    return slice(start, start + wanted)


def bone_window(hu: Hu) -> npt.NDArray[np.uint8]:
    """Grey values of `WINDOW_WIDTH_HU` around `WINDOW_LEVEL_HU`."""
    low = WINDOW_LEVEL_HU - WINDOW_WIDTH_HU / 2
    return np.clip(np.rint((hu - low) * (255 / WINDOW_WIDTH_HU)), 0, 255).astype(np.uint8)


def grey_png(grey: npt.NDArray[np.uint8]) -> bytes:
    """An 8-bit grey PNG of (rows, columns); half the size of the four channels of Matplotlib."""
    height, width = grey.shape
    unfiltered = np.pad(grey, ((0, 0), (1, 0)))  # the filter type, 0, comes before each row
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(unfiltered.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
