"""Results on disk, trained folds from disk, and the command around them."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from bonemet_auto.checkpoint import Progress, save_checkpoint
from bonemet_auto.commands import predict as command
from bonemet_auto.errors import ModelError
from bonemet_auto.geometry import Geometry
from bonemet_auto.images import read_geometry, read_instances, write_volume
from bonemet_auto.inference.export import write_case, write_cohort_tables
from bonemet_auto.inference.load import find_folds, load_ensemble, load_fold
from bonemet_auto.inference.place import Lesion
from bonemet_auto.inference.predict import CaseResult
from bonemet_auto.model.mask_rcnn import build_model
from bonemet_auto.result_schema import CasePrediction, RunReport
from bonemet_auto.schema import read_json, write_json
from tests.unit.inference_fakes import POINT, add_ball, make_plan, tissue

CPU = torch.device("cpu")
GRID = Geometry((4, 10, 12), (2.0, 1.0, 0.5), (1.0, 2.0, 3.0))
FOLD_FILES = ("plan.json", "operating_point.json", "checkpoint_last.pt")


def _lesion(score, p_lung, start):
    mask = np.ones((1, 2, 3), bool)
    return Lesion(score, p_lung, 0.7, 350.0, mask, start, 6.0, (1.0, 2.0, 3.0))


def _write(out, lesions, case="Fall 1 (ü)"):
    return write_case(out, case, GRID, CaseResult(lesions, ["strange"]), POINT)


def test_lesions_and_candidates_go_to_files_of_their_own_with_ids_that_go_on(tmp_path):
    _write(tmp_path, [_lesion(0.2, 0.9, (3, 0, 0)), _lesion(0.9, 0.5, (0, 4, 4))])
    main = read_json(tmp_path / "Fall 1 (ü).json", CasePrediction)
    below = read_json(tmp_path / "candidates" / "Fall 1 (ü).json", CasePrediction)
    assert [(item.id, item.score) for item in main.lesions] == [(1, 0.9)]
    assert [(item.id, item.score) for item in below.lesions] == [(2, 0.2)]
    assert below.patient is None
    assert main.patient.probability == pytest.approx(0.45)
    assert main.warnings == ("strange",)
    instances = read_instances(tmp_path / "Fall 1 (ü).nii.gz")
    assert instances.geometry.mismatch(GRID) is None
    assert np.argwhere(instances.array == 1).min(0).tolist() == [0, 4, 4]
    assert instances.array.max() == 1
    assert read_instances(tmp_path / "candidates" / "Fall 1 (ü).nii.gz").array.max() == 2


def test_corners_are_those_of_the_box_in_the_patient(tmp_path):
    (lesion,) = _write(tmp_path, [_lesion(0.9, 0.5, (0, 4, 4))]).lesions
    assert lesion.box_voxel_zyx == (0, 4, 4, 1, 6, 7)
    low, high = np.min(lesion.corners_lps_mm, axis=0), np.max(lesion.corners_lps_mm, axis=0)
    np.testing.assert_allclose(low, [1 + 3.5 * 0.5, 2 + 3.5, 3 - 0.5 * 2])
    np.testing.assert_allclose(high, [1 + 6.5 * 0.5, 2 + 5.5, 3 + 0.5 * 2])


def test_a_patient_without_lesions_gets_the_rate_among_such_patients(tmp_path):
    patient = _write(tmp_path, [_lesion(0.4, 1.0, (0, 0, 0))]).patient
    assert (patient.label, patient.probability) == (0, POINT.no_lesion_probability)


def test_tables_hold_one_row_per_lesion_and_per_case(tmp_path):
    _write(tmp_path, [_lesion(0.9, 1.0, (0, 0, 0)), _lesion(0.6, 0.2, (2, 2, 2))], "b")
    _write(tmp_path, [], "a")
    write_cohort_tables(tmp_path)
    lesions = pd.read_csv(tmp_path / "lesions.csv")
    patients = pd.read_csv(tmp_path / "patients.csv")
    assert lesions["case"].tolist() == ["b", "b"]
    assert lesions["z1"].tolist() == [1, 3]
    assert set(lesions["mean_hu"]) == {350.0} and set(lesions["mask_quality"]) == {0.7}
    assert patients["case"].tolist() == ["a", "b"]
    assert patients["n_lesions"].tolist() == [0, 2]
    assert patients["label"].tolist() == [0, 1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    for fold in range(2):
        _save_fold(folder / f"fold_{fold}", seed=fold, threshold=0.3 + 0.2 * fold)
    return folder


def _save_fold(folder, seed, threshold=0.5, **plan):
    torch.manual_seed(seed)
    plan = make_plan(**plan)
    write_json(folder / "plan.json", plan)
    write_json(
        folder / "operating_point.json", POINT.model_copy(update={"score_threshold": threshold})
    )
    model = build_model(plan.network)
    save_checkpoint(folder, Progress(1, 1, 1, seed), model, model, {})


def test_an_ensemble_takes_all_folds_and_the_mean_of_their_thresholds(trained):
    ensemble = load_ensemble(find_folds(trained, None), CPU)
    assert len(ensemble.models) == 2
    assert ensemble.operating_point.score_threshold == pytest.approx(0.4)
    assert not any(model.training for model in ensemble.models)


def test_a_fold_folder_is_a_model_by_itself(trained):
    assert find_folds(trained / "fold_1", None) == [trained / "fold_1"]
    assert find_folds(trained, [1]) == [trained / "fold_1"]


def test_a_model_on_all_cases_predicts_when_asked_or_when_it_is_alone(trained, tmp_path):
    whole = shutil.copytree(trained, tmp_path / "model")
    shutil.copytree(whole / "fold_0", whole / "fold_all")
    assert [path.name for path in find_folds(whole, None)] == ["fold_0", "fold_1"]
    assert find_folds(whole, ["all"]) == [whole / "fold_all"]
    for fold in (0, 1):
        shutil.rmtree(whole / f"fold_{fold}")
    assert find_folds(whole, None) == [whole / "fold_all"]


@pytest.mark.parametrize("folds", [[0, 4], [7]], ids=str)
def test_missing_folds_are_named(trained, folds):
    with pytest.raises(ModelError, match=f"expected fold_{folds[-1]}"):
        find_folds(trained, folds)


@pytest.mark.parametrize("name", FOLD_FILES)
@pytest.mark.parametrize("harm", ["missing", "truncated"])
def test_a_damaged_fold_is_refused_by_the_name_of_its_file(tmp_path, name, harm):
    _save_fold(tmp_path, 0)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    if harm == "truncated":
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=name):
        load_fold(tmp_path, CPU)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    _save_fold(tmp_path, 0)
    plan = json.loads((tmp_path / "plan.json").read_text())
    plan["network"]["widths"] = [4, 6]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(ModelError, match="does not fit"):
        load_fold(tmp_path, CPU)


def test_folds_of_different_plans_do_not_predict_together(tmp_path):
    _save_fold(tmp_path / "fold_0", 0)
    _save_fold(tmp_path / "fold_1", 0, spacing_mm=(2.0, 1.0, 1.0))
    with pytest.raises(ModelError, match="spacing_mm"):
        load_ensemble(find_folds(tmp_path, None), CPU)


@pytest.fixture
def scans(tmp_path):
    for case in ("a", "b c"):
        scan = add_ball(tissue((12, 16, 16)), (8, 8, 6), 3)
        write_volume(tmp_path / "in" / f"{case}_0000.nii.gz", scan)
    return tmp_path / "in"


def _run(scans, model, *more):
    flags = ["-i", scans, "-o", scans.parent / "out", "-m", model, "-device", "cpu", *more]
    return command.main([str(flag) for flag in flags])


def test_the_command_writes_every_case_the_tables_and_a_report(scans, trained):
    assert _run(scans, trained, "--threshold", "0.0") == 0
    out = scans.parent / "out"
    assert set(pd.read_csv(out / "patients.csv")["case"]) == {"a", "b c"}
    assert read_json(out / "b c.json", CasePrediction).score_threshold == 0
    assert (
        read_geometry(out / "b c.nii.gz").mismatch(read_geometry(scans / "a_0000.nii.gz")) is None
    )
    report = read_json(out / "run_report.json", RunReport)
    assert (report.cases_done, report.cases_failed, report.device) == (2, 0, "cpu")
    stages = ["read", "preprocess", "network", "describe", "merge", "draw", "write"]
    for case in ("a", "b c"):
        cost = report.costs[case]
        assert list(cost.seconds) == stages and min(cost.seconds.values()) >= 0
        assert (cost.windows, cost.windows_left_out, cost.notes) == (1, 0, ())
    assert not (out / "failed_cases.json").exists()


def test_a_case_that_fails_is_listed_and_the_others_are_done(scans, trained):
    (scans / "b c_0000.nii.gz").write_bytes(b"broken")
    assert _run(scans, trained, "-f", "0") == 3
    (failed,) = json.loads((scans.parent / "out" / "failed_cases.json").read_text())
    assert failed["case"] == "b c"
    assert (scans.parent / "out" / "a.json").is_file()


def test_results_are_only_touched_when_asked(scans, trained):
    assert _run(scans, trained / "fold_0") == 0
    result = scans.parent / "out" / "a.json"
    before = result.stat().st_mtime_ns
    assert _run(scans, trained / "fold_0") == 2
    (scans.parent / "out" / "b c.json").unlink()
    assert _run(scans, trained / "fold_0", "--continue") == 0
    assert result.stat().st_mtime_ns == before
    assert (scans.parent / "out" / "b c.json").is_file()
    assert _run(scans, trained / "fold_0", "--overwrite") == 0
    assert result.stat().st_mtime_ns > before


def test_parts_share_a_folder_and_divide_the_cases(scans, trained):
    for part in range(2):
        parts = ("-num_parts", "2", "-part_id", part)
        assert _run(scans, trained / "fold_0", *parts) == 0
        report = f"run_report_part{part}of2.json"
        assert read_json(scans.parent / "out" / report, RunReport).cases_done == 1
    assert len(pd.read_csv(scans.parent / "out" / "patients.csv")) == 2


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["-o", "IN/out"], "input folder"),
        (["-i", "IN/nothing"], "does not exist"),
        (["-m", "IN"], "no fold"),
        (["-num_parts", "2", "-part_id", "2"], "part_id"),
        (["-device", "gpu9"], "gpu9"),
    ],
    ids=str,
)
def test_wrong_flags_are_refused_before_any_work(scans, trained, flags, complaint, capsys):
    assert _run(scans, trained, *[flag.replace("IN", str(scans)) for flag in flags]) == 2
    assert complaint in capsys.readouterr().err
    assert not (scans.parent / "out").exists()
