"""Broken and odd files: each fault names its case and file, odd but sound input loads."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest

from bonemet_auto.geometry import Geometry
from bonemet_auto.images import Volume, write_volume
from bonemet_auto.inspection import CaseInspection
from bonemet_auto.integrity import _inspect_all, fault_table, inspect_dataset
from bonemet_auto.raw_dataset import open_raw_dataset
from tests.cohort import GEOMETRY, SHAPE, make_scan, write_case, write_cohort

IMAGE = "imagesTr/case_001_0000.nii.gz"
LABEL = "labelsTr/case_001.nii.gz"
CLASSES = "labelsTr/case_001.json"


@pytest.fixture
def folder(tmp_path):
    return write_cohort(tmp_path / "Dataset001_Tiny", 5)


def inspect(folder):
    return inspect_dataset(open_raw_dataset(folder), None, 1)


def the_fault(folder):
    """The only fault, after checking that its case does not enter the fingerprint."""
    inspection = inspect(folder)
    assert len(inspection.faults) == 1, fault_table(inspection.faults)
    fault = inspection.faults[0]
    assert fault.problem and fault.fix.endswith(".")
    assert str(fault.file) not in fault.problem
    assert fault.case not in {case.case for case in inspection.fingerprint.cases}
    return fault


def rewrite(folder, name, change, geometry=GEOMETRY):
    hu, ids = make_scan(np.random.default_rng(77))
    array = hu.astype(np.float32) if "images" in name else ids.astype(np.float32)
    write_volume(folder / name, Volume(change(array), geometry))


def edit_classes(folder, **keys):
    path = folder / CLASSES
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def put(value):
    def change(array):
        array[3, 3, 3] = value
        return array

    return change


def test_a_sound_cohort_has_no_fault(folder):
    inspection = inspect(folder)
    assert inspection.faults == []
    assert inspection.warnings == ["1 of 5 cases have no lesion"]


@pytest.mark.parametrize("name", [IMAGE, LABEL, CLASSES])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    fault = the_fault(folder)
    assert (fault.case, fault.file, fault.problem) == (
        "case_001", folder / name, "file is missing",
    )  # fmt: skip


@pytest.mark.parametrize("name", [IMAGE, LABEL])
def test_a_half_copied_file_is_named(folder, name):
    path = folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    fault = the_fault(folder)
    assert (fault.case, fault.file) == ("case_001", path)
    assert fault.problem.startswith("is truncated")


@pytest.mark.parametrize("name", [IMAGE, LABEL])
def test_one_flipped_bit_is_noticed(folder, name):
    path = folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)
    fault = the_fault(folder)
    assert (fault.case, fault.file) == ("case_001", path)
    assert "corrupt" in fault.problem


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_counted(folder, value):
    rewrite(folder, IMAGE, put(value))
    fault = the_fault(folder)
    assert (fault.case, fault.file) == ("case_001", folder / IMAGE)
    assert "1 of 5040 voxels are NaN or infinite" in fault.problem


@pytest.mark.parametrize(("value", "said"), [(1.5, "fractional instance id 1.5"), (-2, "-2")])
def test_values_that_are_no_ids_are_faults(folder, value, said):
    rewrite(folder, LABEL, put(value))
    fault = the_fault(folder)
    assert fault.file == folder / LABEL
    assert said in fault.problem


def test_an_id_without_a_class_and_a_class_without_an_id_are_faults(folder):
    edit_classes(folder, instances={"1": 0})
    assert "ids [2] of the label map have no class" in the_fault(folder).problem
    edit_classes(folder, instances={"1": 0, "2": 0, "9": 1})
    fault = the_fault(folder)
    assert fault.file == folder / CLASSES
    assert "ids [9] have a class and no voxel" in fault.problem


def test_a_class_that_the_dataset_does_not_name_is_a_fault(folder):
    edit_classes(folder, instances={"1": 0, "2": 5})
    assert "instance 2 has class 5" in the_fault(folder).problem


@pytest.mark.parametrize("content", ["", "{", '{"instances": {"a": 0}}', '{"patient": 1}'])
def test_a_broken_class_file_is_a_fault(folder, content):
    (folder / CLASSES).write_text(content)
    assert the_fault(folder).file == folder / CLASSES


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"spacing_mm": (2.5, 1.5, 1.6)}, "spacing"),
        ({"origin_lps_mm": (-10.0, 22.0, -300.0)}, "origin"),
        ({"direction": ((0.0, 0.0, 1.0), (0.0, -1.0, 0.0), (1.0, 0.0, 0.0))}, "direction"),
    ],
)
def test_a_label_map_on_another_grid_is_a_fault(folder, change, said):
    hu, ids = make_scan(np.random.default_rng([0, 1]))
    write_volume(folder / LABEL, Volume(ids, replace(GEOMETRY, **change)))
    fault = the_fault(folder)
    assert (fault.case, fault.file) == ("case_001", folder / LABEL)
    assert said in fault.problem


def test_a_label_map_of_another_shape_is_a_fault(folder):
    ids = make_scan(np.random.default_rng([0, 1]))[1][:-1]
    write_volume(folder / LABEL, Volume(ids, replace(GEOMETRY, shape=ids.shape)))
    assert "shape (13, 18, 20) against (14, 18, 20)" in the_fault(folder).problem


def test_float_noise_in_the_direction_is_none(folder):
    tilted = ((0.0, 1e-8, 1.0), (0.0, 1.0, -1e-8), (1.0, 0.0, 0.0))
    ids = make_scan(np.random.default_rng([0, 1]))[1]
    write_volume(folder / LABEL, Volume(ids, replace(GEOMETRY, direction=tilted)))
    assert inspect(folder).faults == []


@pytest.mark.parametrize(
    ("shape", "shear", "said"),
    [((4, 5, 6, 2), 0.0, "three-dimensional"), ((4, 5, 6), 0.2, "shear")],
)
def test_time_series_and_sheared_grids_are_faults(folder, shape, shear, said):
    nib = pytest.importorskip("nibabel")
    affine = np.eye(4)
    affine[0, 1] = shear
    image = nib.Nifti1Image(np.zeros(shape, np.int16), affine)
    image.set_qform(None)
    nib.save(image, folder / IMAGE)
    fault = the_fault(folder)
    assert (fault.case, fault.file) == ("case_001", folder / IMAGE)
    assert said in fault.problem


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_the_same_pixels_twice_are_a_fault_of_the_later_case(folder, dtype):
    hu, ids = make_scan(np.random.default_rng([0, 1]))
    write_case(folder, "twin", hu.astype(dtype), ids, {1: 0, 2: 0})
    fault = the_fault(folder)
    assert (fault.case, fault.file) == ("twin", folder / "imagesTr/twin_0000.nii.gz")
    assert "same pixels as case 'case_001'" in fault.problem


def test_a_scan_in_training_and_in_test_is_a_fault_of_training(folder):
    hu, _ = make_scan(np.random.default_rng([0, 1]))
    write_case(folder, "held out", hu, None, {}, part="Ts")
    fault = the_fault(folder)
    assert fault.case == "case_001"
    assert "same pixels as case 'held out'" in fault.problem


def test_a_patient_in_training_and_in_test_is_a_fault(folder):
    edit_classes(folder, patient_id="P7")
    hu, ids = make_scan(np.random.default_rng(50))
    write_case(folder, "t", hu, ids, {1: 0, 2: 0}, part="Ts", patient_id="P7")
    fault = the_fault(folder)
    assert fault.case == "case_001"
    assert "patient 'P7' is in training (case 'case_001') and in test (case 't')" in fault.problem


def test_a_cohort_without_lesions_is_refused_as_a_whole(tmp_path):
    folder = write_cohort(tmp_path, 2)
    for number in range(2):
        hu, ids = make_scan(np.random.default_rng(number))
        write_case(folder, f"case_{number:03d}", hu, np.zeros_like(ids), {})
    (fault,) = inspect(folder).faults
    assert (fault.case, fault.problem) == ("", "no lesion in the whole cohort")
    assert "whole dataset" in fault_table([fault])


def test_all_faults_are_reported_together(folder):
    (folder / IMAGE).write_bytes(b"")
    edit_classes(folder, instances={"1": 0, "2": 7})
    (folder / "labelsTr/case_003.json").unlink()
    table = fault_table(inspect(folder).faults)
    for said in ("case_001", "case_003", IMAGE, CLASSES, "class 7", "missing"):
        assert said in table


def eight_bit(hu):
    return np.clip((hu + 200) / 4, 0, 255).astype(np.uint8)


def windowed(hu):
    return np.clip(hu, -160, 240)


def z_scores(hu):
    return np.rint((hu - hu.mean()) / hu.std())


@pytest.mark.parametrize("change", [eight_bit, windowed, z_scores])
def test_values_that_are_not_hounsfield_units_are_warned_of(folder, change):
    rewrite(folder, IMAGE, change)
    inspection = inspect(folder)
    assert inspection.faults == []
    (warning,) = [text for text in inspection.warnings if "Hounsfield" in text]
    assert warning.startswith("case_001: values from")


def test_a_single_slice_is_warned_of(folder):
    hu, ids = make_scan(np.random.default_rng(4))
    write_case(folder, "flat", hu[3:4], (ids[3:4] == 1).astype(np.uint16), {1: 0})
    inspection = inspect(folder)
    assert inspection.faults == []
    assert any(text.startswith("flat: one slice only") for text in inspection.warnings)


def test_few_patients_one_sided_cohorts_and_unknown_sources_are_warned_of(tmp_path):
    folder = write_cohort(tmp_path, 2)
    (folder / "labelsTr/case_000.json").write_text('{"instances": {"1": null, "2": 1}}')
    warnings = "\n".join(inspect(folder).warnings)
    for said in ("2 patients: fewer than 5", "1 lesions have no known source", "no negative"):
        assert said in warnings


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_label_maps_of_every_type_load(folder, dtype):
    rewrite(folder, LABEL, lambda ids: ids.astype(dtype))
    inspection = inspect(folder)
    assert inspection.faults == []
    assert [lesion.instance for lesion in inspection.fingerprint.cases[1].lesions] == [1, 2]


def test_several_cases_of_a_patient_and_odd_names_load(folder):
    for number, case in enumerate(["P 7 früh", "P 7 spät"]):
        hu, ids = make_scan(np.random.default_rng(60 + number))
        write_case(folder, case, hu, ids, {1: 0, 2: None}, patient_id="P 7", patient=0)
    inspection = inspect(folder)
    assert inspection.faults == []
    owners = {case.case: case.patient_id for case in inspection.fingerprint.cases}
    assert owners["P 7 früh"] == owners["P 7 spät"] == "P 7"


def test_every_direction_of_a_scan_loads(folder):
    axes = np.eye(3)
    for number, order in enumerate([(0, 1, 2), (1, 2, 0), (2, 0, 1), (0, 2, 1)]):
        signs = np.array([1, -1, -1 if number % 2 else 1])[:, None]
        direction = tuple(tuple(axis) for axis in (axes[list(order)] * signs).tolist())
        hu, ids = make_scan(np.random.default_rng(90 + number))
        grid = Geometry(SHAPE, (3.0, 1.0, 1.0), (5.0, 6.0, 7.0), direction)
        write_case(folder, f"turned {number}", hu, ids, {1: 0, 2: 0}, geometry=grid)
    assert inspect(folder).faults == []


def die_on_case_001(case):
    if case.case == "case_001":
        os._exit(9)
    return CaseInspection(case, case.case)


def test_a_worker_that_dies_names_its_case_and_no_other(folder):
    cases = open_raw_dataset(folder).training
    results = list(_inspect_all(die_on_case_001, cases[:3], 2))
    assert [item.case.case for item in results] == ["case_000", "case_001", "case_002"]
    (fault,) = [fault for item in results for fault in item.faults]
    assert fault.case == "case_001"
    assert "worker process died" in fault.problem
