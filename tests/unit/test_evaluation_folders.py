"""Two folders with answers worked out by hand, and what happens when they do not fit."""

import json

import numpy as np
import pandas as pd
import pytest

from bonemet_auto.commands.evaluate import main
from bonemet_auto.errors import DataError
from bonemet_auto.evaluation.evaluate import evaluate_folders, write_evaluation
from bonemet_auto.evaluation.rules import RULES
from bonemet_auto.evaluation.table import format_table
from bonemet_auto.geometry import Geometry
from bonemet_auto.images import Volume, write_volume

SHAPE = (10, 20, 20)
LESION = np.s_[2:4, 2:6, 2:6]
SHIFTED = np.s_[2:4, 2:6, 4:8]  # IoU 1/3 with LESION
SECOND = np.s_[2:4, 12:16, 12:16]
ELSEWHERE = np.s_[6:8, 8:10, 8:10]
OUTLINES = {
    "nsd_1mm": 0.7543333,
    "case_nsd_1mm": 0.4495175,
    "case_nsd_2mm": 0.5959136,
}
"""Of LESION and SHIFTED, and of the first case, by the program `surface-distance`."""


def write_map(path, lesions, spacing_mm=(2.0, 1.0, 1.0)):
    array = np.zeros(SHAPE, np.uint16)
    for instance, place in lesions.items():
        array[place] = instance
    write_volume(path, Volume(array, Geometry(SHAPE, spacing_mm)))


def write_reference(folder, case, lesions, classes, **patient):
    write_map(folder / f"{case}.nii.gz", lesions)
    text = json.dumps({"instances": classes, **patient})
    (folder / f"{case}.json").write_text(text, encoding="utf-8")


def write_prediction(folder, case, lesions, estimates, patient=None, **grid):
    """`estimates`: id to (score, p_lung); `patient`: (probability, label)."""
    write_map(folder / f"{case}.nii.gz", lesions, **grid)
    record = {
        "format_version": 1,
        "case": case,
        "lesions": [
            {
                "id": each, "score": score, "p_lung_metastasis": p_lung, "volume_mm3": 1.0,
                "box_voxel_zyx": [0, 0, 0, 1, 1, 1], "centroid_lps_mm": [0, 0, 0],
                "corners_lps_mm": [],
            }
            for each, (score, p_lung) in estimates.items()
        ],
        "patient": patient
        and {"probability": patient[0], "label": patient[1], "threshold": 0.5},
        "score_threshold": 0.5,
        "warnings": [],
    }  # fmt: skip
    (folder / f"{case}.json").write_text(json.dumps(record), encoding="utf-8")


@pytest.fixture
def folders(tmp_path):
    ref, pred = tmp_path / "labelsTs", tmp_path / "pred"
    write_reference(ref, "Fall ä 1", {1: LESION, 2: SECOND}, {"1": 1, "2": 0}, patient_id="P1")
    write_reference(ref, "healthy", {}, {})
    write_reference(ref, "later", {5: LESION}, {"5": None}, patient_id="P1", patient=1)
    found = {1: (0.9, 0.8), 2: (0.7, 0.2)}
    write_prediction(pred, "Fall ä 1", {1: SHIFTED, 2: ELSEWHERE}, found, (0.72, 1))
    write_prediction(pred / "candidates", "Fall ä 1", {3: SECOND}, {3: (0.3, 0.1)})
    write_prediction(pred, "healthy", {}, {}, (0.3, 0))
    write_prediction(pred, "later", {}, {}, (0.2, 0))
    return pred, ref


def value(evaluation, group, name):
    return evaluation.figures[group][name].value


def test_every_figure_of_a_small_cohort_is_the_one_worked_out_by_hand(folders, tmp_path):
    pred, ref = folders
    write_evaluation(evaluate_folders(pred, ref, n_bootstrap=50), tmp_path / "out")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    figures = {
        (group, name): figure["value"]
        for group, named in metrics["figures"].items()
        for name, figure in named.items()
    }
    background = 4000 - 64
    expected = {
        ("segmentation", "dsc"): ((32 / 104 + 0) / 2 + 1) / 2,
        ("segmentation", "voxel_sensitivity"): (16 / 64 + 0) / 2,
        ("segmentation", "voxel_specificity"): ((1 - 24 / background + 1) / 2 + 1) / 2,
        ("detection", "sensitivity_iou_0.1"): 1 / 3,
        ("detection", "sensitivity_iou_0.3"): 1 / 3,
        ("detection", "sensitivity_iou_0.5"): 0,
        ("detection", "fp_per_scan"): 1 / 3,
        ("detection", "sensitivity_below_10mm"): 1 / 3,
        ("detection", "sensitivity_10_to_20mm"): None,
        ("detection", "sensitivity_above_20mm"): None,
        ("detection", "sensitivity_at_0.125_fp"): 1 / 3,
        ("detection", "sensitivity_at_0.25_fp"): 1 / 3,
        ("detection", "sensitivity_at_0.5_fp"): 2 / 3,
        ("detection", "sensitivity_at_1_fp"): 2 / 3,
        ("detection", "sensitivity_at_2_fp"): 2 / 3,
        ("detection", "sensitivity_at_4_fp"): 2 / 3,
        ("detection", "sensitivity_at_8_fp"): 2 / 3,
        ("detection", "cpm"): 4 / 7,
        ("detection", "ap_iou_0.1"): 1 / 3 + 1 / 3 * 2 / 3,
        ("detection", "ap_iou_0.3"): 1 / 3 + 1 / 3 * 2 / 3,
        ("detection", "ap_iou_0.5"): 1 / 3 * 1 / 3,
        ("lesion", "dsc_matched"): 0.5,
        ("lesion", "dsc_all"): 0.5 / 3,
        ("lesion", "source_auc"): None,
        ("lesion", "source_ap"): None,
        ("lesion", "source_accuracy"): 1,
        ("lesion", "source_sensitivity"): 1,
        ("lesion", "source_specificity"): None,
        ("lesion", "source_ppv"): 1,
        ("lesion", "source_npv"): None,
        ("lesion", "source_brier"): 0.2**2,
        ("lesion", "source_ece"): 0.2,
        ("lesion", "source_calibration_slope"): None,
        ("lesion", "source_calibration_intercept"): None,
        ("patient", "auc"): 1,
        ("patient", "auc_delong"): 1,
        ("patient", "accuracy"): 1,
        ("patient", "sensitivity"): 1,
        ("patient", "specificity"): 1,
        ("patient", "ap"): 1,
        ("patient", "ppv"): 1,
        ("patient", "npv"): 1,
        ("patient", "ece"): (0.28 + 0.3) / 2,
        ("patient", "calibration_slope"): None,
        ("patient", "calibration_intercept"): -np.log(0.72 / 0.28 * 0.3 / 0.7) / 2,
        ("patient", "brier"): (0.28**2 + 0.3**2) / 2,
    }
    outlines = {
        ("segmentation", "nsd_1mm"): (OUTLINES["case_nsd_1mm"] / 2 + 1) / 2,
        ("segmentation", "nsd_2mm"): (OUTLINES["case_nsd_2mm"] / 2 + 1) / 2,
        ("segmentation", "hd95_mm"): np.sqrt(109),
        ("segmentation", "volume_bias_ml"): (-48 - 64) / 2 / 2 / 1000,
        ("lesion", "nsd_1mm_matched"): OUTLINES["nsd_1mm"],
        ("lesion", "nsd_1mm_all"): OUTLINES["nsd_1mm"] / 3,
        ("lesion", "nsd_2mm_matched"): 1,
        ("lesion", "nsd_2mm_all"): 1 / 3,
        ("lesion", "hd95_mm_matched"): 2,
        ("lesion", "dsc_all_below_10mm"): 0.5 / 3,
        ("lesion", "dsc_all_10_to_20mm"): None,
        ("lesion", "dsc_all_above_20mm"): None,
        # SHIFTED's centre lies behind LESION; the candidate on SECOND comes after two others.
        ("detection", "sensitivity_centre"): 0,
        ("detection", "fp_per_scan_centre"): 2 / 3,
        **{("detection", f"sensitivity_at_{rate}_fp_centre"): 0 for rate in (0.125, 0.25, 0.5)},
        **{("detection", f"sensitivity_at_{rate}_fp_centre"): 1 / 3 for rate in (1, 2, 4, 8)},
        ("detection", "cpm_centre"): 4 / 7 / 3,
        ("detection", "ap_centre"): 1 / 3 * 1 / 3,
    }
    assert figures == pytest.approx(expected | outlines)
    assert metrics["rules"] == RULES
    assert (metrics["n_scans"], metrics["n_patients"]) == (3, 2)


def test_tables_hold_one_row_per_scan_and_per_lesion_or_false_positive(folders, tmp_path):
    evaluation = evaluate_folders(*folders, n_bootstrap=5)
    write_evaluation(evaluation, tmp_path)
    scans = pd.read_csv(tmp_path / "patients.csv").set_index("case")
    assert scans.loc["healthy", ["patient_id", "dsc", "patient_label"]].tolist() == [
        "healthy",
        1,
        0,
    ]
    lesions = pd.read_csv(tmp_path / "lesions.csv")
    keys = lesions[["case", "outcome", "reference_id", "predicted_id"]].values.tolist()
    assert keys == [
        ["Fall ä 1", "found", 1, 1],
        ["Fall ä 1", "missed", 2, 0],
        ["Fall ä 1", "false_positive", 0, 2],
        ["later", "missed", 5, 0],
    ]
    assert lesions["volume_mm3"].tolist() == [64, 64, 16, 64]
    assert lesions["diameter_mm"][0] == pytest.approx((6 * 64 / np.pi) ** (1 / 3))


def test_equal_folders_and_seed_give_equal_bytes(folders, tmp_path):
    for name in ("first", "second"):
        write_evaluation(evaluate_folders(*folders, n_bootstrap=20, seed=3), tmp_path / name)
    for file in ("metrics.json", "patients.csv", "lesions.csv"):
        first, second = tmp_path / "first" / file, tmp_path / "second" / file
        assert first.read_bytes() == second.read_bytes()


def test_an_undefined_figure_says_why(folders):
    figures = evaluate_folders(*folders, n_bootstrap=5).figures
    assert figures["lesion"]["source_auc"].note == "all 1 found lesions are positive"
    assert "1 of 3 scans left out (empty reference)" in (
        figures["segmentation"]["voxel_sensitivity"].note
    )
    assert figures["detection"]["sensitivity_above_20mm"].n == 0
    assert {name: figures["lesion"][f"source_{name}"].note for name in ("specificity", "npv")} == {
        "specificity": "no negative found lesions",
        "npv": "no found lesions called negative",
    }
    slope = figures["patient"]["calibration_slope"]
    assert slope.note == "infinite: a threshold parts the classes"


def test_a_cohort_of_one_healthy_scan_is_ordinary(tmp_path):
    write_reference(tmp_path / "ref", "only", {}, {})
    write_prediction(tmp_path / "pred", "only", {}, {}, (0.5, 0))
    evaluation = evaluate_folders(tmp_path / "pred", tmp_path / "ref")
    assert value(evaluation, "segmentation", "dsc") == 1
    assert value(evaluation, "detection", "fp_per_scan") == 0
    assert evaluation.figures["detection"]["cpm"].note == "no annotated lesions"
    assert evaluation.figures["patient"]["auc"].note == "all 1 patients are negative"
    assert "NaN" not in format_table(evaluation)
    assert "nan" not in format_table(evaluation)
    write_evaluation(evaluation, tmp_path / "out")


def test_predictions_without_patient_estimates_leave_the_patient_figures_out(tmp_path):
    write_reference(tmp_path / "ref", "a", {1: LESION}, {"1": 1})
    write_prediction(tmp_path / "pred", "a", {1: LESION}, {1: (0.9, 0.5)})
    evaluation = evaluate_folders(tmp_path / "pred", tmp_path / "ref", n_bootstrap=5)
    assert evaluation.figures["patient"]["accuracy"].value is None
    assert value(evaluation, "segmentation", "dsc") == 1


@pytest.mark.parametrize(
    ("labels", "expected"), [((1, None), 1), ((0, None), None), ((0, 0), 0), ((0, 1), 1)]
)
def test_a_patient_is_positive_if_any_scan_is_and_else_unknown_if_any_is(
    tmp_path, labels, expected
):
    for case, label in zip("ab", labels, strict=True):
        write_reference(tmp_path / "ref", case, {}, {}, patient=label, patient_id="P")
        write_prediction(tmp_path / "pred", case, {}, {}, (0.6, 0))
    figures = evaluate_folders(tmp_path / "pred", tmp_path / "ref", n_bootstrap=5).figures
    known = {name: figures["patient"][name].n for name in ("accuracy", "sensitivity")}
    assert known == {"accuracy": expected is not None, "sensitivity": expected == 1}


def test_the_positive_class_is_the_one_that_dataset_json_names(folders):
    pred, ref = folders
    info = {"name": "x", "channel_names": {"0": "CT"}, "numTraining": 1}
    info["labels"] = {"lung_metastasis": 0, "other": 1}
    (ref.parent / "dataset.json").write_text(json.dumps(info), encoding="utf-8")
    lesions = evaluate_folders(pred, ref, n_bootstrap=5).lesions
    assert lesions["is_lung"].tolist()[:2] == [False, True]


def test_all_references_without_a_prediction_are_named_and_refused(folders, capsys):
    pred, ref = folders
    (pred / "healthy.nii.gz").unlink()
    (pred / "later.nii.gz").unlink()
    assert main(["--pred", str(pred), "--ref", str(ref)]) == 2
    assert "healthy, later" in capsys.readouterr().err


def test_all_cases_on_another_grid_are_named_and_refused(folders):
    pred, ref = folders
    write_prediction(pred, "healthy", {}, {}, (0.3, 0), spacing_mm=(3.0, 1.0, 1.0))
    write_prediction(pred, "later", {}, {}, (0.3, 0), spacing_mm=(1.0, 1.0, 1.0))
    with pytest.raises(DataError, match=r"2 of 3 cases.*'healthy'.*spacing.*'later'"):
        evaluate_folders(pred, ref)


def test_ids_that_no_record_describes_or_two_records_share_are_refused(folders):
    pred, ref = folders
    write_prediction(pred, "later", {4: LESION}, {}, (0.3, 0))
    with pytest.raises(DataError, match=r"ids \[4\] are in the map"):
        evaluate_folders(pred, ref)
    write_prediction(pred, "later", {4: LESION}, {4: (0.9, 0.5)}, (0.3, 0))
    write_prediction(pred / "candidates", "later", {4: LESION}, {4: (0.9, 0.5)})
    with pytest.raises(DataError, match=r"ids \[4\] are predicted twice"):
        evaluate_folders(pred, ref)


def test_the_command_prints_the_publications_figures_and_names_what_it_left_out(
    folders, tmp_path, capsys, caplog
):
    pred, ref = folders
    write_prediction(pred, "stranger", {}, {}, (0.3, 0))
    out = tmp_path / "out"
    assert main(["--pred", str(pred), "--ref", str(ref), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "0.849   0.577" in printed
    assert "stranger" in caplog.text
    assert (out / "metrics.json").is_file()
