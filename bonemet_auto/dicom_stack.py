"""Whether DICOM slices make one regular volume, and the grid that they make.

Positions, orientations, sizes and scales of all slices are compared. Faults say no name, id, date
or path.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bonemet_auto.geometry import Geometry, Triple

STEP_TOLERANCE = 0.1
"""Share by which a distance between slices may differ from the usual one: positions are rounded."""

MOST_TILT_DEGREES = 0.5

NEEDED = [
    *("Rows", "Columns", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient"),
    *("RescaleSlope", "RescaleIntercept"),
]
"""Elements without which slices are not stacked."""

_SAME_ORIENTATION = 1e-3
_RIGHT_ANGLE = 1e-2
_SAME_PLACE_MM = 1e-3

FloatArray = npt.NDArray[np.float64]
Dataset = Any
"""A `pydicom.Dataset`: its attributes are whatever the file holds."""


@dataclass(frozen=True)
class Slice:
    """A DICOM file and its header; `truncated` if the file holds less than its pixels take."""

    path: Path
    header: Dataset
    truncated: bool


def text_of(header: Dataset, name: str) -> str:
    """The value of an element as text, empty where there is none."""
    return str(header.get(name, "") or "")


def stack_slices(slices: list[Slice]) -> tuple[list[Slice], Geometry | None, str | None]:
    """Slices in the order of their positions and their grid, or the fault that they have.

    Args:
        slices: of one series, one file per instance.

    Returns:
        By rising position along their normal, with their grid and no fault; or in the given order
        where there is a fault that shows before positions are compared, without a grid.
    """
    try:
        fault = _fault_of_headers(slices)
        if fault is None:
            normal = _normal(slices[0].header)
            slices = sorted(slices, key=lambda item: float(_position(item.header) @ normal))
            fault = _fault_of_positions(slices)
        return slices, None if fault else _geometry(slices), fault
    except (ValueError, TypeError, LookupError, AttributeError):
        fault = "slices have headers that make no sense. Export the original series again."
        return slices, None, fault


def _fault_of_headers(slices: list[Slice]) -> str | None:
    """What keeps these slices from being a CT volume, their positions apart."""
    headers = [item.header for item in slices]
    modalities = sorted({text_of(header, "Modality") or "none" for header in headers})
    if modalities != ["CT"]:
        return f"no CT: modality {', '.join(modalities)}. Give the CT series of the study."
    if any(int(header.get("NumberOfFrames") or 1) > 1 for header in headers):
        return (
            "a multi-frame (enhanced) CT, which is not read. Export it as single slices, or "
            "convert it with dcm2niix and give the NIfTI file."
        )
    if any("LOCALIZER" in (header.get("ImageType") or ()) for header in headers):
        return "a localizer (scout view), no volume. Give the CT series of the study."
    if any(int(header.get("SamplesPerPixel") or 1) > 1 for header in headers):
        return "colour images (screen captures?), no Hounsfield units. Give the original series."
    missing = [name for name in NEEDED if any(header.get(name) is None for header in headers)]
    if missing:
        return f"slices lack {', '.join(missing)}. Export the original series again."
    if not all(_is_placed(header) for header in headers):
        return "slices have an impossible orientation or pixel spacing. Export the series again."
    cut_off = sum(item.truncated for item in slices)
    if cut_off:
        return f"{cut_off} of {len(slices)} slices are truncated. Copy or export them again."
    return _fault_of_differences(headers)


def _is_placed(header: Dataset) -> bool:
    """Whether the axes of a slice are unit vectors at right angles, and its pixels have a size."""
    axes = np.reshape(_numbers(header, ("ImageOrientationPatient",)), (2, 3))
    right = np.abs(axes @ axes.T - np.eye(2)).max() < _RIGHT_ANGLE
    return bool(right and (_numbers(header, ("PixelSpacing",)) > 0).all())


def _fault_of_differences(headers: list[Dataset]) -> str | None:
    first = headers[0]
    for name, words in (
        (("Rows", "Columns"), "sizes"),
        (("PixelSpacing",), "pixel spacings"),
        (("ImageOrientationPatient",), "orientations"),
        (("RescaleSlope", "RescaleIntercept"), "scales of Hounsfield units"),
    ):
        values = np.array([_numbers(header, name) for header in headers])
        if np.abs(values - _numbers(first, name)).max() > _SAME_ORIENTATION:
            return (
                f"slices of several {words} in one series (mixed series). Export each of them as a "
                "series of its own."
            )
    return None


def _fault_of_positions(slices: list[Slice]) -> str | None:
    """Whether slices in the order of their positions are one regular stack."""
    if len(slices) == 1:
        return None
    normal = _normal(slices[0].header)
    moves = np.diff([_position(item.header) for item in slices], axis=0)
    steps_mm = moves @ normal
    twice = int((steps_mm < _SAME_PLACE_MM).sum())
    if twice:
        return (
            f"{twice} of {len(slices)} slices lie where another one lies (several phases or "
            "reconstructions in one series). Export each of them as a series of its own."
        )
    tilt = float(np.degrees(np.arctan2(np.linalg.norm(_sideways(moves, normal)), steps_mm.sum())))
    if tilt > MOST_TILT_DEGREES:
        return (
            f"the slices are stacked at {tilt:.1f} degrees (gantry tilt). Resample the series to a "
            "rectangular grid first, for instance with dcm2niix."
        )
    usual_mm = float(np.median(steps_mm))
    odd = np.flatnonzero(np.abs(steps_mm - usual_mm) > STEP_TOLERANCE * usual_mm)
    if not odd.size:
        return None
    gap_mm, number = float(steps_mm[odd[0]]), int(odd[0]) + 1
    lacking = sum(max(0, round(float(steps_mm[i]) / usual_mm) - 1) for i in odd)
    what = "the slices are not evenly spaced"
    if lacking:
        what = "1 slice is missing" if lacking == 1 else f"{lacking} slices are missing"
    return (
        f"{what}: {gap_mm:.2f} mm between slices {number} and {number + 1} of {len(slices)}, "
        f"{usual_mm:.2f} mm elsewhere. Export the whole series again."
    )


def _sideways(moves: FloatArray, normal: FloatArray) -> FloatArray:
    """The way from the first slice to the last within their planes."""
    way = moves.sum(axis=0)
    return np.asarray(way - (way @ normal) * normal)


def _geometry(slices: list[Slice]) -> Geometry:
    first, last = slices[0].header, slices[-1].header
    along_x, along_y = np.reshape(_numbers(first, ("ImageOrientationPatient",)), (2, 3))
    normal, start, n = _normal(first), _position(first), len(slices)
    step_mm = float(first.get("SliceThickness") or 1.0)
    if n > 1:
        step_mm = float((_position(last) - start) @ normal) / (n - 1)
    row_mm, column_mm = _numbers(first, ("PixelSpacing",))
    axes = (normal, along_y / np.linalg.norm(along_y), along_x / np.linalg.norm(along_x))
    z, y, x = (_triple(axis) for axis in axes)
    shape = (n, int(first.Rows), int(first.Columns))
    return Geometry(shape, (step_mm, float(row_mm), float(column_mm)), _triple(start), (z, y, x))


def _numbers(header: Dataset, names: Iterable[str]) -> FloatArray:
    return np.concatenate([np.atleast_1d(header.get(name)).astype(float) for name in names])


def _position(header: Dataset) -> FloatArray:
    return _numbers(header, ("ImagePositionPatient",))


def _normal(header: Dataset) -> FloatArray:
    """Unit vector at right angles to a slice, in the direction in which indices rise."""
    along_x, along_y = np.reshape(_numbers(header, ("ImageOrientationPatient",)), (2, 3))
    normal = np.cross(along_x, along_y)
    return np.asarray(normal / np.linalg.norm(normal))


def _triple(values: FloatArray) -> Triple:
    first, second, third = (values + 0.0).tolist()  # adding 0 turns -0.0 into 0.0
    return (first, second, third)
