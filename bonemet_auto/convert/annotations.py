"""SEG and RTSTRUCT objects: what they outline, and on which series.

Sources: DICOM PS3.3, sections A.51 and C.8.20 (Segmentation), A.19 and C.8.8 (RT Structure Set).
Labels are free text in which names of patients occur: no message of this package repeats one.
"""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom

from bonemet_auto.dicom import UNREADABLE
from bonemet_auto.errors import DataError
from bonemet_auto.geometry import Geometry

MODALITIES = ("SEG", "RTSTRUCT")

GRID_TOLERANCE = 0.2
"""Share of a voxel by which outlines may lie off the scan's grid: positions are rounded."""

_ANATOMY = ("91723000", "123037004", "T-D000A")
"""Codes of the category "anatomical structure": SNOMED CT, as DICOM had it before, and SRT."""

_TUMOUR_TYPES = ("", "GTV")
"""Interpreted types of ROIs that are lesions; others are organs, margins, devices, marks."""

_REFERENCES = (
    *("ReferencedSeriesSequence", "ReferencedFrameOfReferenceSequence", "SourceImageSequence"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
_TITLES = (
    *("SeriesDescription", "ContentLabel", "ContentDescription"),
    *("StructureSetLabel", "StructureSetName"),
)

Dataset = Any
"""A `pydicom.Dataset`: its attributes are whatever the file holds."""

IndexArray = npt.NDArray[np.int32]
"""(N, 3) voxels z, y, x of a scan, each once."""


@dataclass(frozen=True)
class Region:
    """A segment of a SEG, or a ROI of an RTSTRUCT.

    Attributes:
        number: in its object.
        label, description, kind: its names; the last one is its coded type.
        is_tracked: it carries an identifier of its own, hence is one finding.
        may_be_lesion: its code does not say that it is anatomy, a margin or a device.
    """

    number: int
    label: str
    description: str
    kind: str
    is_tracked: bool
    may_be_lesion: bool

    @property
    def names(self) -> tuple[str, ...]:
        """All that a pattern may fit."""
        return self.label, self.description, self.kind


@dataclass(frozen=True)
class Annotation:
    """One SEG or RTSTRUCT object.

    Attributes:
        path: its file.
        modality: of `MODALITIES`.
        study_uid, instance_uid: its own.
        titles: names of the whole object, its modality among them.
        series_uids, instance_uids, frame_uids: what it refers to, as far as it says.
        regions: what it outlines, by number.
    """

    path: Path
    modality: str
    study_uid: str
    instance_uid: str
    titles: tuple[str, ...]
    series_uids: frozenset[str]
    instance_uids: frozenset[str]
    frame_uids: frozenset[str]
    regions: tuple[Region, ...]


@contextmanager
def parsing(what: str) -> Iterator[None]:
    """Turn whatever a damaged object leads to into a `DataError` that names nobody."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote what a file holds
            yield
    except (*UNREADABLE, RuntimeError, NotImplementedError):
        raise DataError(f"a {what} is damaged or incomplete. Export it again.") from None


def read_annotation(path: Path, modality: str) -> Annotation:
    """What an object says of itself; no pixel and no contour is read.

    Raises:
        DataError: it is damaged.
    """
    with parsing(modality):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        inner = list(_inner_elements(header))
        regions = _segments(header) if modality == "SEG" else _rois(header)
        return Annotation(
            path=path,
            modality=modality,
            study_uid=str(header.StudyInstanceUID),
            instance_uid=str(header.SOPInstanceUID),
            titles=(modality, *(_text(header, name) for name in _TITLES)),
            series_uids=_values(inner, "SeriesInstanceUID"),
            instance_uids=_values(inner, "ReferencedSOPInstanceUID"),
            frame_uids=_values([*inner, *header], "FrameOfReferenceUID"),
            regions=tuple(sorted(regions, key=lambda region: region.number)),
        )


def contours_of(header: Dataset) -> Iterator[tuple[int, Dataset]]:
    """Every contour of a structure set with the number of its ROI."""
    for roi in header.get("ROIContourSequence") or ():
        for contour in roi.get("ContourSequence") or ():
            yield int(roi.ReferencedROINumber), contour


def require_inside(points: npt.ArrayLike, geometry: Geometry, what: str) -> None:
    """Refuse (N, 3) points z, y, x, in voxels, that lie off the scan.

    Raises:
        DataError: some do; `what` begins the message.
    """
    values = np.asarray(points, dtype=np.float64)
    low, high = -0.5 - GRID_TOLERANCE, np.asarray(geometry.shape) - 0.5 + GRID_TOLERANCE
    outside = int(((values < low) | (values > high)).any(axis=1).sum())
    if outside:
        raise DataError(
            f"{what} reaches beyond the CT ({outside} of {len(values)} points). Give the whole "
            "series that it was drawn on."
        )


def _inner_elements(header: Dataset) -> Iterator[Any]:
    """Elements of all sequences that refer to images."""
    for name in _REFERENCES:
        for item in header.get(name) or ():
            yield from item.iterall()
    for _, contour in contours_of(header):
        for image in contour.get("ContourImageSequence") or ():
            yield from image


def _values(elements: Iterable[Any], keyword: str) -> frozenset[str]:
    return frozenset(
        str(element.value) for element in elements if element.keyword == keyword and element.value
    )


def _segments(header: Dataset) -> Iterator[Region]:
    for segment in header.SegmentSequence:
        number = int(segment.SegmentNumber)
        if number == 0:  # the background of a label map
            continue
        category = _code(segment, "SegmentedPropertyCategoryCodeSequence")
        yield Region(
            number=number,
            label=_text(segment, "SegmentLabel"),
            description=_text(segment, "SegmentDescription"),
            kind=_text(_code(segment, "SegmentedPropertyTypeCodeSequence"), "CodeMeaning"),
            is_tracked=bool(_text(segment, "TrackingUID")),
            may_be_lesion=_text(category, "CodeValue") not in _ANATOMY,
        )


def _rois(header: Dataset) -> Iterator[Region]:
    observed = {
        int(item.ReferencedROINumber): item
        for item in header.get("RTROIObservationsSequence") or ()
    }
    for roi in header.StructureSetROISequence:
        number = int(roi.ROINumber)
        kind = _text(observed.get(number, pydicom.Dataset()), "RTROIInterpretedType")
        yield Region(
            number=number,
            label=_text(roi, "ROIName"),
            description=_text(roi, "ROIDescription"),
            kind=kind,
            is_tracked=False,
            may_be_lesion=kind.upper() in _TUMOUR_TYPES,
        )


def _code(item: Dataset, name: str) -> Dataset:
    return next(iter(item.get(name) or ()), pydicom.Dataset())


def _text(item: Dataset, name: str) -> str:
    return str(item.get(name) or "").strip()
