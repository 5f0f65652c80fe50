import json

import numpy as np
import pytest

from bonemet_auto import inspection
from bonemet_auto.fingerprint import BONE_THRESHOLD_HU, HISTOGRAM_EDGES_HU, bone_mask
from bonemet_auto.inspection import inspect_case
from bonemet_auto.integrity import inspect_dataset, inspection_bytes
from bonemet_auto.raw_dataset import open_raw_dataset
from bonemet_auto.schema import Fingerprint
from tests.cohort import GEOMETRY, LABELS, SHAPE, make_scan, write_case, write_cohort


def fingerprint_of(tmp_path, hu, ids, classes, **patient):
    write_cohort(tmp_path, 1)
    write_case(tmp_path, "one", hu, ids, classes, **patient)
    dataset = open_raw_dataset(tmp_path)
    inspected = inspect_case(dataset.training[-1], dataset.info)
    assert inspected.faults == ()
    return inspected.fingerprint


def test_bone_is_found_without_noise_and_specks():
    rng = np.random.default_rng(0)
    hu = rng.normal(40, 80, (30, 60, 60))
    hu[:, 20:32, 20:40] += 500
    hu[5, 5, 50:52] = 1500
    bone = bone_mask(hu.astype(np.int16), (1.0, 1.0, 1.0))
    inside = np.zeros_like(bone)
    inside[:, 20:32, 20:40] = True
    assert bone[inside].mean() > 0.99
    assert bone[~inside].mean() < 0.02
    assert not bone[3:8, 3:8, 45:55].any()


def test_thick_slices_are_not_smeared_into_each_other():
    hu = np.full((3, 20, 20), 40, np.int16)
    hu[1] = 800
    bone = bone_mask(hu, (5.0, 1.0, 1.0))
    assert bone[1].all() and not bone[0].any() and not bone[2].any()


def test_a_scan_without_bone_has_an_empty_mask():
    assert not bone_mask(np.full((1, 4, 4), BONE_THRESHOLD_HU, np.int16), (1.0, 1.0, 1.0)).any()


def test_lesions_are_measured_on_the_scans_own_grid(tmp_path):
    hu, ids = make_scan(np.random.default_rng(1))
    ids[:] = 0
    ids[3:5, 6:9, 7:11] = 4
    case = fingerprint_of(tmp_path, hu, ids, {4: None}, patient_id="P7")
    (lesion,) = case.lesions
    assert (lesion.instance, lesion.source) == (4, None)
    assert lesion.size_mm == (5.0, 4.5, 6.0)
    assert lesion.volume_mm3 == pytest.approx(24 * 2.5 * 1.5 * 1.5)
    assert (case.patient_id, case.patient_label) == ("P7", None)
    assert (case.shape, case.spacing_mm) == (SHAPE, GEOMETRY.spacing_mm)


def test_share_outside_bone_counts_what_lies_beyond_the_margin(tmp_path):
    hu = np.full((4, 12, 120), 40, np.int16)
    hu[:, :, :10] = hu[:, :, 110:] = 500
    ids = np.zeros(hu.shape, np.uint16)
    ids[:, 5, 19:29] = 1
    ids[:, 5, 88:98] = 2
    ids[:, 5, 50:53] = 3
    case = fingerprint_of(tmp_path, hu, ids, {1: 0, 2: 0, 3: 0})
    # x spacing 1.5 mm; smoothing adds one voxel of bone, and 13 more lie within 20 mm of that
    shares = [lesion.share_outside_bone for lesion in case.lesions]
    assert shares == pytest.approx([5 / 10, 8 / 10, 1])


def test_lesions_that_share_a_corner_touch(tmp_path):
    hu, ids = make_scan(np.random.default_rng(1))
    ids[:] = 0
    ids[3:5, 6:9, 7:11] = 1
    ids[5:7, 9:11, 11:13] = 2
    ids[7:9, 12:13, 14:15] = 5
    case = fingerprint_of(tmp_path, hu, ids, {1: 0, 2: 0, 5: 0})
    assert [lesion.touching for lesion in case.lesions] == [(2,), (1,), ()]
    assert case.orientation == GEOMETRY.orientation == "LPS"


def test_histograms_count_every_voxel_in_its_bin(tmp_path):
    hu, ids = make_scan(np.random.default_rng(2))
    case = fingerprint_of(tmp_path, hu, ids, {1: 1, 2: 1})
    expected, _ = np.histogram(hu[ids > 0], np.append(HISTOGRAM_EDGES_HU[:-1], 3072))
    assert case.lesion_histogram == tuple(expected)
    assert sum(case.bone_histogram) == bone_mask(hu, GEOMETRY.spacing_mm).sum()
    assert sum(case.body_histogram) == (hu > -500).sum()
    assert len(case.bone_histogram) == len(HISTOGRAM_EDGES_HU) - 1 == 256


def test_inspection_is_the_same_from_several_processes(tmp_path):
    dataset = open_raw_dataset(write_cohort(tmp_path, 3))
    assert inspect_dataset(dataset, None, 1) == inspect_dataset(dataset, None, 2)


@pytest.fixture
def read(monkeypatch):
    """Names of the images that are read."""
    names = []
    original = inspection.read_hu

    def noted(path):
        names.append(path.name)
        return original(path)

    monkeypatch.setattr(inspection, "read_hu", noted)
    return names


def test_only_what_changed_is_read_again(tmp_path, read):
    folder = write_cohort(tmp_path, 3)
    hu, ids = make_scan(np.random.default_rng(7))
    write_case(folder, "t", hu, ids, {1: 0, 2: 0}, part="Ts")
    first = inspect_dataset(open_raw_dataset(folder), None, 1)
    read.clear()
    again = inspect_dataset(open_raw_dataset(folder), first.memory, 1)
    assert read == [] and again == first
    hu, ids = make_scan(np.random.default_rng(5))
    write_case(folder, "case_001", hu, ids, {1: 0, 2: 0})
    write_case(folder, "new", *make_scan(np.random.default_rng(6)), {1: 0, 2: 0})
    changed = inspect_dataset(open_raw_dataset(folder), first.memory, 1)
    assert read == ["case_001_0000.nii.gz", "new_0000.nii.gz"]
    before, after = first.fingerprint.cases, changed.fingerprint.cases
    assert after[0] == before[0] and after[1] != before[1] and len(after) == 4


def test_warnings_and_twins_are_remembered(tmp_path, read):
    folder = write_cohort(tmp_path, 2)
    hu, ids = make_scan(np.random.default_rng(3))
    write_case(folder, "odd", np.clip(hu, 0, 100), ids, {1: 0, 2: 0})
    first = inspect_dataset(open_raw_dataset(folder), None, 1)
    (odd,) = (warning for warning in first.warnings if warning.startswith("odd: values"))
    read.clear()
    write_case(folder, "twin", np.clip(hu, 0, 100), ids, {1: 0, 2: 0})
    again = inspect_dataset(open_raw_dataset(folder), first.memory, 1)
    assert read == ["twin_0000.nii.gz"]
    assert [fault.case for fault in again.faults] == ["twin"]
    assert odd in again.warnings


def test_a_case_with_a_fault_is_looked_at_again(tmp_path, read):
    folder = write_cohort(tmp_path, 2)
    (folder / "labelsTr" / "case_001.json").write_text('{"instances": {"1": 0}}')
    first = inspect_dataset(open_raw_dataset(folder), None, 1)
    read.clear()
    assert inspect_dataset(open_raw_dataset(folder), first.memory, 1).faults == first.faults != []
    assert read == ["case_001_0000.nii.gz"]


def test_a_renamed_case_is_not_taken_for_the_old_one(tmp_path):
    folder = write_cohort(tmp_path, 1)
    first = inspect_dataset(open_raw_dataset(folder), None, 1)
    for path in [*folder.glob("*Tr/case_000*")]:
        path.rename(path.with_name(path.name.replace("case_000", "new")))
    again = inspect_dataset(open_raw_dataset(folder), first.memory, 1).fingerprint
    assert [(case.case, case.patient_id) for case in again.cases] == [("new", "new")]


def test_another_meaning_of_the_classes_counts_as_a_change(tmp_path, read):
    folder = write_cohort(tmp_path, 1)
    first = inspect_dataset(open_raw_dataset(folder), None, 1)
    info = json.loads((folder / "dataset.json").read_text())
    info["labels"] = dict(zip(LABELS, (1, 0), strict=True))
    (folder / "dataset.json").write_text(json.dumps(info))
    read.clear()
    again = inspect_dataset(open_raw_dataset(folder), first.memory, 1)
    (before,), (after,) = first.fingerprint.cases, again.fingerprint.cases
    assert read == ["case_000_0000.nii.gz"] and after.input_hash != before.input_hash
    assert (before.patient_label, after.patient_label) == (0, 1)


def test_the_fingerprint_survives_its_file(tmp_path):
    fingerprint = inspect_dataset(open_raw_dataset(write_cohort(tmp_path, 2)), None, 1).fingerprint
    assert Fingerprint.model_validate_json(fingerprint.model_dump_json()) == fingerprint


def test_the_memory_of_a_worker_follows_the_headers(tmp_path):
    folder = write_cohort(tmp_path, 2)
    needed = inspection_bytes(open_raw_dataset(folder))
    (folder / "imagesTr" / "case_000_0000.nii.gz").write_bytes(b"no image")
    assert inspection_bytes(open_raw_dataset(folder)) == needed
    hu, ids = make_scan(np.random.default_rng(0))
    write_case(folder, "long", np.repeat(hu, 9, axis=0), np.repeat(ids, 9, axis=0), {1: 0, 2: 0})
    more = inspection_bytes(open_raw_dataset(folder)) - needed
    assert more == pytest.approx(8 * (needed - 300e6))
