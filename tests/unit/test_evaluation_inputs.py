"""Plain masks and nnDetection's files as references and predictions."""

import json
import pickle

import numpy as np
import pytest

from bonemet_auto.commands.evaluate import main
from bonemet_auto.errors import DataError
from bonemet_auto.evaluation.evaluate import evaluate_folders, write_evaluation
from bonemet_auto.evaluation.folders import open_predictions
from bonemet_auto.report.html import write_report
from tests.unit.test_evaluation_folders import (
    ELSEWHERE,
    LESION,
    SECOND,
    SHIFTED,
    value,
    write_map,
    write_prediction,
    write_reference,
)


def write_scores(path, scores):
    path.write_text(json.dumps(scores), encoding="utf-8")


def painted_box(place):
    """Slices as a box of nnDetection: z0 y0 z1 y1 x0 x1, first and last voxel outside."""
    z, y, x = place
    return [z.start - 1, y.start - 1, z.stop, y.stop, x.start - 1, x.stop]


def test_masks_without_json_are_lesions_by_connected_component(tmp_path):
    ref, pred = tmp_path / "ref", tmp_path / "pred"
    write_map(ref / "a.nii.gz", {1: LESION, 2: SECOND})
    write_map(pred / "a.nii.gz", {7: LESION})
    write_map(ref / "b.nii.gz", {})
    write_map(pred / "b.nii.gz", {})
    evaluation = evaluate_folders(pred, ref, n_bootstrap=5)
    assert value(evaluation, "detection", "sensitivity_iou_0.5") == 0.5
    assert value(evaluation, "segmentation", "dsc") == (128 / 192 + 1) / 2 == pytest.approx(5 / 6)
    assert evaluation.lesions["score"].tolist()[0] == 1
    assert evaluation.lesions["is_lung"].isna().all()
    assert evaluation.figures["patient"]["accuracy"].value is None
    assert [note.split(":")[0] for note in evaluation.notes] == [str(ref), str(pred)]


def test_two_parts_of_one_value_are_two_lesions_and_touching_values_stay_apart(tmp_path):
    ref, pred = tmp_path / "ref", tmp_path / "pred"
    beside = np.s_[2:4, 2:6, 6:9]
    write_map(ref / "a.nii.gz", {1: LESION, 2: beside})
    write_map(pred / "a.nii.gz", {1: LESION, 2: beside})
    both = np.zeros((10, 20, 20), bool)
    both[LESION] = both[SECOND] = True
    write_map(ref / "b.nii.gz", {3: both})
    write_map(pred / "b.nii.gz", {3: both})
    cases = evaluate_folders(pred, ref, n_bootstrap=5).cases
    assert cases[["n_reference", "n_predicted", "n_found"]].values.tolist() == [[2, 2, 2]] * 2


def test_masks_meet_references_with_classes_and_the_other_way_round(tmp_path):
    for described in ("ref", "pred"):
        ref, pred = tmp_path / described / "ref", tmp_path / described / "pred"
        write_map(ref / "a.nii.gz", {1: LESION})
        write_map(pred / "a.nii.gz", {1: LESION})
        if described == "ref":
            write_reference(ref, "a", {1: LESION}, {"1": 1})
        else:
            write_prediction(pred, "a", {1: LESION}, {1: (0.8, 0.7)}, (0.7, 1))
        evaluation = evaluate_folders(pred, ref, n_bootstrap=5)
        assert value(evaluation, "lesion", "dsc_matched") == 1
        assert len(evaluation.notes) == 1


def test_one_json_too_few_is_a_fault_and_no_mask(tmp_path):
    write_reference(tmp_path / "ref", "a", {1: LESION}, {"1": 1})
    write_map(tmp_path / "ref" / "b.nii.gz", {})
    for case in "ab":
        write_map(tmp_path / "pred" / f"{case}.nii.gz", {})
    with pytest.raises(DataError, match=r"b\.json"):
        evaluate_folders(tmp_path / "pred", tmp_path / "ref")


def test_instances_with_scores_are_ranked_by_them(tmp_path):
    ref, pred = tmp_path / "ref", tmp_path / "pred"
    write_reference(ref, "a", {1: LESION, 2: SECOND}, {"1": 1, "2": 0})
    write_map(pred / "a.nii.gz", {1: SHIFTED, 2: SECOND, 3: ELSEWHERE})
    write_scores(pred / "a.json", {i: {"score": s, "label": 0} for i, s in
                                   (("1", 0.9), ("2", 0.3), ("3", 0.6))})  # fmt: skip
    evaluation = evaluate_folders(pred, ref, n_bootstrap=5)
    assert value(evaluation, "detection", "ap_iou_0.1") == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert value(evaluation, "lesion", "dsc_matched") == 0.75
    assert "nnDetection" in evaluation.notes[0]
    write_scores(pred / "a.json", {"1": {"score": 0.5}})
    with pytest.raises(DataError, match=r"ids \[2, 3\]"):
        evaluate_folders(pred, ref)


def test_boxes_meet_the_boxes_around_lesions_and_have_no_outline(tmp_path):
    ref, pred = tmp_path / "ref", tmp_path / "pred"
    corner = np.zeros((10, 20, 20), bool)
    corner[2:4, 2:6, 2] = corner[2, 2:6, 2:6] = corner[3, 5, 5] = True  # its box is LESION
    write_reference(ref, "a", {1: corner, 2: SECOND}, {"1": 1, "2": 0})
    write_reference(ref, "empty", {}, {})
    pred.mkdir()
    boxes = {"1": {"score": 0.9, "label": 1, "box": painted_box(SHIFTED)},
             "2": {"score": 0.4, "label": 0, "box": painted_box(SECOND)},
             "3": {"score": 0.6, "label": 0, "box": painted_box(ELSEWHERE)}}  # fmt: skip
    write_scores(pred / "a_boxes.json", boxes)
    write_map(pred / "a_boxes.nii.gz", {1: ELSEWHERE})  # painted for the eye; only its grid counts
    write_scores(pred / "empty_boxes.json", {})
    evaluation = evaluate_folders(pred, ref, n_bootstrap=5)
    assert evaluation.lesions["iou"].tolist() == pytest.approx([1 / 3, 1, 0])
    assert evaluation.lesions["hit_centre"].tolist() == [False, True, False]
    assert value(evaluation, "detection", "sensitivity_iou_0.3") == 1
    assert value(evaluation, "detection", "sensitivity_iou_0.5") == 0.5
    assert value(evaluation, "detection", "fp_per_scan") == 0.5
    for group, name in (
        ("segmentation", "dsc"), ("segmentation", "voxel_sensitivity"), ("lesion", "dsc_all"),
        ("lesion", "nsd_1mm_matched"), ("lesion", "hd95_mm_matched"),
        ("lesion", "dsc_all_below_10mm"), ("segmentation", "volume_bias_ml"),
    ):  # fmt: skip
        assert evaluation.figures[group][name].value is None
        assert "boxes have no outline" in evaluation.figures[group][name].note, name
    write_evaluation(evaluation, tmp_path / "out")
    page = write_report(pred, ref, {}, evaluation, tmp_path / "out").read_text(encoding="utf-8")
    assert ">nan<" not in page
    write_map(pred / "a_boxes.nii.gz", {}, spacing_mm=(5.0, 1.0, 1.0))
    with pytest.raises(DataError, match="another grid"):
        evaluate_folders(pred, ref)
    write_scores(pred / "a_boxes.json", {"4": {"score": 0.9}})
    (pred / "a_boxes.nii.gz").unlink()
    with pytest.raises(DataError, match="instance 4 has no box"):
        evaluate_folders(pred, ref)


def test_pickles_are_never_opened(tmp_path, capsys):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    write_reference(tmp_path / "ref", "a", {1: LESION}, {"1": 1})
    (tmp_path / "pred").mkdir()
    (tmp_path / "pred" / "a_boxes.pkl").write_bytes(pickle.dumps(Trap()))
    assert main(["--pred", str(tmp_path / "pred"), "--ref", str(tmp_path / "ref")]) == 2
    message = capsys.readouterr().err
    assert "a_boxes.pkl" in message and "nndet_boxes2nii" in message
    assert not (tmp_path / "sprung").exists()


def test_our_own_case_may_be_called_boxes(tmp_path):
    write_prediction(tmp_path, "x_boxes", {1: LESION}, {1: (0.9, 0.5)})
    assert open_predictions(tmp_path).kind == "described"


def test_the_command_says_how_it_reads_a_folder_and_writes_all_files(tmp_path, caplog):
    write_map(tmp_path / "ref" / "a.nii.gz", {1: LESION})
    write_map(tmp_path / "pred" / "a.nii.gz", {1: LESION})
    out = tmp_path / "out"
    folders = ["--pred", str(tmp_path / "pred"), "--ref", str(tmp_path / "ref")]
    assert main([*folders, "--out", str(out)]) == 0
    assert "connected component" in caplog.text
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert len(metrics["inputs"]) == 2
    assert metrics["rules"]["dsc"] == "both empty 1, one empty 0; a missed lesion 0"
    assert (out / "report.html").is_file()
    with pytest.raises(SystemExit, match="2"):
        main([*folders, "--processes", "0"])


def test_processes_change_nothing(tmp_path):
    for case, place in (("a", LESION), ("b", SHIFTED), ("c", SECOND)):
        write_reference(tmp_path / "ref", case, {1: LESION}, {"1": 1})
        write_prediction(tmp_path / "pred", case, {1: place}, {1: (0.8, 0.6)}, (0.6, 1))
    alone, together = (
        evaluate_folders(tmp_path / "pred", tmp_path / "ref", n_bootstrap=5, processes=n)
        for n in (1, 2)
    )
    assert alone.lesions.equals(together.lesions) and alone.cases.equals(together.cases)
    write_prediction(tmp_path / "pred", "b", {4: LESION}, {}, (0.3, 0))
    with pytest.raises(DataError, match=r"1 of 3 cases.*ids \[4\]"):
        evaluate_folders(tmp_path / "pred", tmp_path / "ref", processes=2)
