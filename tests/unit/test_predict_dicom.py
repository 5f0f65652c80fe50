"""From DICOM studies to results: the same as of the same scan in NIfTI, and nobody is named."""

import json
import re
import shutil
import stat
import zipfile

import numpy as np
import pytest

from bonemet_auto.commands import predict
from bonemet_auto.images import Volume, read_instances, write_volume
from bonemet_auto.result_schema import CasePrediction, PrivateStudies
from bonemet_auto.schema import read_json
from tests.cohort import GEOMETRY, make_scan
from tests.dicom_fakes import slices_of, write_series, write_slices
from tests.tiny_model import write_model

IDENTIFYING = ("Doe", "4711", "1.2.3", "1950")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "model")


def scan(seed=0):
    return Volume(make_scan(np.random.default_rng(seed))[0], GEOMETRY)


def run(model, source, out, *flags):
    return predict.main(["-m", str(model), "-i", str(source), "-o", str(out), *flags])


def lesions_of(out):
    """Of the only case, without its name."""
    (path,) = (path for path in out.glob("*.json") if path.with_suffix(".nii.gz").is_file())
    record = read_json(path, CasePrediction)
    return (
        path.stem,
        record.model_copy(update={"case": ""}),
        read_instances(path.with_suffix(".nii.gz")),
    )


def everything_written(out):
    """Names and contents, but the library of the viewer and pixels packed as text."""
    for path in out.rglob("*"):
        yield path.name.encode()
        if path.is_file() and path.name != "niivue.umd.js":
            yield re.sub(rb"[A-Za-z0-9+/=]{200,}", b"", path.read_bytes())


def test_a_study_gives_what_its_nifti_gives(model, tmp_path):
    write_series(tmp_path / "export" / "Doe^Jane", scan())
    write_volume(tmp_path / "scan.nii.gz", scan())
    assert run(model, tmp_path / "export", tmp_path / "a") == 0
    assert run(model, tmp_path / "scan.nii.gz", tmp_path / "b") == 0
    _, found, drawn = lesions_of(tmp_path / "a")
    _, expected, expected_drawn = lesions_of(tmp_path / "b")
    assert found.patient == expected.patient and found.lesions
    for one, other in zip(found.lesions, expected.lesions, strict=True):
        assert one.centroid_lps_mm == pytest.approx(other.centroid_lps_mm)
        assert (one.box_voxel_zyx, one.score) == (other.box_voxel_zyx, other.score)
    np.testing.assert_array_equal(drawn.array, expected_drawn.array)
    assert drawn.geometry.mismatch(expected_drawn.geometry) is None


def test_results_and_messages_name_nobody_but_the_private_file_does(model, tmp_path, caplog, capfd):
    caplog.set_level("DEBUG")
    source, out = tmp_path / "Doe^Jane", tmp_path / "out"
    write_series(source / "Doe^Jane 4711", scan())
    other = scan(1).array[:4]
    geometry = GEOMETRY.__class__(other.shape, GEOMETRY.spacing_mm, GEOMETRY.origin_lps_mm)
    write_series(
        source / "thick", Volume(other, geometry), seed=1, series="1.2.3.9", SeriesNumber=1
    )
    harmed = [item for z, item in enumerate(slices_of(scan(2), "1.2.3.77", "1.2.3.78")) if z != 5]
    write_slices(source / "harmed", harmed, seed=2)
    assert run(model, source, out, "--viewer", "--verbose", "--formats", "dicom") == 3
    said = caplog.text + "".join(capfd.readouterr())
    for text in IDENTIFYING:
        assert text not in said.replace(str(out), "")
        assert not any(text.encode() in content for content in everything_written(out)), text
    assert "1 slice is missing" in said and "left out: 4 slices" in said
    private = tmp_path / "out_private.json"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    record = read_json(private, PrivateStudies)
    (failed,) = json.loads((out / "failed_cases.json").read_text())
    assert record.studies[failed["case"]].study_uid == "1.2.3.77"
    (done,) = set(record.studies) - {failed["case"]}
    assert record.studies[done].patient_id == "4711"
    assert record.studies[done].folder.endswith("Doe^Jane 4711")
    assert lesions_of(out)[0] == done


def test_pseudonyms_stay_for_an_output_folder_and_differ_between_two(model, tmp_path):
    write_series(tmp_path / "export", scan())
    assert run(model, tmp_path / "export", tmp_path / "a") == 0
    assert run(model, tmp_path / "export", tmp_path / "b") == 0
    (first,), (second,) = (
        read_json(tmp_path / f"{name}_private.json", PrivateStudies).studies for name in "ab"
    )
    assert first != second
    before = (tmp_path / "a" / f"{first}.json").stat().st_mtime_ns
    assert run(model, tmp_path / "export", tmp_path / "a", "--continue") == 0
    assert (tmp_path / "a" / f"{first}.json").stat().st_mtime_ns == before


def test_a_zip_of_a_study_is_read_and_leaves_nothing_behind(model, tmp_path, monkeypatch):
    write_series(tmp_path / "export", scan())
    (tmp_path / "t").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t"))
    archive = shutil.make_archive(str(tmp_path / "export"), "zip", tmp_path / "export")
    assert run(model, archive, tmp_path / "out") == 0
    assert lesions_of(tmp_path / "out")[1].lesions
    assert not list((tmp_path / "t").iterdir())


def test_a_zip_of_a_folder_of_scans_is_read(model, tmp_path):
    write_volume(tmp_path / "export" / "scans" / "one.nii.gz", scan())
    (tmp_path / "export" / "__MACOSX").mkdir()
    (tmp_path / "export" / "__MACOSX" / "._scans").write_bytes(b"finder")
    archive = shutil.make_archive(str(tmp_path / "export"), "zip", tmp_path / "export")
    assert run(model, archive, tmp_path / "out") == 0
    assert lesions_of(tmp_path / "out")[0] == "one"


def test_a_zip_that_is_broken_is_named(model, tmp_path, capsys):
    (tmp_path / "a.zip").write_bytes(b"PK\3\4 and so on")
    assert run(model, tmp_path / "a.zip", tmp_path / "out") == 2
    assert "a.zip cannot be unpacked" in capsys.readouterr().err


def test_a_zip_that_is_larger_than_the_disk_is_refused_before_it_is_unpacked(
    model, tmp_path, capsys, monkeypatch
):
    write_series(tmp_path / "export", scan())
    archive = shutil.make_archive(str(tmp_path / "export"), "zip", tmp_path / "export")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("bonemet_auto.scans.disk_usage", lambda _: usage._replace(free=1000))
    assert run(model, archive, tmp_path / "out") == 2
    assert "$TMPDIR" in capsys.readouterr().err


def test_entries_of_a_zip_cannot_leave_it(model, tmp_path):
    write_volume(tmp_path / "scan.nii.gz", scan())
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "scan.nii.gz", "../../escaped.nii.gz")
        archive.write(tmp_path / "scan.nii.gz", "scan.nii.gz")
    out = tmp_path / "out"
    assert run(model, tmp_path / "a.zip", out) == 0
    outside = [path for path in tmp_path.parent.rglob("escaped*") if out not in path.parents]
    assert not outside


@pytest.mark.parametrize("harm", ["single slice", "no CT"])
def test_what_cannot_be_predicted_at_all_is_refused_before_work(model, tmp_path, capsys, harm):
    write_series(tmp_path / "export", scan(), **({"Modality": "MR"} if harm == "no CT" else {}))
    source = tmp_path / "export"
    if harm == "single slice":
        source = next(source.iterdir())
    assert run(model, source, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert ("modality MR" if harm == "no CT" else "the folder, not one slice of it") in said


def test_images_and_studies_may_lie_together(model, tmp_path):
    write_series(tmp_path / "in" / "export", scan())
    write_volume(tmp_path / "in" / "scan.nii.gz", scan())
    assert run(model, tmp_path / "in", tmp_path / "out", "-num_parts", "2", "-part_id", "1") == 0
    assert run(model, tmp_path / "in", tmp_path / "out", "-num_parts", "2", "-part_id", "0") == 0
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2
