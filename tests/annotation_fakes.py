"""SEG and RTSTRUCT objects on fake series: by highdicom, and element by element."""

from pathlib import Path

import numpy as np
import pydicom
from highdicom.seg import Segmentation, SegmentDescription
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import (
    ExplicitVRLittleEndian,
    RTStructureSetStorage,
    generate_uid,
)

TUMOUR = (codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Neoplasm)
ORGAN = (codes.SCT.AnatomicalStructure, codes.SCT.Bone)


def write_seg(path: Path, slices, masks, labels=None, kind="BINARY", tracked=False, **given):
    """Write segments of (Z, Y, X, N) masks, bool, or float if fractional.

    Args:
        labels: of the segments; `(label, codes)` for other codes than `TUMOUR`.
        given: for highdicom, such as plane positions.
    """
    masks = np.asarray(masks)
    labels = labels or [f"GTV-{n + 1}" for n in range(masks.shape[-1])]
    described = []
    for number, label in enumerate(labels, 1):
        label, (category, kind_code) = (label, TUMOUR) if isinstance(label, str) else label
        identity = {"tracking_uid": generate_uid(), "tracking_id": label} if tracked else {}
        description = SegmentDescription(number, label, category, kind_code, "MANUAL", **identity)
        described.append(description)
    pixels = masks.astype(np.uint8) if masks.dtype == bool else masks.astype(np.float32)
    segmentation = Segmentation(
        source_images=list(slices),
        pixel_array=pixels,
        segmentation_type=kind,
        segment_descriptions=described,
        series_instance_uid=generate_uid(),
        series_number=7,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="fake",
        manufacturer_model_name="fake",
        software_versions="1",
        device_serial_number="1",
        **given,
    )
    save(path, segmentation)
    return path


def write_rtstruct(path: Path, slices, rois, **changes):
    """Write ROIs `{name: (interpreted type, contours)}`, contours of (N, 3) mm points."""
    first = next(iter(slices))
    item = _new_object(RTStructureSetStorage, first)
    item.Modality, item.StructureSetLabel = "RTSTRUCT", "Plan"
    series = Dataset()
    series.SeriesInstanceUID = first.SeriesInstanceUID
    study = Dataset()
    study.ReferencedSOPClassUID = "1.2.840.10008.3.1.2.3.1"
    study.ReferencedSOPInstanceUID = first.StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame = Dataset()
    frame.FrameOfReferenceUID = first.FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    item.ReferencedFrameOfReferenceSequence = [frame]
    item.StructureSetROISequence, item.ROIContourSequence = [], []
    item.RTROIObservationsSequence = []
    for number, (name, (kind, contours)) in enumerate(rois.items(), 1):
        named, drawn, observed = Dataset(), Dataset(), Dataset()
        named.ROINumber, named.ROIName = number, name
        named.ReferencedFrameOfReferenceUID = first.FrameOfReferenceUID
        drawn.ReferencedROINumber = number
        drawn.ContourSequence = [contour_of(points) for points in contours]
        observed.ObservationNumber = observed.ReferencedROINumber = number
        observed.RTROIInterpretedType = kind
        item.StructureSetROISequence.append(named)
        item.ROIContourSequence.append(drawn)
        item.RTROIObservationsSequence.append(observed)
    for name, value in changes.items():
        setattr(item, name, value)
    save(path, item)
    return path


def contour_of(points, kind="CLOSED_PLANAR"):
    """One contour; numbers have at most 16 characters, as the standard has it."""
    contour = Dataset()
    contour.ContourGeometricType = kind
    contour.NumberOfContourPoints = len(points)
    contour.ContourData = [f"{value:.9g}" for value in np.ravel(points)]
    return contour


def edit(path: Path, change):
    """Change a file that was written."""
    item = pydicom.dcmread(path)
    change(item)
    item.save_as(path, enforce_file_format=True)


def save(path: Path, item):
    """Write an object."""
    path.parent.mkdir(parents=True, exist_ok=True)
    item.save_as(path, enforce_file_format=True)


def _new_object(kind, source):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = kind, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    item = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    item.SOPClassUID, item.SOPInstanceUID = kind, meta.MediaStorageSOPInstanceUID
    item.SeriesInstanceUID, item.SeriesNumber = generate_uid(), 8
    for name in ("StudyInstanceUID", "PatientName", "PatientID", "FrameOfReferenceUID"):
        setattr(item, name, getattr(source, name))
    return item
