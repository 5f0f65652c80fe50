import numpy as np
import pytest

from bonemet_auto.errors import DataError
from bonemet_auto.raw_dataset import open_raw_dataset, patient_label
from bonemet_auto.schema import CaseLabels
from tests.cohort import make_scan, write_case, write_cohort


def test_files_are_paired_by_name(tmp_path):
    folder = write_cohort(tmp_path, 2)
    hu, ids = make_scan(np.random.default_rng(9))
    write_case(folder, "Müller 7", hu, ids, {1: 0, 2: None})
    write_case(folder, "t1", hu, None, {}, part="Ts")
    dataset = open_raw_dataset(folder)
    assert [case.case for case in dataset.training] == ["Müller 7", "case_000", "case_001"]
    odd = dataset.training[0]
    assert odd.image.is_file() and odd.label.is_file() and odd.labels_json.is_file()
    assert [(case.case, case.is_test) for case in dataset.test] == [("t1", True)]
    assert not dataset.test[0].label.exists()


def test_labels_without_an_image_are_a_case_too(tmp_path):
    folder = write_cohort(tmp_path, 2)
    (folder / "imagesTr" / "case_001_0000.nii.gz").unlink()
    cases = open_raw_dataset(folder).training
    assert [case.case for case in cases] == ["case_000", "case_001"]
    assert cases[1].image == folder / "imagesTr" / "case_001_0000.nii.gz"


def test_folders_that_are_no_dataset_are_refused(tmp_path):
    with pytest.raises(DataError, match="gone does not exist"):
        open_raw_dataset(tmp_path / "gone")
    with pytest.raises(DataError, match="dataset.json does not exist"):
        open_raw_dataset(tmp_path)
    folder = write_cohort(tmp_path, 1)
    (folder / "imagesTr" / "case_000_0000.nii.gz").unlink()
    with pytest.raises(DataError, match="imagesTr holds no image"):
        open_raw_dataset(folder)


@pytest.mark.parametrize(
    ("content", "label"),
    [
        ({"instances": {}}, 0),
        ({"instances": {1: 0, 2: 2}}, 0),
        ({"instances": {1: 0, 2: None}}, None),
        ({"instances": {1: None, 2: 1}}, 1),
        ({"instances": {1: 0}, "patient": 1}, 1),
        ({"instances": {1: 1}, "patient": 0}, 0),
        ({"instances": {1: 0}, "patient": None}, None),
    ],
)
def test_patient_label_follows_the_lesions_unless_it_is_given(content, label):
    assert patient_label(CaseLabels.model_validate(content), positive_class=1) == label
