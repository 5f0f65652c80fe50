"""Pages of predictions without a reference: every lesion pictured, each case alone as well."""

import html
import re
from urllib.parse import unquote

import numpy as np
import pytest

from bonemet_auto.geometry import Geometry
from bonemet_auto.images import Volume, find_images, write_volume
from bonemet_auto.report import html as page_module
from bonemet_auto.report.html import write_prediction_report
from bonemet_auto.report.pictures import grey_png, three_views
from bonemet_auto.result_schema import CasePrediction, LesionRecord, PatientRecord
from bonemet_auto.schema import write_json

GRID = Geometry((24, 60, 60), (3.0, 2.0, 2.0))
ODD_NAME = "Prüfung #1 & 2"
PLACES = {3: np.s_[2:5, 4:9, 4:9], 7: np.s_[10:14, 30:36, 40:44], 9: np.s_[18:21, 50:55, 9:12]}
SCORES = {3: 0.6, 7: 0.95, 9: 0.75}


def record(number):
    place = PLACES[number]
    return LesionRecord(
        id=number,
        score=SCORES[number],
        p_lung_metastasis=0.4,
        volume_mm3=1234.0,
        box_voxel_zyx=tuple(float(e) for side in ("start", "stop") for e in
                            (getattr(axis, side) for axis in place)),
        centroid_lps_mm=(0, 0, 0),
        corners_lps_mm=(),
    )  # fmt: skip


def write_predicted(folder, case, ids, probability):
    hu = np.random.default_rng(0).normal(300, 50, GRID.shape).astype(np.int16)
    drawn = np.zeros(GRID.shape, np.uint16)
    for number in ids:
        drawn[PLACES[number]] = number
    write_volume(folder / "images" / f"{case}_0000.nii.gz", Volume(hu, GRID))
    write_volume(folder / "out" / f"{case}.nii.gz", Volume(drawn, GRID))
    patient = PatientRecord(probability=probability, label=1, threshold=0.45)
    write_json(
        folder / "out" / f"{case}.json",
        CasePrediction(
            case=case, lesions=tuple(map(record, ids)), patient=patient, score_threshold=0.5,
            warnings=("dim",),
        ),
    )  # fmt: skip


@pytest.fixture
def written(tmp_path):
    """A case of three lesions, one with an odd name and one lesion, one without any."""
    write_predicted(tmp_path, "three", [3, 7, 9], 0.8)
    write_predicted(tmp_path, ODD_NAME, [3], 0.9)
    write_predicted(tmp_path, "none", [], 0.1)
    return tmp_path / "out", find_images(tmp_path / "images")


def captions(page):
    return re.findall(r"<figcaption>(.*?)</figcaption>", page)


def test_every_lesion_has_three_planes_highest_score_first(written):
    page = write_prediction_report(*written).read_text("utf-8")
    found = captions(page)
    assert found[0].startswith("#3: score 0.60, P(lung) 0.40")
    assert [text.split(":")[0] for text in found[1:4]] == ["#7", "#9", "#3"]
    assert found[4] == "middle of the scan"
    assert page.count("data:image/png;base64,") == 3 * 5
    rows = re.findall(r'<td class="n">(#\d)</td>', page)
    assert rows == ["#3", "#7", "#9", "#3"]
    assert '<td class="n">1.23</td>' in page  # ml


def test_the_probability_stands_on_a_scale_with_its_threshold(written):
    page = write_prediction_report(*written).read_text("utf-8")
    assert page.count('aria-label="probability 0.80, threshold 0.45"') == 2
    assert page.count('<path d="M51.0,1v12" class="threshold"/>') == 6
    assert '<circle cx="86.0"' in page


def test_each_case_has_a_page_of_its_own(written):
    out, images = written
    page = write_prediction_report(out, images).read_text("utf-8")
    links = [unquote(html.unescape(each)) for each in re.findall(r'href="(cases/[^"]*)"', page)]
    assert sorted(links) == sorted(f"cases/{case}.html" for case in ("three", ODD_NAME, "none"))
    alone = (out / "cases" / "three.html").read_text("utf-8")
    assert "<title>three</title>" in alone and 'href="../report.html"' in alone
    assert len(captions(alone)) == 3 and "dim" in alone
    assert all((out / link).is_file() for link in links)


def test_pages_load_nothing_from_elsewhere(written):
    out, images = written
    write_prediction_report(out, images)
    for path in (out / "report.html", out / "cases" / "three.html"):
        page = path.read_text("utf-8")
        assert "<script" not in page and "@import" not in page and "url(" not in page
        loaded = re.findall(r'<(?:image|img|use|link|iframe)[^>]*?(?:src|href)="([^"]*)"', page)
        assert loaded and all(each.startswith(("#", "data:")) for each in loaded)


def test_a_case_without_its_image_keeps_its_table(written):
    out, images = written
    del images["three"]
    page = write_prediction_report(out, images).read_text("utf-8")
    assert "No picture: the image was not given." in page and "#9" in page
    assert "No picture" in (out / "cases" / "three.html").read_text("utf-8")


def test_a_record_without_voxels_is_listed_and_not_pictured(written):
    out, images = written
    empty = np.zeros(GRID.shape, np.uint16)
    empty[PLACES[9]] = 9
    write_volume(out / "three.nii.gz", Volume(empty, GRID))
    write_prediction_report(out, images)
    alone = (out / "cases" / "three.html").read_text("utf-8")
    assert [text[:2] for text in captions(alone)] == ["#9"] and "#7" in alone


@pytest.mark.parametrize(("cases", "most"), [(0, 12), (1, 12), (30, 8), (100, 2), (2000, 2)])
def test_lesions_of_a_page_are_shared_among_its_cases(cases, most):
    assert page_module._lesions_per_case(cases) == most


def test_as_many_lesions_as_a_page_may_hold_stay_below_its_size():
    rng = np.random.default_rng(0)
    shape = (150, 200, 200)
    hu, nothing = rng.normal(300, 60, shape).astype(np.int16), np.zeros(shape, np.uint16)
    near = three_views(
        hu, Geometry(shape, (0.7, 0.5, 0.5)), (75, 100, 100), None, nothing, [],
        page_module.NEAR_MM,
    )  # fmt: skip
    size = sum(len(grey_png(view.grey)) for view in near) * 4 / 3
    assert size * page_module.MAX_PICTURED_LESIONS < 14e6
