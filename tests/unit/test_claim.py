"""The CLAIM checklist: what is known stands there, the rest is open."""

import json
import re

import pytest

from bonemet_auto.commands.evaluate import main
from bonemet_auto.evaluation.evaluate import evaluate_folders
from bonemet_auto.report.claim import write_checklist
from bonemet_auto.report.model_card import TO_FILL_IN
from bonemet_auto.result_schema import RunReport
from bonemet_auto.schema import write_json
from tests.unit.test_evaluation_folders import (
    LESION,
    SECOND,
    write_prediction,
    write_reference,
)


@pytest.fixture
def folders(tmp_path):
    """A positive, a negative and a healthy patient, one of unknown source, and a stranger."""
    ref, pred = tmp_path / "labelsTs", tmp_path / "pred"
    write_reference(ref, "a", {1: LESION, 2: SECOND}, {"1": 1, "2": None}, patient_id="P")
    write_reference(ref, "b", {1: LESION}, {"1": 0})
    write_reference(ref, "c", {1: LESION}, {"1": None})
    write_reference(ref, "healthy", {}, {})
    for case in ("a", "b", "c", "healthy", "stranger"):
        found = {} if case == "healthy" else {1: LESION}
        scores = {1: (0.9, 0.8)} if found else {}
        write_prediction(pred, case, found, scores, (0.72, 1))
    return pred, ref


def items(text):
    found = re.split(r"^\*\*(\d+)\. ", text, flags=re.M)
    return dict(zip(map(int, found[1::2]), found[2::2], strict=True))


def test_counts_labels_and_thresholds_are_filled_in_and_the_rest_is_open(folders, tmp_path):
    evaluation = evaluate_folders(*folders, n_bootstrap=5)
    path = write_checklist(folders[0], evaluation, "external", tmp_path)
    found = items(path.read_text("utf-8"))
    assert list(found) == list(range(1, 45))
    assert "1 of 4 patients of unknown source" in found[12]
    assert "2 of 4 annotated lesions of unknown source" in found[12]
    assert "1 predicted scans had no reference" in found[12]
    assert "4 evaluated (4 patients), 1 without a reference" in found[35]
    assert "1 patients, not: 2, unknown: 1" in found[36]
    assert "lesion score 0.5, patient 0.5" in found[28]
    assert "Missed lesions: 1 of 4; false positives: 0" in found[39]
    assert "This one" in found[33] and "This one" not in found[32]
    assert "\n\n| | value |" in found[37] and found[37].count("\n| ") == 9
    by_people = {2, 3, 4, 5, 6, 7, 8, 14, 15, 16, 18, 22, 27, 30, 34, 40, 41, 42, 44}
    assert all(TO_FILL_IN in found[number] for number in by_people)


def test_software_is_named_only_where_it_is_known(folders, tmp_path):
    pred, _ = folders
    evaluation = evaluate_folders(*folders, n_bootstrap=5)
    unknown = write_checklist(pred, evaluation, "internal", tmp_path).read_text("utf-8")
    assert "software of the prediction" in unknown and "ConvNeXt" not in unknown
    run = RunReport(
        command="bonemet_predict", bonemet_version="9.8.7", versions={"torch": "6.5"},
        device="cuda:3", seed=None, started="", elapsed_s=1, cases_done=5, cases_failed=1,
        flags={"folds_used": "/secret/model", "networks": "5", "operating_point": "a rule"},
    )  # fmt: skip
    write_json(pred / "run_report.json", run)
    (pred / "failed_cases.json").write_text(json.dumps([{"case": "x", "reason": "", "fix": ""}]))
    known = items(write_checklist(pred, evaluation, "internal", tmp_path).read_text("utf-8"))
    assert "bonemet_auto 9.8.7, torch 6.5, on cuda:3" in known[23]
    assert known[27].startswith("Ensembling.** 5 networks")
    assert "1 failed in prediction" in known[35] and "a rule" in known[26]
    assert not any("secret" in text for text in known.values())


def test_a_cohort_without_lesions_or_estimates_has_a_checklist(tmp_path):
    write_reference(tmp_path / "ref", "only", {}, {})
    write_prediction(tmp_path / "pred", "only", {}, {})
    flags = ["--pred", str(tmp_path / "pred"), "--ref", str(tmp_path / "ref")]
    assert main([*flags, "--out", str(tmp_path / "out")]) == 0
    found = items((tmp_path / "out" / "claim_checklist.md").read_text("utf-8"))
    assert "Lesions: 0 (0 lung metastases, 0 other, 0 unknown)." in found[36]
    assert "patient none" in found[28] and "not defined" in found[37]
