"""DICOM series made from volumes, as a scanner would send them, and damaged ones."""

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from bonemet_auto.images import Volume

INTERCEPT = -1024


def slices_of(volume: Volume, study="1.2.3", series="1.2.3.4", **tags):
    """One data set per slice; tags overwrite or, where None, remove an element."""
    geometry = volume.geometry
    _, along_y, along_x = geometry.direction
    for z, plane in enumerate(volume.array):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = f"{series}.{z + 1}"
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        item = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
        item.SOPClassUID, item.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        item.StudyInstanceUID, item.SeriesInstanceUID = study, series
        item.FrameOfReferenceUID = f"{study}.9"
        item.PatientName, item.PatientID, item.PatientBirthDate = "Doe^Jane", "4711", "19500101"
        item.Modality, item.SeriesNumber, item.InstanceNumber = "CT", 3, z + 1
        item.StudyID = item.AccessionNumber = item.StudyDate = item.StudyTime = ""
        item.PatientSex = item.ReferringPhysicianName = item.Manufacturer = ""
        item.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        item.SamplesPerPixel, item.PhotometricInterpretation = 1, "MONOCHROME2"
        item.Rows, item.Columns = plane.shape
        item.BitsAllocated = item.BitsStored = 16
        item.HighBit, item.PixelRepresentation = 15, 0
        item.PixelSpacing = [_short(value) for value in geometry.spacing_mm[1:]]
        item.SliceThickness = _short(geometry.spacing_mm[0])
        item.ImagePositionPatient = [_short(v) for v in geometry.index_to_lps([z, 0, 0])]
        item.ImageOrientationPatient = [_short(v) for v in (*along_x, *along_y)]
        item.RescaleSlope, item.RescaleIntercept = 1, INTERCEPT
        item.PixelData = np.maximum(plane.astype(np.int32) - INTERCEPT, 0).astype("<u2").tobytes()
        for name, value in tags.items():
            if value is None:
                delattr(item, name)
            else:
                setattr(item, name, value(z) if callable(value) else value)
        yield item


def write_slices(folder: Path, slices, seed=0):
    """Files of random names, so that neither name nor order tells where a slice lies."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    slices = list(slices)
    names = rng.permutation(len(slices))
    for name, item in zip(names, slices, strict=True):
        pydicom.dcmwrite(folder / f"IM{seed}{name:04d}", item, enforce_file_format=True)


def write_series(folder: Path, volume: Volume, seed=0, **tags):
    """A whole series in a folder."""
    write_slices(folder, slices_of(volume, **tags), seed)


def fresh_uid():
    return generate_uid()


def _short(value: float) -> str:
    """At most 16 characters, as the standard has it."""
    return f"{value:.9g}"
