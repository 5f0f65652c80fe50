"""Pages that show lesions in slices and in 3D, from disk."""

import base64
import hashlib
import re
import shutil
import subprocess
from importlib.resources import files

import numpy as np
import pytest

from bonemet_auto.commands import predict
from bonemet_auto.images import Volume, read_hu, read_instances, write_volume
from bonemet_auto.report.viewer import MARGIN_MM
from bonemet_auto.result_schema import CasePrediction
from bonemet_auto.schema import read_json
from tests.cohort import make_scan
from tests.tiny_model import write_model
from tests.unit.test_upright import posed, scan

CASE = "Fall ä#1"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A scan whose file does not stand upright, with two drawn lesions, and a scan without any."""
    root = tmp_path_factory.mktemp("viewer")
    model, pose = write_model(root / "model"), ((2, 0, 1), (True, False, True))
    ids = make_scan(np.random.default_rng(0))[1]
    for folder, case, volume in (
        ("scans", CASE, scan()),
        ("scans", "none", scan(1)),
        ("masks", CASE, Volume(ids, scan().geometry)),
        ("masks", "none", Volume(np.zeros_like(ids), scan().geometry)),
    ):
        volume = posed(volume, *pose)
        write_volume(root / folder / f"{case}.nii.gz", volume)
    flags = ["-i", str(root / "scans"), "--lesions", str(root / "masks"), "-m", str(model)]
    assert predict.main([*flags, "-o", str(root / "out"), "--viewer"]) == 0
    return root / "out"


def volumes(page, kind, folder):
    for number, text in enumerate(re.findall(rf'{kind}: "([^"]+)"', page)):
        path = folder / f"{kind}_{number}.nii.gz"
        path.write_bytes(base64.b64decode(text))
        yield path


def test_a_page_holds_each_lesion_where_it_lies_in_the_patient(out, tmp_path):
    page = (out / "viewer" / f"{CASE}.html").read_text("utf-8")
    drawn = read_instances(out / f"{CASE}.nii.gz")
    full = read_hu(out.parent / "scans" / f"{CASE}.nii.gz")
    lesions = read_json(out / f"{CASE}.json", CasePrediction).lesions
    cts = [read_hu(path) for path in volumes(page, "ct", tmp_path)]
    masks = [read_instances(path) for path in volumes(page, "mask", tmp_path)]
    assert len(cts) == len(masks) == len(lesions) == 2
    for lesion, ct, mask in zip(lesions, cts, masks, strict=True):
        assert mask.array.sum() == (drawn.array == lesion.id).sum()
        for index in np.argwhere(mask.array):
            place = ct.geometry.index_to_lps(index)
            own = tuple(np.rint(full.geometry.lps_to_index(place)).astype(int))
            assert drawn.array[own] == lesion.id
            assert ct.array[tuple(index)] == full.array[own]
        size_mm = np.multiply(ct.geometry.shape, ct.geometry.spacing_mm)
        extent = np.subtract(lesion.box_voxel_zyx[3:], lesion.box_voxel_zyx[:3])
        spacing_mm = np.asarray(full.geometry.spacing_mm)
        limit_mm = extent * spacing_mm + 2 * (MARGIN_MM + spacing_mm)
        assert (size_mm <= limit_mm + 1e-3).all()


def test_the_report_links_to_the_pages(out):
    page = (out / "report.html").read_text("utf-8")
    assert 'href="viewer/Fall%20%C3%A4%231.html"' in page and 'href="viewer/none.html"' in page


def test_a_case_without_lesions_says_so(out):
    assert "No lesion was found" in (out / "viewer" / "none.html").read_text("utf-8")


def test_the_library_is_the_one_that_was_published(out):
    folder = files("bonemet_auto.report.viewer")
    expected, name = (folder / "SHA256SUMS").read_text().split()
    assert hashlib.sha256((out / "viewer" / name).read_bytes()).hexdigest() == expected
    assert (out / "viewer" / "LICENSE-niivue").is_file()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_without_network_shows_the_first_lesion(out, tmp_path):
    flags = [
        "--headless=new",
        "--no-sandbox",
        "--use-gl=angle",
        "--use-angle=swiftshader",
        "--enable-unsafe-swiftshader",
        "--window-size=900,800",
        "--virtual-time-budget=20000",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--dump-dom",
    ]
    profile = f"--user-data-dir={tmp_path}"
    page = (out / "viewer" / f"{CASE}.html").as_uri()
    done = subprocess.run(
        [CHROMIUM, *flags, profile, page], capture_output=True, text=True, timeout=120, check=True
    )
    assert 'data-shown="0"' in done.stdout
    assert done.stdout.count('type="button" aria-pressed="true"') == 1
