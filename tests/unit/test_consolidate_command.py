"""From trained folds on disk to one model folder, and predictions with it."""

import json
import os
import shutil

import pytest
import torch

from bonemet_auto.commands import consolidate, plan_and_preprocess, predict, train
from bonemet_auto.errors import ModelError
from bonemet_auto.files import sha256_file
from bonemet_auto.inference.load import load_fold
from bonemet_auto.inference.package import read_package
from bonemet_auto.plan_schema import Plan
from bonemet_auto.result_schema import CasePrediction, ConsolidatedModel, OperatingPoint
from bonemet_auto.schema import read_json, write_json
from tests.cohort import write_cohort

NAME = "Dataset001_Tiny"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two of five folds."""
    root = tmp_path_factory.mktemp("trained")
    raw = write_cohort(root / "raw" / NAME, n_cases=10)
    described = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps(described | {"curator": "case_0 is mine"}))
    at = ["--root", str(root)]
    flags = ["-d", "1", *at, "--planner", "fast", "--patch-size", "16", "16", "24"]
    assert plan_and_preprocess.main(flags) == 0
    for fold in ("1", "2"):
        assert train.main(["1", fold, *at, "--iterations", "60", "--workers", "0"]) == 0
    return root


@pytest.fixture
def root(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "root")


@pytest.fixture(scope="module")
def consolidated(trained, tmp_path_factory):
    root = shutil.copytree(trained, tmp_path_factory.mktemp("consolidated") / "root")
    assert consolidate.main(["1", "--root", str(root)]) == 0
    return root


def results(root):
    return root / "results" / NAME / "default"


def test_a_model_folder_holds_all_and_its_checksums(consolidated):
    folder = results(consolidated) / "model"
    model = read_json(folder / "model.json", ConsolidatedModel)
    weights = {f"fold_{fold}.safetensors" for fold in (1, 2)}
    files = {"plan.json", "dataset.json", "operating_point.json"}
    files |= weights | {"cross_validation.txt"}
    assert set(model.sha256) == files
    assert {path.name for path in folder.iterdir()} == files | {"model.json"}
    assert all(sha256_file(folder / name) == known for name, known in model.sha256.items())
    assert model.folds == (1, 2) and model.cases == 4 and len(model.temperatures) == 2
    assert "paper" in (folder / "cross_validation.txt").read_text()


def test_a_model_tells_of_its_training_data_without_naming_a_case(consolidated):
    folder = results(consolidated) / "model"
    scope = read_json(folder / "plan.json", Plan).scope
    assert (scope.cases, scope.patients, sum(scope.lesions.values())) == (10, 10, 18)
    dataset = json.loads((folder / "dataset.json").read_text())
    assert "curator" not in dataset and dataset["numTraining"] == 10
    for path in folder.glob("*.*"):
        assert b"case_0" not in path.read_bytes(), path.name


def test_the_scope_of_folds_that_lack_one_is_taken_from_their_data(root):
    for fold in results(root).glob("fold_*"):
        plan = read_json(fold / "plan.json", Plan)
        write_json(fold / "plan.json", plan.model_copy(update={"scope": None}))
    assert consolidate.main(["1", "--root", str(root)]) == 0
    assert read_json(results(root) / "model" / "plan.json", Plan).scope.cases == 10


def test_every_held_out_case_is_written_by_settings_of_the_other_fold(consolidated):
    out = results(consolidated) / "cross_validation"
    splits = json.loads((consolidated / "preprocessed" / NAME / "splits.json").read_text())
    expected = {case for fold in (1, 2) for case in splits["validation"][fold]}
    assert {path.stem for path in out.glob("case_*.json")} == expected
    thresholds = {
        fold: {
            read_json(out / f"{case}.json", CasePrediction).score_threshold
            for case in splits["validation"][fold]
        }
        for fold in (1, 2)
    }
    assert all(len(found) == 1 for found in thresholds.values())


def test_the_networks_are_those_of_the_folds_with_cooled_sources(consolidated):
    ensemble = read_package(results(consolidated) / "model", CPU)
    model = read_json(results(consolidated) / "model" / "model.json", ConsolidatedModel)
    torch.manual_seed(0)
    images = torch.randn(1, 1, *ensemble.plan.patch_size)
    boxes = [torch.tensor([[2.0, 2, 2, 9, 9, 9]])]
    for fold, ours, temperature in zip(
        model.folds, ensemble.models, model.temperatures, strict=True
    ):
        _, theirs, _ = load_fold(results(consolidated) / f"fold_{fold}", CPU)
        (one,), (other,) = ours.outline(images, boxes), theirs.outline(images, boxes)
        assert torch.equal(one.masks, other.masks) and torch.equal(one.scores, other.scores)
        cooled = torch.sigmoid(torch.logit(other.p_lung) / temperature)
        torch.testing.assert_close(one.p_lung, cooled, rtol=1e-4, atol=1e-5)


def test_prediction_takes_the_consolidated_model_unless_folds_are_named(
    consolidated, tmp_path, caplog
):
    scan = next((consolidated / "raw" / NAME / "imagesTr").glob("case_000*"))
    point = read_json(results(consolidated) / "model" / "operating_point.json", OperatingPoint)
    with caplog.at_level("INFO"):
        for given in (["-m", str(results(consolidated) / "model")], ["-d", "1"]):
            out = tmp_path / given[0].strip("-")
            flags = ["-i", str(scan), "-o", str(out), "--root", str(consolidated)]
            caplog.clear()
            assert predict.main([*flags, *given]) == 0
            assert "consolidated model" in caplog.text and "2 fold(s)" in caplog.text
            written = read_json(out / "case_000.json", CasePrediction)
            assert written.score_threshold == point.score_threshold
        caplog.clear()
        flags = ["-i", str(scan), "-o", str(tmp_path / "f"), "--root", str(consolidated)]
        assert predict.main([*flags, "-d", "1", "-f", "1"]) == 0
        assert "consolidated" not in caplog.text
    model = ["-m", str(results(consolidated) / "model"), "-f", "1"]
    assert predict.main([*flags[:3], str(tmp_path / "g"), *model]) == 2


def test_a_model_that_is_older_than_a_fold_is_taken_with_a_warning(root, tmp_path, caplog):
    assert consolidate.main(["1", "--root", str(root)]) == 0
    scan = next((root / "raw" / NAME / "imagesTr").glob("case_000*"))
    flags = ["-i", str(scan), "-d", "1", "--root", str(root)]
    assert predict.main([*flags, "-o", str(tmp_path / "a")]) == 0
    assert "was trained after" not in caplog.text
    made = (results(root) / "model" / "model.json").stat().st_mtime
    os.utime(results(root) / "fold_2" / "operating_point.json", (made + 5, made + 5))
    assert predict.main([*flags, "-o", str(tmp_path / "b")]) == 0
    assert "fold_2 was trained after" in caplog.text


def test_missing_folds_are_named_with_what_is_lost(root, caplog):
    assert consolidate.main(["1", "--root", str(root)]) == 0
    assert "fold 0, 3, 4 not trained" in caplog.text and "6 cases" in caplog.text


def test_a_model_is_replaced_only_when_told(root, capsys):
    at = ["1", "--root", str(root)]
    assert consolidate.main(at) == 0
    assert consolidate.main(at) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert consolidate.main([*at, "--overwrite"]) == 0


def test_what_a_person_put_beside_a_model_stays_when_it_is_replaced(root, caplog):
    at, model = ["1", "--root", str(root)], results(root) / "model"
    assert consolidate.main(at) == 0
    assert "kept" not in caplog.text
    (model / "MODEL_CARD.md").write_text("all filled in", encoding="utf-8")
    (model / "figures").mkdir()
    (model / "figures" / "roc.png").write_bytes(b"a curve")
    (model / "plan.json").write_text("{}", encoding="utf-8")
    (model / "fingerprint.json").write_text("names cases, as models once did", encoding="utf-8")
    shutil.rmtree(results(root) / "fold_2")
    assert consolidate.main([*at, "--overwrite"]) == 0
    assert (model / "MODEL_CARD.md").read_text(encoding="utf-8") == "all filled in"
    assert (model / "figures" / "roc.png").read_bytes() == b"a curve"
    assert f"MODEL_CARD.md, figures kept in {model}" in caplog.text
    assert not (model / "fold_2.safetensors").exists(), "of the model that was replaced"
    assert not (model / "cross_validation.txt").exists()
    assert not (model / "fingerprint.json").exists(), "it names training cases"
    assert read_package(model, CPU).models


def test_one_fold_gives_a_model_without_cross_validation(root, caplog):
    at = ["1", "--root", str(root)]
    assert consolidate.main(at) == 0
    shutil.rmtree(results(root) / "fold_2")
    assert consolidate.main([*at, "--overwrite"]) == 0
    assert not (results(root) / "cross_validation.txt").exists(), "those of both folds"
    assert "cannot be cross-validated" in caplog.text
    assert not (results(root) / "model" / "cross_validation.txt").exists()
    assert read_package(results(root) / "model", CPU).models


def test_without_a_finished_fold_there_is_nothing_to_consolidate(root, capsys):
    for fold in (1, 2):
        (results(root) / f"fold_{fold}" / "operating_point.json").unlink()
    assert consolidate.main(["1", "--root", str(root)]) == 2
    assert "no finished fold" in capsys.readouterr().err


def test_folds_of_different_plans_are_refused_and_leave_no_model(root, capsys):
    path = results(root) / "fold_2" / "plan.json"
    path.write_text(path.read_text().replace('"weight_decay": 0.05', '"weight_decay": 0.04'))
    assert consolidate.main(["1", "--root", str(root)]) == 2
    assert "another plan" in capsys.readouterr().err
    assert not (results(root) / "model").exists()


def test_folds_of_different_splits_are_refused(root, capsys):
    one, other = (results(root) / f"fold_{fold}" / "validation" for fold in (1, 2))
    case = next((one / "evidence").iterdir()).stem
    for name in (f"evidence/{case}.npz", f"candidates/{case}.json"):
        shutil.copy(one / name, other / name)
    assert consolidate.main(["1", "--root", str(root)]) == 2
    assert f"{case} (folds [1, 2])" in capsys.readouterr().err


def test_evidence_that_is_broken_is_named_and_resuming_brings_it_back(root, capsys):
    path = next((results(root) / "fold_1" / "validation" / "evidence").iterdir())
    for harm in (lambda: path.write_bytes(path.read_bytes()[:-50]), path.unlink):
        harm()
        assert consolidate.main(["1", "--root", str(root)]) == 2
        said = capsys.readouterr().err
        assert str(path) in said and "Validate the fold again" in said
    assert train.main(["1", "1", "--root", str(root), "--resume", "--workers", "0"]) == 0
    assert consolidate.main(["1", "--root", str(root)]) == 0


def test_masks_are_drawn_as_the_model_says(consolidated, tmp_path):
    model = shutil.copytree(results(consolidated) / "model", tmp_path / "model")
    scan = next((consolidated / "raw" / NAME / "imagesTr").glob("case_000*"))
    volumes = []
    for number, threshold in enumerate((0.2, 0.5, 0.8)):
        point = read_json(model / "operating_point.json", OperatingPoint)
        drawing = {"mask_threshold": threshold, "score_threshold": 0.0}
        write_json(model / "operating_point.json", point.model_copy(update=drawing))
        record = read_json(model / "model.json", ConsolidatedModel)
        known = record.sha256 | {
            "operating_point.json": sha256_file(model / "operating_point.json")
        }
        write_json(model / "model.json", record.model_copy(update={"sha256": known}))
        out = tmp_path / str(number)
        assert predict.main(["-i", str(scan), "-o", str(out), "-m", str(model)]) == 0
        found = read_json(out / "case_000.json", CasePrediction).lesions
        volumes.append(sum(lesion.volume_mm3 for lesion in found))
    assert volumes[0] > volumes[1] > volumes[2]


def test_a_fold_trained_anew_forgets_what_it_held_out_before(root):
    held_out = results(root) / "fold_1" / "validation"
    for name in ("old.json", "candidates/old.nii.gz", "evidence/old.npz"):
        (held_out / name).touch()
    flags = ["--root", str(root), "--iterations", "2", "--workers", "0", "--overwrite"]
    assert train.main(["1", "1", *flags]) == 0
    assert not list(held_out.rglob("old*"))


@pytest.mark.parametrize("name", ["fold_1.safetensors", "plan.json", "operating_point.json"])
@pytest.mark.parametrize("harm", ["cut", "gone"])
def test_a_harmed_model_is_refused(consolidated, tmp_path, name, harm):
    model = shutil.copytree(results(consolidated) / "model", tmp_path / "model")
    path = model / name
    path.write_bytes(path.read_bytes()[:-20]) if harm == "cut" else path.unlink()
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        read_package(model, CPU)
