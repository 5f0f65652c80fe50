"""Results in the formats of other tools, read back with other readers."""

import csv
import json
import shutil
import subprocess

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813

from bonemet_auto.commands import predict
from bonemet_auto.dicom import find_studies
from bonemet_auto.formats.label_files import bids_label
from bonemet_auto.images import Volume, read_instances, write_volume
from bonemet_auto.result_schema import CasePrediction
from bonemet_auto.schema import read_json
from tests.cohort import GEOMETRY, make_scan
from tests.dicom_fakes import write_series
from tests.tiny_model import write_model
from tests.unit.test_dicom import scan as oblique_scan
from tests.unit.test_dicom import turned


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "model")


def run(model, source, out, *flags):
    return predict.main(["-m", str(model), "-i", str(source), "-o", str(out), *flags])


def drawn_lesions(tmp_path, volume, ids):
    """A study in DICOM, and a mask of it."""
    write_series(tmp_path / "export", volume)
    write_volume(tmp_path / "mask.nii.gz", Volume(ids, volume.geometry))
    return ["--lesions", str(tmp_path / "mask.nii.gz")]


@pytest.fixture(params=["axial", "oblique", "axial, odd ids"])
def segmented(request, model, tmp_path):
    """Folder of DICOM results, series, and the ids that must be in them."""
    hu, ids = make_scan(np.random.default_rng(0))
    volume = Volume(hu, GEOMETRY)
    if request.param == "oblique":
        volume = oblique_scan(turned(25), (14, 18, 20))
    if "odd" in request.param:
        ids = np.where(ids == 1, 700, np.where(ids == 2, 4, 0)).astype(np.uint16)
    flags = drawn_lesions(tmp_path, volume, ids)
    assert run(model, tmp_path / "export", tmp_path / "out", *flags, "--formats", "dicom") == 0
    (study,) = find_studies(tmp_path / "export")
    return tmp_path / "out_dicom", study.series, ids


def test_highdicom_reads_the_segments_voxel_by_voxel(segmented):
    folder, series, ids = segmented
    segmentation = highdicom.seg.segread(next(folder.glob("*_seg.dcm")))
    uids = [pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID for path in series.files]
    found = segmentation.get_pixels_by_source_instance(
        uids, assert_missing_frames_are_empty=True, segment_numbers=[1, 2]
    )
    for number, lesion in enumerate(np.unique(ids)[1:]):
        np.testing.assert_array_equal(found[..., number], ids == lesion)
        description = segmentation.get_segment_description(number + 1)
        assert description.segment_label == f"Lesion {lesion}"
    assert segmentation.SegmentationType == "BINARY"
    assert segmentation.PatientID == "4711" and segmentation.StudyInstanceUID == series.study_uid


@pytest.mark.oracle
@pytest.mark.skipif(shutil.which("segimage2itkimage") is None, reason="dcmqi is not installed")
def test_dcmqi_reads_the_segments_voxel_by_voxel(segmented, tmp_path):
    folder, series, ids = segmented
    (tmp_path / "read").mkdir()
    command = ["segimage2itkimage", "-t", "nrrd", "--outputDirectory", str(tmp_path / "read")]
    path = next(folder.glob("*_seg.dcm"))
    subprocess.run([*command, "--inputDICOM", str(path)], check=True, capture_output=True)
    assert len(list((tmp_path / "read").glob("*.nrrd"))) == 2
    grid = sitk.GetImageFromArray(ids)
    grid.SetSpacing(series.geometry.spacing_mm[::-1])
    grid.SetOrigin(series.geometry.origin_lps_mm)
    grid.SetDirection(np.asarray(series.geometry.direction)[::-1].T.flatten().tolist())
    for number, lesion in enumerate(np.unique(ids)[1:], 1):
        image = sitk.ReadImage(str(tmp_path / "read" / f"{number}.nrrd"))
        laid = sitk.Resample(image, grid, sitk.Transform(), sitk.sitkNearestNeighbor)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(laid) > 0, ids == lesion)


def test_the_structured_report_holds_the_estimates(segmented, tmp_path):
    folder, _, _ = segmented
    report = highdicom.sr.srread(next(folder.glob("*_sr.dcm")))
    record = read_json(next((tmp_path / "out").glob("study_*.json")), CasePrediction)
    groups = report.content.get_volumetric_roi_measurement_groups()
    for lesion, group in zip(record.lesions, groups, strict=True):
        values = {item.name.value: item.value for item in group.get_measurements()}
        assert values["p_lung"] == pytest.approx(lesion.p_lung_metastasis)
        assert values["118565006"] == pytest.approx(lesion.volume_mm3)
        assert values["lesion_score"] == 1.0
    (patient,) = report.content.get_image_measurement_groups()
    (measured,) = patient.get_measurements()
    assert measured.value == pytest.approx(record.patient.probability)


def test_a_study_without_lesions_gets_a_report_and_no_segmentation(model, tmp_path):
    hu, ids = make_scan(np.random.default_rng(0))
    flags = drawn_lesions(tmp_path, Volume(hu, GEOMETRY), np.zeros_like(ids))
    assert run(model, tmp_path / "export", tmp_path / "out", *flags, "--formats", "dicom") == 0
    assert [path.name[-7:] for path in (tmp_path / "out_dicom").iterdir()] == ["_sr.dcm"]


def test_an_anonymised_export_will_do(model, tmp_path):
    hu, ids = make_scan(np.random.default_rng(0))
    gone = dict.fromkeys(("PatientName", "PatientBirthDate", "PatientSex", "StudyID"))
    write_series(tmp_path / "export", Volume(hu, GEOMETRY), **gone)
    write_volume(tmp_path / "mask.nii.gz", Volume(ids, GEOMETRY))
    flags = ["--lesions", str(tmp_path / "mask.nii.gz"), "--formats", "dicom"]
    assert run(model, tmp_path / "export", tmp_path / "out", *flags) == 0


def test_a_format_that_fails_fails_its_case_and_leaves_the_result(model, tmp_path, monkeypatch):
    hu, ids = make_scan(np.random.default_rng(0))
    flags = drawn_lesions(tmp_path, Volume(hu, GEOMETRY), ids)

    def fail(*_):
        raise ValueError("odd header")

    monkeypatch.setattr("bonemet_auto.formats.dicom_results.write_dicom", fail)
    assert run(model, tmp_path / "export", tmp_path / "out", *flags, "--formats", "dicom") == 3
    assert len(list((tmp_path / "out").glob("study_*.nii.gz"))) == 1


def test_dicom_is_refused_where_none_is_read(model, tmp_path, capsys):
    write_volume(tmp_path / "a.nii.gz", Volume(make_scan(np.random.default_rng(0))[0], GEOMETRY))
    assert run(model, tmp_path / "a.nii.gz", tmp_path / "out", "--formats", "dicom") == 2
    assert "no scan is one" in capsys.readouterr().err


@pytest.fixture
def labelled(model, tmp_path):
    write_volume(
        tmp_path / "Fall ä.nii.gz", Volume(make_scan(np.random.default_rng(0))[0], GEOMETRY)
    )
    formats = ["--formats", "seg.nrrd", "itk-snap", "bids"]
    assert run(model, tmp_path / "Fall ä.nii.gz", tmp_path / "out", *formats) == 0
    record = read_json(tmp_path / "out" / "Fall ä.json", CasePrediction)
    assert record.lesions
    return tmp_path / "out", record, read_instances(tmp_path / "out" / "Fall ä.nii.gz")


def test_slicer_finds_names_colours_and_voxels(labelled):
    out, record, drawn = labelled
    image = sitk.ReadImage(str(out / "slicer" / "Fall ä.seg.nrrd"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), drawn.array)
    for number, lesion in enumerate(record.lesions):
        keys = {
            key: image.GetMetaData(f"Segment{number}_{key}")
            for key in ("Name", "LabelValue", "Color", "Extent", "Layer")
        }
        assert keys["LabelValue"] == str(lesion.id) and f"lesion {lesion.id}:" in keys["Name"]
        assert all(0 <= float(part) <= 1 for part in keys["Color"].split())
        x0, x1, y0, y1, z0, z1 = map(int, keys["Extent"].split())
        inside = drawn.array[z0 : z1 + 1, y0 : y1 + 1, x0 : x1 + 1]
        assert (inside == lesion.id).sum() == (drawn.array == lesion.id).sum()


def test_itk_snap_gets_a_row_for_each_lesion(labelled):
    out, record, _ = labelled
    rows = (out / "itk-snap" / "Fall ä.txt").read_text().splitlines()
    assert rows[0].startswith("0 ") and len(rows) == 1 + len(record.lesions)
    for lesion, row in zip(record.lesions, rows[1:], strict=True):
        numbers = [int(part) for part in row.split('"')[0].split()]
        assert numbers[0] == lesion.id and all(0 <= part <= 255 for part in numbers[1:4])


def test_bids_gets_a_map_with_its_table(labelled):
    out, record, drawn = labelled
    (path,) = (out / "bids").glob("sub-*/ct/*_dseg.nii.gz")
    np.testing.assert_array_equal(read_instances(path).array, drawn.array)
    table = path.with_name(path.name.replace(".nii.gz", ".tsv")).read_text().splitlines()
    rows = list(csv.DictReader(table, delimiter="\t"))
    assert [int(row["index"]) for row in rows] == [lesion.id for lesion in record.lesions]
    assert json.loads((out / "bids" / "dataset_description.json").read_text())["BIDSVersion"]


def test_other_formats_are_taken_for_no_predictions(labelled):
    out, _, _ = labelled
    assert [path.name for path in out.glob("*.n*")] == ["Fall ä.nii.gz"]


def test_labels_of_bids_hold_letters_and_digits_and_tell_cases_apart():
    assert bids_label("case_001") == "case001"
    odd = {bids_label(case) for case in ("Fall ä", "Fall ö", "Fall", "日本")}
    assert len(odd) == 4 and all(label.isascii() and label.isalnum() for label in odd)
