import html
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from bonemet_auto.commands.evaluate import main as evaluate
from bonemet_auto.evaluation.evaluate import evaluate_folders
from bonemet_auto.evaluation.paper import measured_cohort
from bonemet_auto.geometry import Geometry
from bonemet_auto.images import Volume, find_images, read_instances, write_volume
from bonemet_auto.report import html as page_module
from bonemet_auto.report.html import write_prediction_report, write_report
from bonemet_auto.report.pictures import bone_window, grey_png, three_views
from bonemet_auto.result_schema import CasePrediction, LesionRecord, PatientRecord
from bonemet_auto.schema import CaseLabels, write_json

SPACING_SPL = (2.0, 1.0, 0.5)
SHAPE_SPL = (6, 8, 10)
LPS_OF_SPL = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
GRID = Geometry((12, 14, 16), (2.0, 1.0, 1.0))
ODD_NAME = "Prüfung <b>1 & 2"


def lesion_record(box, number=1, score=0.9):
    return LesionRecord(
        id=number,
        score=score,
        p_lung_metastasis=0.7,
        volume_mm3=500.0,
        box_voxel_zyx=box,
        centroid_lps_mm=(0, 0, 0),
        corners_lps_mm=(),
    )


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_every_orientation_gives_the_same_radiological_pictures(order):
    rng = np.random.default_rng(0)
    hu = rng.integers(-1000, 2000, SHAPE_SPL).astype(np.int16)
    drawn = np.zeros(SHAPE_SPL, np.uint16)
    drawn[1:3, 2:5, 3:7] = 1
    expected = None
    for flips in itertools.product((False, True), repeat=3):
        turn = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
        signs = np.where(flips, -1.0, 1.0)
        box = np.array([[1, 2, 3], [3, 5, 7]], float)
        box = np.sort(np.where(flips, np.array(SHAPE_SPL) - box, box), axis=0)[:, order]
        centre = np.where(flips, np.array(SHAPE_SPL) - 1 - (2, 4, 5), (2, 4, 5))[list(order)]
        geometry = Geometry(
            tuple(np.array(SHAPE_SPL)[list(order)].tolist()),
            tuple(np.array(SPACING_SPL)[list(order)].tolist()),
            direction=tuple(map(tuple, (LPS_OF_SPL * signs[:, None])[list(order)].tolist())),
        )
        views = three_views(
            hu[turn].transpose(order),
            geometry,
            tuple(centre.tolist()),
            drawn[turn].transpose(order),
            drawn[turn].transpose(order),
            [lesion_record(tuple(box.ravel().tolist()))],
        )
        found = [(v.plane, v.grey.tolist(), v.width_mm, v.height_mm, v.boxes) for v in views]
        expected = expected or found
        assert found == expected
    axial, coronal, sagittal = views
    assert np.array_equal(axial.grey, bone_window(hu[2]))  # anterior on top, left on the right
    assert np.array_equal(coronal.grey, bone_window(hu[::-1, 4]))  # head on top
    assert np.array_equal(sagittal.grey, bone_window(hu[::-1, :, 5]))  # anterior on the left


def test_outline_and_box_lie_on_the_lesion_in_millimetres():
    drawn = np.zeros(SHAPE_SPL, np.uint16)
    drawn[1:3, 2:5, 3:7] = 1
    geometry = Geometry(SHAPE_SPL, SPACING_SPL)
    _, coronal, _ = three_views(
        np.zeros(SHAPE_SPL, np.int16), geometry, (2, 4, 5), drawn, drawn,
        [lesion_record((1, 2, 3, 3, 5, 7))],
    )  # fmt: skip
    (line,) = coronal.reference
    assert line.min(axis=0) == pytest.approx([3 * 0.5, (6 - 3) * 2.0])
    assert line.max(axis=0) == pytest.approx([7 * 0.5, (6 - 1) * 2.0])
    (box,) = coronal.boxes
    assert (box.left_mm, box.top_mm, box.width_mm, box.height_mm) == (1.5, 6.0, 2.0, 4.0)


def test_boxes_that_miss_the_plane_are_not_drawn():
    drawn = np.zeros(SHAPE_SPL, np.uint16)
    axial, coronal, sagittal = three_views(
        np.zeros(SHAPE_SPL, np.int16), Geometry(SHAPE_SPL, SPACING_SPL), (5, 3, 3), None, drawn,
        [lesion_record((1, 2, 3, 3, 5, 7))],
    )  # fmt: skip
    assert [len(view.boxes) for view in (axial, coronal, sagittal)] == [0, 1, 1]
    assert not axial.reference


def test_a_large_scan_is_cut_to_the_field_of_view_and_keeps_the_page_small():
    rng = np.random.default_rng(0)
    shape = (150, 200, 200)
    hu = rng.normal(300, 60, shape).astype(np.int16)
    nothing = np.zeros(shape, np.uint16)
    views = three_views(hu, Geometry(shape, (1.0, 0.7, 0.7)), (3, 190, 100), None, nothing, [])
    assert max(max(view.width_mm, view.height_mm) for view in views) < 101
    assert sum(len(grey_png(view.grey)) for view in views) * 4 / 3 < 150_000 * 0.95


def test_grey_png_keeps_every_pixel(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (7, 11)).astype(np.uint8)
    (tmp_path / "a.png").write_bytes(grey_png(grey))
    assert np.array_equal(np.rint(imread(tmp_path / "a.png") * 255).astype(np.uint8), grey)


@pytest.fixture
def folders(tmp_path):
    """One case found exactly, one missed (with an odd name), one healthy; images of all."""
    pred, ref, images = tmp_path / "pred", tmp_path / "labelsTs", tmp_path / "imagesTs"
    lesion = np.zeros(GRID.shape, np.uint16)
    lesion[3:6, 4:8, 5:9] = 1
    nothing = np.zeros_like(lesion)
    hu = np.random.default_rng(0).normal(300, 50, GRID.shape).astype(np.int16)
    for case, annotated, found in (
        ("hit", lesion, lesion),
        (ODD_NAME, lesion, nothing),
        ("healthy", nothing, nothing),
    ):
        write_volume(images / f"{case}_0000.nii.gz", Volume(hu, GRID))
        write_volume(ref / f"{case}.nii.gz", Volume(annotated, GRID))
        classes = {1: 1} if annotated.any() else {}
        write_json(ref / f"{case}.json", CaseLabels(instances=classes, patient_id=f"P {case}"))
        write_volume(pred / f"{case}.nii.gz", Volume(found, GRID))
        records = (lesion_record((3, 4, 5, 6, 8, 9)),) if found.any() else ()
        patient = PatientRecord(probability=0.63 if records else 0.3, label=1, threshold=0.5)
        record = CasePrediction(
            case=case, lesions=records, patient=patient, score_threshold=0.5, warnings=("dim",)
        )
        write_json(pred / f"{case}.json", record)
    return pred, ref, images


@pytest.fixture
def undrawn(monkeypatch):
    """Leaves the drawings out, which take their time and have tests of their own."""
    monkeypatch.setattr(page_module, "draw_all", lambda evaluation, threshold: [])


def headings(page: str) -> list[str]:
    return [html.unescape(text) for text in re.findall(r"<h3>(.*?)</h3>", page)]


def test_report_holds_every_case_worst_first_and_nothing_from_outside(folders, tmp_path):
    pred, ref, images = folders
    evaluation = evaluate_folders(pred, ref, n_bootstrap=20)
    path = write_report(pred, ref, find_images(images), evaluation, tmp_path / "out")
    page = path.read_text(encoding="utf-8")
    assert path.name == "report.html"
    assert headings(page) == [ODD_NAME, "healthy", "hit"]
    assert "<b>1" not in page
    assert page.count("data:image/png;base64,") == 3 * 3
    assert "not a medical device" in page
    assert "0.849" in page and "false positives per scan" in page
    addresses = re.findall(r"(?:src|href|url)\s*=?\s*[\"'(]([^\"')]*)", page)
    assert addresses and all(each.startswith(("#", "data:")) for each in addresses)
    assert "<script" not in page and "@import" not in page


def test_report_without_reference_lists_estimates_highest_first(folders):
    pred, _, images = folders
    page = write_prediction_report(pred, find_images(images)).read_text(encoding="utf-8")
    assert headings(page)[0] == "hit"
    assert "DSC" not in page and "0.849" not in page and ">reference<" not in page
    assert "#1 0.90" in page


def test_a_missing_or_broken_image_costs_its_pictures_only(folders, tmp_path, undrawn):
    pred, ref, images = folders
    found = find_images(images)
    del found["hit"]
    found["healthy"].write_bytes(b"not an image")
    evaluation = evaluate_folders(pred, ref, n_bootstrap=20)
    page = write_report(pred, ref, found, evaluation, tmp_path).read_text(encoding="utf-8")
    assert len(headings(page)) == 3
    assert page.count("data:image/png") == 3
    assert page.count("No picture:") == 2


def test_beyond_the_limit_cases_stay_in_the_table_only(folders, tmp_path, monkeypatch, undrawn):
    pred, ref, images = folders
    monkeypatch.setattr(page_module, "MAX_PICTURED_CASES", 2)
    evaluation = evaluate_folders(pred, ref, n_bootstrap=20)
    page = write_report(pred, ref, find_images(images), evaluation, tmp_path).read_text("utf-8")
    assert len(headings(page)) == 2
    assert "<td>hit</td>" in page and "first 2 of 3 scans" in page


def test_beyond_the_limit_the_best_are_pictured_too(folders, tmp_path, monkeypatch, undrawn):
    pred, ref, images = folders
    monkeypatch.setattr(page_module, "MAX_PICTURED_CASES", 2)
    monkeypatch.setattr(page_module, "BEST_SHARE", 0.5)
    evaluation = evaluate_folders(pred, ref, n_bootstrap=20)
    page = write_report(pred, ref, find_images(images), evaluation, tmp_path).read_text("utf-8")
    assert headings(page) == [ODD_NAME, "hit"]
    assert 'href="#case-3">hit' in page and 'id="case-3"' in page
    assert "first 1 of 3 scans only, and of the last 1" in page


def test_a_page_of_a_hundred_cases_stays_below_its_size(folders, tmp_path):
    pred, ref, images = folders
    scan = find_images(images)["hit"]
    for number in range(104):
        for folder in (pred, ref):
            for ending in (".nii.gz", ".json"):
                text = (folder / f"hit{ending}").read_bytes()
                text = text.replace(b'"hit"', f'"case {number}"'.encode())
                (folder / f"case {number}{ending}").write_bytes(text)
    evaluation = evaluate_folders(pred, ref, n_bootstrap=20)
    everywhere = dict.fromkeys(evaluation.cases["case"], scan)
    path = write_report(pred, ref, everywhere, evaluation, tmp_path / "out")
    page = path.read_text("utf-8")
    assert page.count("<h3>") == 100 and page.count("<tr>\n<td>") >= 107
    without_pictures = re.sub(r"base64,[^\"]*", "", page)
    # 100 cases of at most 142 kB of pictures each, as the test of a large scan holds.
    assert len(without_pictures.encode()) < 15e6 - 100 * 142.5e3


def test_thumbnails_lead_from_the_worst_and_the_best_to_their_scans(folders, tmp_path, undrawn):
    pred, ref, images = folders
    evaluation = evaluate_folders(pred, ref, n_bootstrap=20)
    page = write_report(pred, ref, find_images(images), evaluation, tmp_path).read_text("utf-8")
    (extremes,) = re.findall(r'<section id="extremes">.*?</section>', page, re.S)
    assert re.findall(r'href="(#case-\d)"', extremes) == ["#case-1", "#case-2", "#case-3"]
    assert "data:" not in extremes and 'href="#p1axial"' in extremes


def test_both_cohorts_stand_side_by_side(folders, tmp_path, undrawn):
    pred, ref, images = folders
    evaluation = evaluate_folders(pred, ref, n_bootstrap=20)
    cohorts = [measured_cohort(evaluation, name) for name in ("external", "internal")]
    page = write_report(pred, ref, {}, evaluation, tmp_path, cohorts).read_text("utf-8")
    row = page[page.index("segmentation: DSC") :].split("</tr>")[0]
    assert re.findall(r'<td class="n">([\d.]+)</td>', row) == ["0.856", "0.849"]
    assert "training cohort of 265 patients, external test of 106 patients" in page


def test_masks_without_our_records_have_a_page_too(folders, tmp_path, undrawn):
    pred, ref, images = folders
    evaluation = evaluate_folders(pred, ref, n_bootstrap=20)
    for record in pred.glob("*.json"):
        record.unlink()
    lesions = {path.name: read_instances(path) for path in pred.glob("*.nii.gz")}
    write_volume(pred / "healthy.nii.gz", lesions["hit.nii.gz"])
    page = write_report(pred, ref, find_images(images), evaluation, tmp_path).read_text("utf-8")
    assert len(headings(page)) == 3 and page.count("data:image/png") == 9
    assert page.count('class="predicted" d="M') == 2 * (3 + 1)  # pictures and a thumbnail of each


def test_drawings_lie_beside_the_page_and_stale_ones_are_removed(folders, tmp_path):
    pred, ref, images = folders
    evaluation = evaluate_folders(pred, ref, n_bootstrap=20)
    stale = tmp_path / "figures" / "roc_lesions.svg"
    stale.parent.mkdir()
    stale.write_text("old")
    page = write_report(pred, ref, find_images(images), evaluation, tmp_path).read_text("utf-8")
    assert not stale.exists()
    for path in stale.parent.iterdir():
        assert path.read_text("utf-8") in page
    assert "No drawing: all 1 found lesions are positive." in page


def test_equal_inputs_give_equal_bytes(folders, tmp_path):
    pred, ref, images = folders
    evaluation = evaluate_folders(pred, ref, n_bootstrap=20)
    first, second = (
        write_report(pred, ref, find_images(images), evaluation, tmp_path / name).read_bytes()
        for name in "ab"
    )
    assert first == second


def test_evaluate_finds_the_images_beside_the_labels(folders, tmp_path, undrawn):
    pred, ref, images = folders
    flags = ["--pred", str(pred), "--ref", str(ref), "--out"]
    assert evaluate([*flags, str(tmp_path / "a")]) == 0
    assert (tmp_path / "a" / "report.html").read_text("utf-8").count("data:image/png") == 9
    moved = images.rename(tmp_path / "elsewhere")
    assert evaluate([*flags, str(tmp_path / "b")]) == 0
    assert "data:image/png" not in (tmp_path / "b" / "report.html").read_text("utf-8")
    assert evaluate([*flags, str(tmp_path / "c"), "--images", str(moved)]) == 0
    assert (tmp_path / "c" / "report.html").read_text("utf-8").count("data:image/png") == 9
    assert evaluate([*flags[:4], "--images", str(moved)]) == 2


def test_template_is_part_of_the_package():
    assert (Path(page_module.__file__).parent / "report.html").is_file()
