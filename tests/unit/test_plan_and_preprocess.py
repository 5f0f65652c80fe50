import json

import numpy as np
import pytest

import planners
from bonemet_auto.commands.plan_and_preprocess import main
from tests.cohort import make_scan, write_case, write_cohort

NAME = "Dataset001_Tiny"


@pytest.fixture
def root(tmp_path):
    write_cohort(tmp_path / "raw" / NAME, 5)
    return tmp_path


def run(root, *flags):
    return main(["-d", "1", "--root", str(root), "-np", "1", "--planner", "fast", *flags])


def break_a_case(root):
    path = root / "raw" / NAME / "imagesTr" / "case_002_0000.nii.gz"
    path.write_bytes(path.read_bytes()[:200])
    return path


def test_a_dataset_is_planned_and_preprocessed_and_a_second_run_changes_nothing(root, capsys):
    assert run(root) == 0
    out = root / "preprocessed" / NAME
    assert len(list((out / "default" / "cases").glob("case_*_seg.b2nd"))) == 5
    assert "5 cases of 5 patients (2 lung metastasis, 3 other" in capsys.readouterr().out
    before = {path: path.read_bytes() for path in out.rglob("*.*") if path.is_file()}
    assert run(root) == 0
    assert {path: path.read_bytes() for path in out.rglob("*.*") if path.is_file()} == before


def test_faults_are_shown_and_nothing_is_planned(root, capsys):
    path = break_a_case(root)
    assert run(root) == 2
    shown = capsys.readouterr().out
    assert "case_002" in shown and str(path) in shown and "--skip-bad-cases" in shown
    # Remembered, so that only the mended case is read again.
    assert [path.name for path in root.glob("preprocessed/*/*")] == ["inspection.json"]


def test_bad_cases_can_be_left_out_and_are_listed(root):
    break_a_case(root)
    assert run(root, "--plan-only", "--skip-bad-cases") == 3
    out = root / "preprocessed" / NAME
    (failed,) = json.loads((out / "failed_cases.json").read_text())
    assert failed["case"] == "case_002" and "truncated" in failed["reason"] and failed["fix"]
    assert "case_002" not in (out / "splits.json").read_text()
    assert not (out / "default" / "cases").exists()
    write_cohort(root / "raw" / NAME, 5)
    assert run(root, "--plan-only") == 0
    assert not (out / "failed_cases.json").exists()
    assert "case_002" in (out / "splits.json").read_text()


def test_folds_made_by_hand_are_kept_and_leaking_ones_refused(root, capsys):
    assert run(root, "--plan-only") == 0
    path = root / "preprocessed" / NAME / "splits.json"
    edited = {"format_version": 1, "seed": 0, "validation": [["case_000"], ["case_001"]]}
    path.write_text(json.dumps(edited))
    assert run(root, "--plan-only") == 0
    assert json.loads(path.read_text()) == edited
    hu, ids = make_scan(np.random.default_rng(9))
    write_case(root / "raw" / NAME, "same", hu, ids, {1: 0, 2: 0}, patient_id="case_000")
    assert run(root, "--plan-only") == 2
    assert "patients with cases in training and in validation" in capsys.readouterr().err


def test_an_edited_plan_can_be_kept(root):
    assert run(root, "--plan-only", "--spacing", "5", "3", "3", "--plan-name", "coarse") == 0
    path = root / "preprocessed" / NAME / "coarse" / "plan.json"
    plan = json.loads(path.read_text())
    assert plan["spacing_mm"] == [5.0, 3.0, 3.0] and plan["name"] == "coarse"
    plan["training"]["iterations"] = 77
    path.write_text(json.dumps(plan))
    assert run(root, "--plan-only", "--keep-plan", "--plan-name", "coarse") == 0
    kept = path.read_bytes()
    assert run(root, "--keep-plan", "--plan-name", "coarse", "--planner", "large") == 2
    assert path.read_bytes() == kept
    assert json.loads(path.read_text())["training"]["iterations"] == 77


@pytest.mark.parametrize(
    ("flags", "said"),
    [(["--planner", "huge"], "default, fast"), (["-np", "0"], "-np 0"), (["-d", "7"], NAME)],
)
def test_impossible_flags_are_refused_in_a_line(root, capsys, flags, said):
    assert run(root, "--plan-only", *flags) == 2
    shown = capsys.readouterr().err.strip().splitlines()[-1]
    assert shown.startswith("bonemet_plan_and_preprocess: ") and said in shown


def test_a_foreign_package_called_planners_is_named(root, capsys, monkeypatch):
    monkeypatch.delattr(planners, "OWNER")
    assert run(root, "--plan-only") == 2
    assert str(planners.__file__) in capsys.readouterr().err


def test_a_plan_that_inherits_is_used_and_not_written_over(root, caplog, capsys):
    assert run(root, "--plan-only") == 0
    path = root / "preprocessed" / "Dataset001_Tiny" / "mine" / "plan.json"
    path.parent.mkdir()
    written = '{"inherits_from": "default", "batch_size": 3}'
    path.write_text(written)
    assert run(root, "--plan-only", "--plan-name", "mine") == 0
    assert path.read_text() == written
    assert "| batch size | 3 |" in (path.parent / "plan.md").read_text()
    assert run(root, "--plan-only", "--plan-name", "mine", "--spacing", "2", "2", "2") == 2
    assert "--spacing" in capsys.readouterr().err and path.read_text() == written
    path.write_text('{"inherits_from": "default", "batch_size": 9999}')
    assert run(root, "--plan-only", "--plan-name", "mine") == 0
    assert "the edited plan needs" in caplog.text
