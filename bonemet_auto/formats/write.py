"""The formats that a person asked for, case by case."""

from collections.abc import Collection
from pathlib import Path

from bonemet_auto.dicom import Series
from bonemet_auto.images import read_instances
from bonemet_auto.result_schema import CasePrediction
from bonemet_auto.scans import Scan


def dicom_folder(out: Path) -> Path:
    """Beside the results: DICOM names the patient, results do not."""
    return out.resolve().with_name(f"{out.resolve().name}_dicom")


def write_formats(out: Path, scan: Scan, record: CasePrediction, wanted: Collection[str]) -> None:
    """Write a case that lies in `out` in other formats too.

    Args:
        out: folder of predictions.
        scan: what was predicted; `dicom` needs a series.
        record: what `CASE.json` holds.
        wanted: of `dicom`, `seg.nrrd`, `itk-snap` and `bids`.
    """
    if not wanted:
        return
    drawn = read_instances(out / f"{record.case}.nii.gz")
    if "seg.nrrd" in wanted:
        from bonemet_auto.formats.label_files import write_slicer

        write_slicer(out / "slicer" / f"{record.case}.seg.nrrd", record, drawn)
    if "itk-snap" in wanted:
        from bonemet_auto.formats.label_files import write_itk_snap

        write_itk_snap(out / "itk-snap" / f"{record.case}.txt", record.lesions)
    if "bids" in wanted:
        from bonemet_auto.formats.label_files import write_bids

        write_bids(out / "bids", record, drawn)
    if "dicom" in wanted and isinstance(scan, Series):
        from bonemet_auto.formats.dicom_results import write_dicom

        write_dicom(dicom_folder(out), scan, record, drawn)
