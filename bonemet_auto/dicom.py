"""CT series in DICOM: found in any folder, checked slice by slice, and read.

Readers of DICOM series take what they get: a missing slice only stretches the volume, two phases
in one series are stacked, a tilted gantry is straightened by assumption. So `dicom_stack` compares
all slices before any pixel is read, and a series that is not one regular volume is refused with its
reason.

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

from bonemet_auto.dicom_stack import NEEDED, Dataset, Slice, stack_slices, text_of
from bonemet_auto.errors import DataError
from bonemet_auto.geometry import Geometry

_PREAMBLE_BYTES, _MAGIC = 128, b"DICM"
_ELEMENT_HEADER_BYTES = {
    ImplicitVRLittleEndian: 8,
    ExplicitVRLittleEndian: 12,
    ExplicitVRBigEndian: 12,
}
"""Transfer syntaxes in which pixels lie as they are, and the bytes before them."""

_TAGS = [
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber"),
    *("PatientID", "Modality", "ImageType", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated"),
    *("FrameOfReferenceUID", "SliceThickness", *NEEDED),
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


def find_studies(folder: Path) -> list[Study]:
    """All studies in a folder and the folders below it, each with the series to predict.

    That is, of the series without a fault, the one of most slices; among equals the one of the
    lowest number, then of the lowest UID. Files that are no DICOM are passed over.

    Args:
        folder: any export; file and folder names mean nothing.
    """
    by_series: dict[tuple[str, str], list[Slice]] = {}
    for piece in _slices(path for path in sorted(folder.rglob("*")) if path.is_file()):
        key = (
            text_of(piece.header, "StudyInstanceUID"),
            text_of(piece.header, "SeriesInstanceUID"),
        )
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


def _slices(paths: Iterable[Path]) -> Iterator[Slice]:
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
        if text_of(found.header, "StudyInstanceUID") and text_of(found.header, "SeriesInstanceUID"):
            yield found
        elif found.header.file_meta.get("MediaStorageSOPClassUID") != MediaStorageDirectoryStorage:
            broken += 1
    if broken:
        _log.warning(
            "warning: passed over, unreadable or with a damaged DICOM header: %d files", broken
        )


def _read_slice(path: Path) -> Slice | None:
    """Header of a DICOM file, None of another one; raises `UNREADABLE`."""
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = file.read(_PREAMBLE_BYTES + len(_MAGIC))
        if start[_PREAMBLE_BYTES:] != _MAGIC:
            return None
        file.seek(0)
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_TAGS))
        left = path.stat().st_size - file.tell()
        return Slice(path, header, left < _pixel_bytes(header))


def _pixel_bytes(header: Dataset) -> int:
    """Bytes that the pixels of a file take at least, their own header included."""
    before = _ELEMENT_HEADER_BYTES.get(header.file_meta.get("TransferSyntaxUID"))
    if before is None:
        return 1
    bits = header.get("BitsAllocated", 16) * header.get("Rows", 0) * header.get("Columns", 0)
    return int(before + bits // 8)


def _choose(series: list[Series]) -> Study:
    best = min(
        series,
        key=lambda item: (item.fault is not None, -len(item.files), item.number, item.series_uid),
    )
    others = sorted((item for item in series if item is not best), key=lambda item: item.number)
    return Study(best, tuple(others))


def _assemble(slices: list[Slice]) -> Series:
    slices = list({text_of(item.header, "SOPInstanceUID"): item for item in slices}.values())
    slices, geometry, fault = stack_slices(slices)
    first = slices[0].header
    number = text_of(first, "SeriesNumber")
    return Series(
        study_uid=text_of(first, "StudyInstanceUID"),
        series_uid=text_of(first, "SeriesInstanceUID"),
        patient_id=text_of(first, "PatientID"),
        frame_uid=text_of(first, "FrameOfReferenceUID"),
        instance_uids=frozenset(text_of(item.header, "SOPInstanceUID") for item in slices),
        modality=text_of(first, "Modality"),
        number=int(number) if number.isdecimal() else 0,
        files=tuple(item.path for item in slices),
        geometry=geometry,
        fault=fault,
    )
