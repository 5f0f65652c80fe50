import json
import logging
import shutil

import pandas as pd
import pytest
import torch

from bonemet_auto.commands.pretrain import main
from bonemet_auto.commands.train import main as train
from bonemet_auto.data import loader
from bonemet_auto.training import log
from tests.unit.test_train_command import NAME, prepared  # noqa: F401 - a fixture


@pytest.fixture(scope="module", autouse=True)
def no_pictures():
    """Drawing takes longer than training here."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(log, "_draw", lambda table, path: path.write_bytes(b"no picture"))
        yield


@pytest.fixture
def root(prepared, tmp_path):  # noqa: F811
    shutil.copytree(prepared, tmp_path / "root")
    return tmp_path / "root"


def pretrain(root, *flags):
    return main(["1", "--root", str(root), "--device", "cpu", "--workers", "0", *flags])


def folder_of(root):
    return root / "results" / NAME / "default" / "pretrained"


def weights(root):
    return torch.load(folder_of(root) / "checkpoint_last.pt", weights_only=True)["ema"]


def refused(capsys, code, *parts):
    said = capsys.readouterr().err
    assert code == 2 and all(part in said for part in parts)


def test_pretrained_weights_start_a_fold(root, capsys, caplog):
    caplog.set_level(logging.INFO)
    assert pretrain(root, "--iterations", "6") == 0
    table = pd.read_csv(folder_of(root) / "metrics.csv")
    assert table["reconstruction"].notna().all() and table["step"].tolist()[-1] == 6
    unlabelled = root / "preprocessed" / NAME / "default" / "unlabelled"
    assert len(list(unlabelled.glob("*_seg.b2nd"))) == 5
    refused(capsys, pretrain(root), "--overwrite")
    flags = ["1", "0", "--root", str(root), "--device", "cpu", "--workers", "0"]
    assert train([*flags, "--iterations", "2", "--init-weights", str(folder_of(root))]) == 0
    assert "2 unused" in caplog.text and "rpn" in caplog.text


def test_pretraining_mirrors_as_the_plan_says_and_plants_nothing(root, monkeypatch):
    file = root / "preprocessed" / NAME / "default" / "plan.json"
    plan = json.loads(file.read_text())
    plan["augmentation"] = {"mirror_axes": [2], "planting": 0.5}
    plan["inference"]["mirror_axes"] = [2]
    file.write_text(json.dumps(plan))
    seen, real = [], loader.mirror
    monkeypatch.setattr(loader, "mirror", lambda *given: seen.append(given[2]) or real(*given))
    monkeypatch.setattr(loader, "plant", lambda *given: pytest.fail("planted"))
    assert pretrain(root, "--iterations", "2") == 0
    assert seen and set(seen) == {(2,)}


def test_a_resumed_pretraining_equals_one_in_one_go(root, tmp_path, capsys, monkeypatch):
    refused(capsys, pretrain(root, "--resume"), "nothing to resume")
    shutil.copytree(root, tmp_path / "other")
    assert pretrain(root, "--iterations", "20", "--seed", "4") == 0
    from bonemet_auto.training import trainer

    step, left = trainer.Trainer.step, iter(range(13))

    def breaks_off(self, number, batch):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return step(self, number, batch)

    with monkeypatch.context() as patched:
        patched.setattr(trainer.Trainer, "step", breaks_off)
        pretrain(tmp_path / "other", "--iterations", "20", "--seed", "4")
    assert pretrain(tmp_path / "other", "--resume") == 0
    whole, resumed = weights(root), weights(tmp_path / "other")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_other_scans_and_broken_ones(root, tmp_path, capsys, caplog):
    scans = tmp_path / "scans"
    scans.mkdir()
    first = sorted((root / "raw" / NAME / "imagesTr").glob("*.nii.gz"))[0]
    shutil.copy(first, scans / "one.nii.gz")
    (scans / "broken.nii.gz").write_bytes(b"not an image")
    assert pretrain(root, "-i", str(scans), "--iterations", "2") == 3
    assert "broken.nii.gz" in caplog.text
    listed = (folder_of(root) / "failed_cases.json").read_text()
    assert "broken" in listed and "one" not in listed
    (scans / "one.nii.gz").unlink()
    refused(capsys, pretrain(root, "-i", str(scans), "--overwrite"), "none of the 1 scans")
    refused(capsys, pretrain(root, "-i", str(tmp_path / "nowhere"), "--overwrite"), "nowhere")
    assert weights(root), "a refusal must not cost the weights that are there"
