"""`bonemet_export`, `bonemet_install`, and prediction with what they carry."""

import json
import shutil
import zipfile

import pytest
import torch

from bonemet_auto.commands import export, install, predict
from bonemet_auto.files import sha256_file
from bonemet_auto.images import write_volume
from bonemet_auto.inference import archive as archives
from bonemet_auto.inference.package import checksums, read_package
from bonemet_auto.model.mask_rcnn import build_model
from bonemet_auto.report.model_card import TO_FILL_IN
from bonemet_auto.result_schema import CasePrediction, ConsolidatedModel, RunReport
from bonemet_auto.schema import read_json, write_json
from tests.tiny_model import NAME, PLAN, write_model
from tests.unit.inference_fakes import add_ball, tissue
from tests.unit.model_zips import (
    FORGERIES,
    contents,
    everything_below,
    files_of,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    (root / "raw" / NAME).mkdir(parents=True)
    write_model(root / "results" / NAME / "default" / "model")
    return root


@pytest.fixture(scope="module")
def model(root):
    return root / "results" / NAME / "default" / "model"


@pytest.fixture
def copy(model, tmp_path):
    return shutil.copytree(model, tmp_path / "copy")


@pytest.fixture(scope="module")
def shared(root, tmp_path_factory):
    path = tmp_path_factory.mktemp("shared") / "model.zip"
    assert export.main(["1", "--root", str(root), "-o", str(path)]) == 0
    return path


def run_export(*flags):
    return export.main([str(flag) for flag in flags])


def run_install(*flags):
    return install.main([str(flag) for flag in flags])


def card_of(path):
    return contents(path)["MODEL_CARD.md"].decode()


def test_the_card_tells_what_is_known_and_what_is_open(shared):
    card = card_of(shared)
    parameters = sum(weight.numel() for weight in build_model(PLAN.network).parameters())
    for fact in (
        f"# Model card: {NAME}, plan default",
        "estimates, it never diagnoses",
        "2, of folds 0, 1,",
        f"{parameters:,} in each network",
        "1.0 x 1.0 x 1.0 mm",
        "8 x 16 x 16 voxels",
        "4 scans of 4 patients",
        "12 (other: 6, lung_metastasis: 6)",
        "from score | 0.000",
        "1.500, 1.500",
        "```text\n4 scans of 4 patients\n```",
        "by bonemet_auto 0.1.0",
    ):
        assert fact in card
    assert card.count(f"{TO_FILL_IN}**: ") > 10
    assert card.count("diagnos") == card.count("never diagnoses") == 1


def test_a_model_without_cross_validation_says_so(copy, tmp_path):
    (copy / "cross_validation.txt").unlink()
    record = read_json(copy / "model.json", ConsolidatedModel)
    write_json(copy / "model.json", record.model_copy(update={"sha256": checksums(copy)}))
    assert run_export("-m", copy, "-o", tmp_path / "a.zip") == 0
    assert "There is none" in card_of(tmp_path / "a.zip")


def test_a_card_that_was_filled_in_is_taken_as_it_is(copy, tmp_path, caplog):
    with caplog.at_level("INFO"):
        assert run_export("-m", copy, "-o", tmp_path / "a.zip") == 0
        assert "are to be filled in by you" in caplog.text
        caplog.clear()
        (copy / "MODEL_CARD.md").write_text("Größe: all known\n", encoding="utf-8")
        assert run_export("-m", copy, "-o", tmp_path / "b.zip") == 0
        assert "to be filled in" not in caplog.text
    assert card_of(tmp_path / "b.zip") == "Größe: all known\n"


def test_a_card_in_another_encoding_is_refused(copy, tmp_path, capsys):
    (copy / "MODEL_CARD.md").write_text("Größe", encoding="latin-1")
    assert run_export("-m", copy, "-o", tmp_path / "a.zip") == 2
    assert "Save it as UTF-8" in capsys.readouterr().err


def test_export_tells_the_checksum(model, tmp_path, caplog):
    with caplog.at_level("INFO"):
        assert run_export("-m", model, "-o", tmp_path / "a.zip") == 0
    assert sha256_file(tmp_path / "a.zip") in caplog.text


def test_without_a_consolidated_model_there_is_nothing_to_export(root, tmp_path, capsys):
    out = tmp_path / "a.zip"
    assert run_export("1", "-p", "other", "--root", root, "-o", out) == 2
    assert f"run bonemet_consolidate {NAME} -p other first" in capsys.readouterr().err
    assert run_export("-m", root, "-o", out) == 2
    assert "no model.json" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["fold_1.safetensors", "plan.json", "dataset.json"])
@pytest.mark.parametrize("harm", ["changed", "gone"])
def test_a_damaged_model_is_not_exported(copy, tmp_path, capsys, name, harm):
    data = bytearray((copy / name).read_bytes())
    data[-3] ^= 1
    (copy / name).write_bytes(data) if harm == "changed" else (copy / name).unlink()
    assert run_export("-m", copy, "-o", tmp_path / "a.zip") == 2
    assert str(copy / name) in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [copy]


def test_a_model_that_lists_files_of_other_folders_is_not_exported(copy, tmp_path, capsys):
    (tmp_path / "private.txt").write_text("secret")
    record = json.loads((copy / "model.json").read_text())
    record["sha256"]["../private.txt"] = sha256_file(tmp_path / "private.txt")
    (copy / "model.json").write_text(json.dumps(record))
    assert run_export("-m", copy, "-o", tmp_path / "a.zip") == 2
    assert "../private.txt" in capsys.readouterr().err
    assert not (tmp_path / "a.zip").exists()


def test_a_zip_is_replaced_only_when_told_and_a_folder_never(model, tmp_path, capsys):
    out = tmp_path / "a.zip"
    out.write_text("old")
    assert run_export("-m", model, "-o", out) == 2
    assert "--overwrite" in capsys.readouterr().err and out.read_text() == "old"
    assert run_export("-m", model, "-o", out, "--overwrite") == 0
    assert zipfile.is_zipfile(out)
    assert run_export("-m", model, "-o", tmp_path, "--overwrite") == 2
    assert "is a folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [out]


def test_a_model_is_installed_under_the_data_root(shared, tmp_path, caplog):
    with caplog.at_level("INFO"):
        assert run_install(shared, "--root", tmp_path / "data root") == 0
    there = tmp_path / "data root" / "models" / f"{NAME}_default"
    assert f"bonemet_predict -i SCANS -o RESULTS -m '{there}'" in caplog.text
    assert {path.name: path.read_bytes() for path in there.iterdir()} == files_of(shared)
    folders = [there.parent.parent, there.parent, there]
    assert [path for path in tmp_path.rglob("*") if path.is_dir()] == folders
    assert not [path for path in tmp_path.rglob(".*")]


def test_an_installed_model_is_exported_to_the_same_zip(shared, tmp_path):
    assert run_install(shared, "-o", tmp_path / "m") == 0
    assert run_export("-m", tmp_path / "m", "-o", tmp_path / "m.zip") == 0
    assert (tmp_path / "m.zip").read_bytes() == shared.read_bytes()


def test_an_installed_model_has_the_rights_of_other_new_files(shared, tmp_path):
    assert run_install(shared, "-o", tmp_path / "deep" / "m") == 0
    (tmp_path / "usual").mkdir()
    (tmp_path / "usual" / "file").touch()
    for made, usual in (("deep/m", "usual"), ("deep/m/plan.json", "usual/file")):
        assert (tmp_path / made).stat().st_mode == (tmp_path / usual).stat().st_mode


def test_names_in_a_zip_cannot_lead_out_of_the_models_folder(tmp_path):
    described = {"dataset": "../../../evil/\x1b[31m", "plan": "..\\x:"}
    folder = write_model(tmp_path / "model", **described)
    assert run_export("-m", folder, "-o", tmp_path / "a.zip") == 0
    assert run_install(tmp_path / "a.zip", "--root", tmp_path / "root") == 0
    (installed,) = (tmp_path / "root" / "models").iterdir()
    assert installed.name == "_.._.._evil___31m_.._x_"


@pytest.mark.parametrize("name", FORGERIES)
def test_a_bad_zip_is_not_installed_and_leaves_nothing(name, shared, tmp_path, capsys):
    make, _ = FORGERIES[name]
    path = tmp_path / "bad.zip"
    make(path, shared)
    before = everything_below(tmp_path)
    assert run_install(path, "-o", tmp_path / "models" / "m") == 2
    assert run_install(path, "--root", tmp_path / "root") == 2
    assert capsys.readouterr().err.count(str(path)) == 2
    assert everything_below(tmp_path) == before


def test_a_full_disk_is_seen_before_anything_is_written(shared, tmp_path, monkeypatch, capsys):
    full = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda path: full)
    assert run_install(shared, "-o", tmp_path / "m") == 2
    assert "make room" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_model_is_replaced_only_when_told(shared, tmp_path, capsys):
    target = tmp_path / "m"
    assert run_install(shared, "-o", target) == 0
    (target / "plan.json").write_text("old")
    assert run_install(shared, "-o", target) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (target / "plan.json").read_text() == "old"
    assert run_install(shared, "-o", target, "--overwrite") == 0
    assert len(read_package(target, CPU).models) == 2
    assert list(tmp_path.iterdir()) == [target]


def test_a_bad_zip_replaces_no_model(shared, tmp_path):
    target = tmp_path / "m"
    assert run_install(shared, "-o", target) == 0
    FORGERIES["fold_0.safetensors changed"][0](tmp_path / "bad.zip", shared)
    before = everything_below(tmp_path)
    assert run_install(tmp_path / "bad.zip", "-o", target, "--overwrite") == 2
    assert everything_below(tmp_path) == before
    assert len(read_package(target, CPU).models) == 2


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_no_model_is_never_replaced(shared, tmp_path, capsys, kind):
    target = tmp_path / "thesis"
    target.mkdir() if kind == "folder" else target.write_text("chapter 1")
    assert run_install(shared, "-o", target, "--overwrite") == 2
    assert "left alone" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [target]


def test_a_place_that_cannot_be_made_is_named(shared, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert run_install(shared, "-o", tmp_path / "file" / "m") == 2
    assert f"{tmp_path / 'file' / 'm'} cannot be made" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.fixture
def space(tmp_path, monkeypatch):
    """Temporary folders go here, so that it shows what stays."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    return place


def run_predict(folder, model, *more):
    scan = add_ball(tissue((12, 16, 16)), (8, 8, 6), 3)
    write_volume(folder / "scan_0000.nii.gz", scan)
    flags = ["-i", "scan_0000.nii.gz", "-o", "out", "-m", model, "-device", "cpu", *more]
    return predict.main([str(flag) for flag in flags])


def test_a_zip_alone_predicts_as_its_model_does(shared, model, space, tmp_path, monkeypatch):
    written = []
    for name, source in (("zip", shared), ("folder", model)):
        place = tmp_path / name
        place.mkdir()
        monkeypatch.chdir(place)
        given = shutil.copy(source, "mine.zip") if name == "zip" else source
        assert run_predict(place, given, "--threshold", "0") == 0
        written.append(read_json(place / "out" / "scan.json", CasePrediction))
    assert written[0] == written[1] and written[0].lesions
    report = read_json(tmp_path / "zip" / "out" / "run_report.json", RunReport)
    assert report.flags["folds_used"] == "mine.zip"
    assert not list(space.iterdir())


def test_single_folds_of_a_zip_are_refused(shared, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_predict(tmp_path, shared, "-f", "0") == 2
    assert "leave -f out" in capsys.readouterr().err


def test_nothing_is_predicted_with_a_bad_zip(shared, space, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    FORGERIES["fold_0.safetensors changed"][0](tmp_path / "bad.zip", shared)
    assert run_predict(tmp_path, "bad.zip") == 2
    assert "is not the file that was exported" in capsys.readouterr().err
    assert not list(space.iterdir()) and not (tmp_path / "out").exists()
