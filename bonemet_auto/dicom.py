"""CT series in DICOM: found in any folder, checked slice by slice, and read.

Readers of DICOM series take what they get: a missing slice only stretches the volume, two phases
in one series are stacked, a tilted gantry is straightened by assumption. So positions,
orientations and scales of all slices are compared here before any pixel is read, and a series that
is not one regular volume is refused with its reason.

Nothing here says a name, id, date or path: reasons go into logs and reports.
"""

import logging
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import SimpleITK as sitk  # noqa: N813  its own documentation calls it so
from pydicom.errors import InvalidDicomError
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
)

from bonemet_auto.errors import DataError
from bonemet_auto.geometry import Geometry, Triple

STEP_TOLERANCE = 0.1
"""Share by which a distance between slices may differ from the usual one: positions are rounded."""

MOST_TILT_DEGREES = 0.5

_PREAMBLE_BYTES, _MAGIC = 128, b"DICM"
_ELEMENT_HEADER_BYTES = {
    ImplicitVRLittleEndian: 8,
    ExplicitVRLittleEndian: 12,
    ExplicitVRBigEndian: 12,
}
"""Transfer syntaxes in which pixels lie as they are, and the bytes before them."""

_SAME_ORIENTATION = 1e-3
_RIGHT_ANGLE = 1e-2
_SAME_PLACE_MM = 1e-3
_NEEDED = [
    *("Rows", "Columns", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient"),
    *("RescaleSlope", "RescaleIntercept"),
]
_TAGS = [
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber"),
    *("PatientID", "Modality", "ImageType", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated"),
    *("FrameOfReferenceUID", "SliceThickness", *_NEEDED),
]

UNREADABLE = (
    InvalidDicomError,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
)
"""What comes of a file that is damaged, or holds less than the standard asks for."""

FloatArray = npt.NDArray[np.float64]
Dataset = Any
"""A `pydicom.Dataset`: its attributes are whatever the file holds."""

_log = logging.getLogger(__name__)
# Its warnings name files, and file names of an export are often those of patients.
logging.getLogger("pydicom").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Series:
    """Slices that belong together, or what keeps them from being one CT volume.

    Attributes:
        study_uid, series_uid, patient_id: who and what; for the private file only.
        frame_uid, instance_uids: what other objects refer to (frame of reference, slices).
        modality: CT, SEG, RTSTRUCT ...; of its first file.
        number: of the series, 0 where it has none.
        files: slices by rising position along their normal; as found where there is a fault.
        geometry: the grid that they make, None where there is a fault.
        fault: why this is no volume, and what to do.
    """

    study_uid: str
    series_uid: str
    patient_id: str
    frame_uid: str
    instance_uids: frozenset[str]
    modality: str
    number: int
    files: tuple[Path, ...]
    geometry: Geometry | None
    fault: str | None


@dataclass(frozen=True)
class Study:
    """One examination: the series that is predicted, and those that are not.

    Attributes:
        series: sound if any is, see `find_studies`.
        others: the rest, in the order of their numbers.
    """

    series: Series
    others: tuple[Series, ...]


@dataclass(frozen=True)
class _Slice:
    path: Path
    header: Dataset
    truncated: bool


def find_studies(folder: Path) -> list[Study]:
    """All studies in a folder and the folders below it, each with the series to predict.

    That is, of the series without a fault, the one of most slices; among equals the one of the
    lowest number, then of the lowest UID. Files that are no DICOM are passed over.

    Args:
        folder: any export; file and folder names mean nothing.
    """
    by_series: dict[tuple[str, str], list[_Slice]] = {}
    for piece in _slices(path for path in sorted(folder.rglob("*")) if path.is_file()):
        key = (_text(piece.header, "StudyInstanceUID"), _text(piece.header, "SeriesInstanceUID"))
        by_series.setdefault(key, []).append(piece)
    by_study: dict[str, list[Series]] = {}
    for (study, _), slices in sorted(by_series.items(), key=lambda item: item[0]):
        by_study.setdefault(study, []).append(_assemble(slices))
    return [_choose(series) for series in by_study.values()]


def read_pixels(series: Series) -> npt.NDArray[Any]:
    """(Z, Y, X) values of a sound series, rescaled as its slices say.

    Raises:
        DataError: the series has a fault, or its pixels cannot be read.
    """
    if series.fault is not None:
        raise DataError(series.fault)
    # Its warnings name files.
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(path) for path in series.files])
    try:
        array = sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError:
        raise DataError(
            "the pixels of the series cannot be read: a slice is damaged, or its compression is "
            "unknown. Export the series again, uncompressed."
        ) from None
    return np.asarray(array).reshape(-1, *array.shape[-2:])


def _slices(paths: Iterable[Path]) -> Iterator[_Slice]:
    """Files that say which series they belong to; others, and unreadable ones, are passed over."""
    broken = 0
    for path in paths:
        try:
            found = _read_slice(path)
        except UNREADABLE:
            broken += 1
            continue
        if found is None:
            continue
        if _text(found.header, "StudyInstanceUID") and _text(found.header, "SeriesInstanceUID"):
            yield found
        elif found.header.file_meta.get("MediaStorageSOPClassUID") != MediaStorageDirectoryStorage:
            broken += 1
    if broken:
        _log.warning(
            "warning: passed over, unreadable or with a damaged DICOM header: %d files", broken
        )


def _read_slice(path: Path) -> _Slice | None:
    """Header of a DICOM file, None of another one; raises `UNREADABLE`."""
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = file.read(_PREAMBLE_BYTES + len(_MAGIC))
        if start[_PREAMBLE_BYTES:] != _MAGIC:
            return None
        file.seek(0)
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_TAGS))
        left = path.stat().st_size - file.tell()
        return _Slice(path, header, left < _pixel_bytes(header))


def _pixel_bytes(header: Dataset) -> int:
    """Bytes that the pixels of a file take at least, their own header included."""
    before = _ELEMENT_HEADER_BYTES.get(header.file_meta.get("TransferSyntaxUID"))
    if before is None:
        return 1
    bits = header.get("BitsAllocated", 16) * header.get("Rows", 0) * header.get("Columns", 0)
    return int(before + bits // 8)


def _text(header: Dataset, name: str) -> str:
    return str(header.get(name, "") or "")


def _choose(series: list[Series]) -> Study:
    best = min(
        series,
        key=lambda item: (item.fault is not None, -len(item.files), item.number, item.series_uid),
    )
    others = sorted((item for item in series if item is not best), key=lambda item: item.number)
    return Study(best, tuple(others))


def _assemble(slices: list[_Slice]) -> Series:
    slices = list({_text(item.header, "SOPInstanceUID"): item for item in slices}.values())
    geometry = None
    try:
        fault = _fault_of_headers(slices)
        if fault is None:
            normal = _normal(slices[0].header)
            slices.sort(key=lambda item: float(_position(item.header) @ normal))
            fault = _fault_of_positions(slices)
        if fault is None:
            geometry = _geometry(slices)
    except (ValueError, TypeError, LookupError, AttributeError):
        fault = "slices have headers that make no sense. Export the original series again."
    first = slices[0].header
    number = _text(first, "SeriesNumber")
    return Series(
        study_uid=_text(first, "StudyInstanceUID"),
        series_uid=_text(first, "SeriesInstanceUID"),
        patient_id=_text(first, "PatientID"),
        frame_uid=_text(first, "FrameOfReferenceUID"),
        instance_uids=frozenset(_text(item.header, "SOPInstanceUID") for item in slices),
        modality=_text(first, "Modality"),
        number=int(number) if number.isdecimal() else 0,
        files=tuple(item.path for item in slices),
        geometry=geometry,
        fault=fault,
    )


def _fault_of_headers(slices: list[_Slice]) -> str | None:
    """What keeps these slices from being a CT volume, their positions apart."""
    headers = [item.header for item in slices]
    modalities = sorted({_text(header, "Modality") or "none" for header in headers})
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
    missing = [name for name in _NEEDED if any(header.get(name) is None for header in headers)]
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


def _fault_of_positions(slices: list[_Slice]) -> str | None:
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


def _geometry(slices: list[_Slice]) -> Geometry:
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
