import copy
import zipfile
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bonemet_auto.checkpoint import (
    CHECKPOINT_NAME,
    Progress,
    load_checkpoint,
    progress_of,
    save_checkpoint,
)
from bonemet_auto.errors import DataError, ModelError

CPU = torch.device("cpu")


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def save(folder, model=None):
    model = model or nn.Linear(2, 2)
    state = torch.optim.AdamW(model.parameters()).state_dict()
    save_checkpoint(folder, Progress(3, 6, 2, 5), model, copy.deepcopy(model), state)
    return folder / CHECKPOINT_NAME


def test_a_checkpoint_comes_back(tmp_path):
    model = nn.Linear(2, 2)
    save(tmp_path, model)
    content = load_checkpoint(tmp_path, CPU)
    assert progress_of(content) == Progress(3, 6, 2, 5)
    assert same(model.state_dict(), content["model"]) and same(model.state_dict(), content["ema"])


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused_by_name(tmp_path, share):
    path = save(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelError) as refused:
        load_checkpoint(tmp_path, CPU)
    assert str(path) in str(refused.value) and "Train the fold again" in str(refused.value)


def foreign_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", b"\x80\x02.")


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b"hello, this is no checkpoint"),
        foreign_zip,
        lambda path: torch.save(torch.zeros(3), path),
        lambda path: torch.save([1, 2], path),
        lambda path: torch.save({"format_version": 1}, path),
        lambda path: torch.save({"format_version": 1, "code": SimpleNamespace()}, path),
    ],
    ids=["text", "zip", "tensor", "list", "half empty", "code"],
)
def test_files_of_another_kind_are_refused_by_name(tmp_path, write):
    write(tmp_path / CHECKPOINT_NAME)
    with pytest.raises(ModelError, match=CHECKPOINT_NAME):
        progress_of(load_checkpoint(tmp_path, CPU))


def test_a_checkpoint_of_another_format_version_is_refused_with_both(tmp_path):
    torch.save({"format_version": 2}, tmp_path / CHECKPOINT_NAME)
    with pytest.raises(ModelError, match="format version 2, this program reads 1"):
        load_checkpoint(tmp_path, CPU)


def test_no_checkpoint_is_an_error_of_the_files(tmp_path):
    with pytest.raises(DataError, match="bonemet_train"):
        load_checkpoint(tmp_path, CPU)


def test_a_failed_save_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    path = save(tmp_path)
    before = path.read_bytes()

    def full_disk(content, where):
        where.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
