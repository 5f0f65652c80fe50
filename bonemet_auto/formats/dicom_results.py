"""Lesions as DICOM: a segmentation on the source slices, and a structured report of the estimates.

Both belong to the source study and carry its patient's name, as DICOM means it. What is coded is
neoplasm in bone; that it may be a metastasis of lung cancer is a probability, and stands as one
in the report. Codes: SNOMED CT (SCT), UCUM, and our own scheme where there is none.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from highdicom import AlgorithmIdentificationSequence
from highdicom.seg import Segmentation, SegmentDescription
from highdicom.sr import (
    CodedConcept,
    Comprehensive3DSR,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    ReferencedSegment,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from bonemet_auto import __version__
from bonemet_auto.dicom import Series
from bonemet_auto.files import atomic_write
from bonemet_auto.images import Volume
from bonemet_auto.result_schema import CasePrediction, LesionRecord

PROGRAM = "bonemet_auto"
DESCRIPTION = "Bone lesions, estimated; research use only"
SCHEME = "99BONEMET"

ABNORMAL = CodedConcept("49755003", "SCT", "Morphologically Altered Structure")
NEOPLASM = CodedConcept("108369006", "SCT", "Neoplasm")
BONE = CodedConcept("272673000", "SCT", "Bone")
VOLUME = CodedConcept("118565006", "SCT", "Volume")
SCORE = CodedConcept("lesion_score", SCHEME, "Score of lesion detection")
P_LUNG = CodedConcept("p_lung", SCHEME, "Estimated probability of lung cancer metastasis")
CUBIC_MM = CodedConcept("mm3", "UCUM", "cubic millimeter")
NO_UNITS = CodedConcept("1", "UCUM", "no units")

# It tells which elements it copies, and of which instance.
logging.getLogger("highdicom").setLevel(logging.WARNING)

_SEG_NUMBER, _SR_NUMBER = 901, 902
_TYPE_2 = (
    "PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime StudyID "
    "AccessionNumber ReferringPhysicianName"
)
"""Elements that must be there and may be empty; anonymised exports lack some."""

Dataset = Any


def write_dicom(out: Path, series: Series, record: CasePrediction, drawn: Volume) -> None:
    """Write `CASE_seg.dcm`, where there is a lesion, and `CASE_sr.dcm`.

    Args:
        out: folder for both.
        series: where the scan came from.
        record: what is estimated.
        drawn: ids of the lesions on the slices of the series, in their order.
    """
    sources = [_source(path) for path in series.files]
    evidence: list[Dataset] = list(sources)
    segmentation = None
    if record.lesions:
        segmentation = _segmentation(sources, record.lesions, drawn.array)
        evidence.append(segmentation)
        _save(out / f"{record.case}_seg.dcm", segmentation)
    _save(out / f"{record.case}_sr.dcm", _report(evidence, record, segmentation))


def _source(path: Path) -> Dataset:
    header = pydicom.dcmread(path, stop_before_pixels=True)
    for name in _TYPE_2.split():
        if name not in header:
            setattr(header, name, "")
    return header


def _save(path: Path, dataset: Dataset) -> None:
    with atomic_write(path) as temporary:
        dataset.save_as(temporary, enforce_file_format=True)


def _segmentation(
    sources: Sequence[Dataset], lesions: Sequence[LesionRecord], drawn: np.ndarray[Any, Any]
) -> Segmentation:
    """One binary segment for each lesion, numbered as in the record from 1 without gaps."""
    numbers = np.zeros(int(drawn.max()) + 1, dtype=np.uint16)
    for number, lesion in enumerate(lesions, 1):
        numbers[lesion.id] = number
    algorithm = AlgorithmIdentificationSequence(
        name=PROGRAM, family=codes.DCM.ArtificialIntelligence, version=__version__
    )
    return Segmentation(
        source_images=sources,
        pixel_array=numbers[drawn],
        segmentation_type="BINARY",
        segment_descriptions=[
            SegmentDescription(
                segment_number=number,
                segment_label=f"Lesion {lesion.id}",
                segmented_property_category=ABNORMAL,
                segmented_property_type=NEOPLASM,
                algorithm_type="AUTOMATIC",
                algorithm_identification=algorithm,
                tracking_uid=generate_uid(),
                tracking_id=f"lesion {lesion.id}",
                anatomic_regions=[BONE],
            )
            for number, lesion in enumerate(lesions, 1)
        ],
        content_description=DESCRIPTION,
        **_identity(_SEG_NUMBER),
        device_serial_number=__version__,
        manufacturer_model_name=PROGRAM,
        software_versions=__version__,
    )


def _report(
    evidence: Sequence[Dataset], record: CasePrediction, segmentation: Segmentation | None
) -> Comprehensive3DSR:
    device = DeviceObserverIdentifyingAttributes(
        uid=generate_uid(), name=f"{PROGRAM} {__version__}, research use only"
    )
    observer = ObserverContext(codes.DCM.Device, device)
    groups: list[Any] = []
    if segmentation is not None:
        groups += [
            _lesion_group(lesion, ReferencedSegment.from_segmentation(segmentation, number))
            for number, lesion in enumerate(record.lesions, 1)
        ]
    if record.patient is not None:
        groups.append(
            MeasurementsAndQualitativeEvaluations(
                tracking_identifier=TrackingIdentifier(generate_uid(), "patient"),
                measurements=[Measurement(P_LUNG, record.patient.probability, NO_UNITS)],
            )
        )
    content = MeasurementReport(
        observation_context=ObservationContext(observer_device_context=observer),
        procedure_reported=codes.LN.CTUnspecifiedBodyRegion,
        imaging_measurements=groups,
    )
    return Comprehensive3DSR(evidence=evidence, content=content, **_identity(_SR_NUMBER))


def _lesion_group(
    lesion: LesionRecord, segment: ReferencedSegment
) -> VolumetricROIMeasurementsAndQualitativeEvaluations:
    return VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(generate_uid(), f"lesion {lesion.id}"),
        referenced_segment=segment,
        finding_type=NEOPLASM,
        finding_sites=[FindingSite(BONE)],
        measurements=[
            Measurement(VOLUME, lesion.volume_mm3, CUBIC_MM),
            Measurement(SCORE, lesion.score, NO_UNITS),
            Measurement(P_LUNG, lesion.p_lung_metastasis, NO_UNITS),
        ],
    )


def _identity(series_number: int) -> dict[str, Any]:
    """A series of its own, with one instance."""
    return {
        "series_instance_uid": generate_uid(),
        "series_number": series_number,
        "sop_instance_uid": generate_uid(),
        "instance_number": 1,
        "manufacturer": PROGRAM,
    }
