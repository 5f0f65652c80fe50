"""The report's drawings: what is in them, and what stands there when the data give none."""

import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from bonemet_auto.evaluation.evaluate import evaluate_folders
from bonemet_auto.report.plots import draw_all
from tests.unit.test_evaluation_folders import (
    ELSEWHERE,
    LESION,
    SECOND,
    SHIFTED,
    write_prediction,
    write_reference,
)


def write_case(folder, case, truth, estimate, found=None):
    """A scan with up to two lesions of one source, of which one is found."""
    lesions = {} if truth is None else {1: LESION, 2: SECOND}
    write_reference(folder / "ref", case, lesions, dict.fromkeys("12"[: len(lesions)], truth))
    found = {1: SHIFTED, 2: ELSEWHERE} if found is None else found
    scores = dict.fromkeys(found, (0.9, estimate))
    write_prediction(folder / "pred", case, found, scores, (estimate, int(estimate >= 0.5)))


def drawings(folder):
    evaluation = evaluate_folders(folder / "pred", folder / "ref", n_bootstrap=10)
    return {each.name: each for each in draw_all(evaluation, 0.5)}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Drawings of patients with every kind of truth."""
    folder = tmp_path_factory.mktemp("mixed")
    for number, (truth, estimate) in enumerate([(1, 0.8), (0, 0.3), (1, 0.4), (0, 0.6)]):
        write_case(folder, f"case {number}", truth, estimate)
    write_case(folder, "healthy", None, 0.1, {})
    return folder, drawings(folder)


def test_every_drawing_is_one_whole_svg_that_loads_nothing(mixed):
    _, drawn = mixed
    assert len(drawn) == 9
    for name, drawing in drawn.items():
        ElementTree.fromstring(drawing.svg)
        assert f'aria-label="{drawing.title}"' in drawing.svg
        references = re.findall(r'(?:href="|url\()([^")]*)', drawing.svg)
        assert references and all(each.startswith(f"#{name}-") for each in references)


def test_ids_are_unique_over_all_drawings_of_a_page(mixed):
    ids = [each for d in mixed[1].values() for each in re.findall(r'\bid="([^"]*)"', d.svg)]
    assert len(ids) == len(set(ids))


def test_equal_evaluations_give_equal_drawings(mixed):
    folder, drawn = mixed
    assert drawings(folder) == drawn


def test_drawings_say_what_they_count(mixed):
    _, drawn = mixed
    assert "5 patients, 2 of them positive" in drawn["roc_patients"].text
    assert "4 found lesions, 2 of them positive" in drawn["roc_lesions"].text
    assert "1 scans without any lesion are left out" in drawn["bland_altman"].text
    assert "n = 8" in drawn["dsc_by_size"].svg
    assert "average precision" in drawn["precision_recall_patients"].svg
    for name in ("froc", "roc_patients", "decision_curve_patients"):
        assert "threshold in use" in drawn[name].svg


def test_boxes_without_outlines_give_reasons(mixed):
    folder, _ = mixed
    measured = evaluate_folders(folder / "pred", folder / "ref", n_bootstrap=5)
    unknown = {"dsc": np.nan, "predicted_volume_mm3": np.nan}
    boxes = replace(
        measured,
        cases=measured.cases.assign(**unknown),
        lesions=measured.lesions.assign(dsc=np.nan),
    )
    drawn = {each.name: each for each in draw_all(boxes, 0.5)}
    assert drawn["dsc_by_size"].text == "no outlines were predicted."
    assert drawn["bland_altman"].svg is None and drawn["froc"].svg


def test_one_healthy_scan_gives_reasons_and_no_drawing_but_calibration(tmp_path):
    write_case(tmp_path, "only", None, 0.2, {})
    drawn = drawings(tmp_path)
    assert {name for name, each in drawn.items() if each.svg} == {"calibration_patients"}
    reasons = {name: each.text for name, each in drawn.items() if each.svg is None}
    assert reasons["froc"] == reasons["dsc_by_size"] == "no annotated lesions."
    assert reasons["bland_altman"] == "fewer than two scans with a volume."
    assert reasons["roc_patients"] == "all 1 patients are negative."
    assert reasons["roc_lesions"].startswith("no found lesions with a known source")


def test_one_patient_with_lesions_is_drawn_without_a_band(tmp_path):
    write_case(tmp_path, "only", 1, 0.7)
    drawn = drawings(tmp_path)
    assert "95 % interval" not in drawn["froc"].svg
    assert drawn["roc_lesions"].text == "all 1 found lesions are positive."


def test_no_estimate_at_all_gives_reasons(tmp_path):
    write_reference(tmp_path / "ref", "a", {1: LESION}, {"1": 1})
    write_prediction(tmp_path / "pred", "a", {}, {})
    drawn = drawings(tmp_path)
    assert drawn["calibration_patients"].text == "no patients with a known source and an estimate."
    assert drawn["froc"].svg
