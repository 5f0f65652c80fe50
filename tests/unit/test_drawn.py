"""Sources of lesions that a person drew: `bonemet_predict --lesions`."""

import numpy as np
import pytest
import torch

from bonemet_auto.commands import evaluate, predict
from bonemet_auto.geometry import Geometry
from bonemet_auto.images import Volume, read_instances, write_volume
from bonemet_auto.inference.drawn import describe_drawn
from bonemet_auto.inference.open import open_model
from bonemet_auto.model.patient import NoisyOr
from bonemet_auto.result_schema import CasePrediction
from bonemet_auto.schema import read_json
from tests.cohort import GEOMETRY, make_scan, write_cohort
from tests.dicom_fakes import write_series
from tests.tiny_model import write_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def cohort(tmp_path):
    return write_cohort(tmp_path / "cohort", 5)


def run(model, source, masks, out, *flags):
    given = ["-m", str(model), "-i", str(source), "--lesions", str(masks), "-o", str(out)]
    return predict.main([*given, *flags])


def drawn_scan(seed=0):
    hu, ids = make_scan(np.random.default_rng(seed))
    return Volume(hu, GEOMETRY), ids


def test_drawn_lesions_come_back_as_they_were_with_estimates(model, cohort, tmp_path):
    out = tmp_path / "out"
    assert run(model, cohort / "imagesTr", cohort / "labelsTr", out, "--report") == 0
    for number in range(5):
        drawn = read_instances(cohort / "labelsTr" / f"case_{number:03d}.nii.gz")
        written = read_instances(out / f"case_{number:03d}.nii.gz")
        np.testing.assert_array_equal(drawn.array, written.array)
        record = read_json(out / f"case_{number:03d}.json", CasePrediction)
        assert [lesion.id for lesion in record.lesions] == np.unique(drawn.array)[1:].tolist()
        estimates = [lesion.p_lung_metastasis for lesion in record.lesions]
        assert all(0 < p < 1 for p in estimates)
        expected = 1 - np.prod([1 - p for p in estimates]) if estimates else 0.3
        assert record.patient.probability == pytest.approx(expected)
        for lesion in record.lesions:
            voxels = (drawn.array == lesion.id).sum()
            assert lesion.volume_mm3 == pytest.approx(voxels * GEOMETRY.voxel_volume_mm3)
            assert (lesion.score, lesion.mask_quality) == (1.0, None)
    assert (out / "report.html").is_file()
    reference = ["--ref", str(cohort / "labelsTr"), "--pred", str(out)]
    assert evaluate.main([*reference, "--out", str(tmp_path / "figures")]) == 0


def test_ids_need_not_be_in_a_row_and_order_does_not_matter(model):
    volume, ids = drawn_scan()
    ensemble = open_model(model, CPU)
    usual = describe_drawn(volume, ids, ensemble.models, ensemble.plan, CPU)
    renumbered = np.where(ids == 1, 700, np.where(ids == 2, 4, 0)).astype(np.uint16)
    other = describe_drawn(volume, renumbered, ensemble.models, ensemble.plan, CPU)
    assert list(other) == [4, 700]
    for one, two in ((1, 700), (2, 4)):
        assert usual[one].p_lung == pytest.approx(other[two].p_lung, abs=1e-3)
        assert usual[one].centroid_lps_mm == other[two].centroid_lps_mm


def test_the_estimate_is_that_of_the_box_that_was_drawn(model):
    """On the model's own spacing, the second stage asked by hand gives the same."""
    spacing = open_model(model, CPU).plan.spacing_mm
    hu = np.random.default_rng(0).integers(-100, 900, (8, 16, 16)).astype(np.int16)
    volume = Volume(hu, Geometry(hu.shape, spacing))
    ids = np.zeros(hu.shape, np.uint16)
    ids[2:6, 4:10, 5:11] = 3
    ensemble = open_model(model, CPU)
    (lesion,) = describe_drawn(volume, ids, ensemble.models, ensemble.plan, CPU).values()
    plan = ensemble.plan
    image = (np.clip(hu, *plan.window_hu) - plan.mean_hu) / plan.sd_hu
    boxes = [torch.tensor([[2.0, 4, 5, 6, 10, 11]])]
    with torch.inference_mode():
        found = [m.outline(torch.tensor(image[None, None]).float(), boxes) for m in ensemble.models]
    logits = [torch.logit(one[0].p_lung) for one in found]
    assert lesion.p_lung == pytest.approx(torch.stack(logits).mean().sigmoid().item(), abs=0.01)


def test_a_case_without_lesions_is_ordinary(model, tmp_path):
    volume, ids = drawn_scan()
    write_volume(tmp_path / "a.nii.gz", volume)
    write_volume(tmp_path / "mask.nii.gz", Volume(np.zeros_like(ids), GEOMETRY))
    assert run(model, tmp_path / "a.nii.gz", tmp_path / "mask.nii.gz", tmp_path / "out") == 0
    record = read_json(tmp_path / "out" / "a.json", CasePrediction)
    assert (record.lesions, record.patient.probability) == ((), NoisyOr(0.3).no_lesion_probability)


def test_one_mask_belongs_to_one_study(model, tmp_path):
    volume, ids = drawn_scan()
    write_series(tmp_path / "export", volume)
    write_volume(tmp_path / "mask.nii.gz", Volume(ids, GEOMETRY))
    assert run(model, tmp_path / "export", tmp_path / "mask.nii.gz", tmp_path / "out") == 0
    (record,) = (tmp_path / "out").glob("study_*.json")
    assert len(read_json(record, CasePrediction).lesions) == 2


def test_masks_that_are_missing_are_named_before_work(model, cohort, tmp_path, capsys):
    (cohort / "labelsTr" / "case_002.nii.gz").unlink()
    assert run(model, cohort / "imagesTr", cohort / "labelsTr", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "no mask for 1 of 5 scans: case_002" in said
    assert not list((tmp_path / "out").glob("*.nii.gz"))


def test_a_mask_on_another_grid_fails_alone(model, cohort, tmp_path, caplog):
    path = cohort / "labelsTr" / "case_001.nii.gz"
    write_volume(
        path, Volume(read_instances(path).array[1:], Geometry((13, 18, 20), (2.5, 1.5, 1.5)))
    )
    assert run(model, cohort / "imagesTr", cohort / "labelsTr", tmp_path / "out") == 3
    assert "case_001 failed: the lesions lie on another grid" in caplog.text
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 4


def test_a_threshold_would_change_nothing(model, cohort, tmp_path, capsys):
    flags = ["--threshold", "0.5"]
    assert run(model, cohort / "imagesTr", cohort / "labelsTr", tmp_path / "out", *flags) == 2
    assert "leave it out" in capsys.readouterr().err
