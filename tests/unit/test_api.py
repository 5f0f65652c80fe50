"""Prediction from Python: the same as the command's, from any kind of scan."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from bonemet_auto.api import load_model
from bonemet_auto.commands import predict
from bonemet_auto.errors import DataError, ModelError, UsageError
from bonemet_auto.images import Volume, read_instances, write_volume
from bonemet_auto.result_schema import CasePrediction
from bonemet_auto.schema import read_json
from tests.cohort import GEOMETRY, make_scan
from tests.tiny_model import write_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "model", folds=(0, 1))


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder, "cpu")


@pytest.fixture
def path(tmp_path):
    write_volume(tmp_path / "a.nii.gz", Volume(make_scan(np.random.default_rng(0))[0], GEOMETRY))
    return tmp_path / "a.nii.gz"


def test_it_finds_what_the_command_finds(folder, model, path, tmp_path):
    assert predict.main(["-i", str(path), "-o", str(tmp_path / "out"), "-m", str(folder)]) == 0
    written = read_json(tmp_path / "out" / "a.json", CasePrediction)
    found = model.predict(path)
    assert found.lesions == written.lesions and found.lesions
    assert (found.patient, found.warnings) == (written.patient, written.warnings)
    drawn = read_instances(tmp_path / "out" / "a.nii.gz").array
    np.testing.assert_array_equal(found.instances.array, drawn)
    below = read_json(tmp_path / "out" / "candidates" / "a.json", CasePrediction)
    assert found.candidates == below.lesions


@pytest.mark.parametrize("pixel", [sitk.sitkInt16, sitk.sitkFloat32, sitk.sitkInt32])
def test_every_kind_of_scan_gives_the_same(model, path, pixel):
    expected = model.predict(path)
    image = sitk.Cast(sitk.ReadImage(str(path)), pixel)
    for scan in (str(path), image):
        found = model.predict(scan)
        assert found.lesions == expected.lesions
    drawn = found.to_sitk()
    assert (drawn.GetSize(), drawn.GetSpacing(), drawn.GetOrigin(), drawn.GetDirection()) == (
        image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection(),
    )  # fmt: skip


def test_what_is_no_ct_is_refused(model, path):
    image = sitk.ReadImage(str(path))
    with pytest.raises(DataError, match="three-dimensional"):
        model.predict(sitk.JoinSeries(image, image))
    holes = sitk.Cast(image, sitk.sitkFloat32)
    holes[0, 0, 0] = float("nan")
    with pytest.raises(DataError, match="the image: 1 of"):
        model.predict(holes)
    with pytest.raises(DataError, match="does not exist"):
        model.predict("nowhere.nii.gz")


def test_a_model_that_is_not_there_is_named(tmp_path, folder):
    with pytest.raises(ModelError, match="nowhere"):
        load_model(tmp_path / "nowhere", "cpu")
    with pytest.raises(UsageError, match="abacus"):
        load_model(folder, "abacus")


def test_the_example_of_the_documentation_runs(folder, path, tmp_path, monkeypatch, capsys):
    text = (ROOT / "docs" / "how-to" / "python.md").read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(folder)
    path.rename("scan.nii.gz")
    exec(re.search(r"```python\n(.+?)```", text, re.DOTALL)[1], {})
    assert "estimated probability" in capsys.readouterr().out
    assert read_instances(tmp_path / "lesions.nii.gz").array.any()


def test_importing_it_is_light():
    code = (
        "import sys, bonemet_auto.api; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
