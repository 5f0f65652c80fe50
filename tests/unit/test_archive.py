"""A consolidated model as a zip: packed the same every time, and unpacked only if it is whole."""

import errno
import os
import shutil
import zipfile

import pytest
import torch

from bonemet_auto.errors import ModelError
from bonemet_auto.inference import archive as archives
from bonemet_auto.inference.archive import Archive, open_archive, read_archive, unpack_model
from bonemet_auto.inference.package import read_package
from bonemet_auto.result_schema import ArchiveManifest
from bonemet_auto.schema import parse_json
from tests.tiny_model import write_model
from tests.unit.model_zips import (
    FORGERIES,
    contents,
    everything_below,
    files_of,
    forge,
    listed,
    write_zip,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def good(model, tmp_path_factory):
    return write_zip(model, tmp_path_factory.mktemp("zip") / "good.zip")


def test_a_zip_holds_the_model_its_card_and_a_list_of_all(good, model):
    packed = contents(good)
    names = {path.name for path in model.iterdir()} | {"MODEL_CARD.md"}
    assert list(packed) == sorted(names | {"manifest.json"})
    assert all(packed[path.name] == path.read_bytes() for path in model.iterdir())
    manifest = parse_json(packed["manifest.json"].decode(), ArchiveManifest, "", ModelError)
    assert manifest.model_dump()["files"] == listed(files_of(good))
    with zipfile.ZipFile(good) as opened:
        looks = {(entry.compress_type, entry.date_time) for entry in opened.infolist()}
    assert looks == {(zipfile.ZIP_STORED, (1980, 1, 1, 0, 0, 0))}


def test_equal_models_give_equal_bytes_wherever_they_lie(model, good, tmp_path):
    copy = shutil.copytree(model, tmp_path / "copy")
    (copy / "notes.txt").write_text("private")
    for number, path in enumerate(sorted(copy.iterdir(), reverse=True)):
        path.chmod(0o600)
        os.utime(path, (number * 1e6, number * 1e6))
    assert write_zip(copy, tmp_path / "a.zip").read_bytes() == good.read_bytes()


def test_what_is_unpacked_are_the_same_files_and_networks(model, good, tmp_path):
    with open_archive(good) as archive:
        unpack_model(archive, tmp_path, CPU)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files_of(good)
    ours = read_package(model, CPU)
    for theirs in (read_package(tmp_path, CPU), read_archive(good, CPU)):
        assert (ours.plan, ours.operating_point) == (theirs.plan, theirs.operating_point)
        for one, other in zip(ours.models, theirs.models, strict=True):
            weights = other.state_dict()
            assert all(torch.equal(value, weights[key]) for key, value in one.state_dict().items())
    assert theirs.folders == [good]


def test_a_zip_that_was_packed_anew_by_another_program_is_as_good(good, tmp_path):
    with zipfile.ZipFile(tmp_path / "d.zip", "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in reversed(contents(good).items()):
            opened.writestr(name, data)
    assert len(read_archive(tmp_path / "d.zip", CPU).models) == 2


@pytest.mark.parametrize("name", FORGERIES)
def test_a_bad_zip_is_refused_by_its_name_and_leaves_nothing(name, good, tmp_path, monkeypatch):
    make, said = FORGERIES[name]
    make(tmp_path / "bad.zip", good)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    before = everything_below(tmp_path)
    with pytest.raises(ModelError, match=said) as refused:
        read_archive(tmp_path / "bad.zip", CPU)
    assert str(refused.value).startswith(str(tmp_path / "bad.zip"))
    assert everything_below(tmp_path) == before


def test_a_name_that_a_later_field_of_the_entry_replaces_is_refused(good, monkeypatch):
    """Newer Pythons take the name from there."""

    def rename(entry, *_):
        if entry.filename == "plan.json":
            entry.filename = "plan2.json"

    monkeypatch.setattr(zipfile.ZipInfo, "_decodeExtra", rename)
    with pytest.raises(ModelError, match=r"'plan\.json', which is no plain"), open_archive(good):
        pass


def test_no_byte_can_change_unseen_and_no_end_can_be_missing(good, tmp_path, monkeypatch):
    """Wherever a bit flips, the model is refused, or unpacked as it was."""
    loaded = read_archive(good, CPU)
    monkeypatch.setattr(archives, "read_package", lambda folder, device: loaded)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    whole, expected = good.read_bytes(), files_of(good)
    headers = whole.index(b"PK\x01\x02")
    flips = [*range(0, headers, 3989), *range(35), *range(headers, len(whole), 5)]
    harmed = [
        whole[:place] + bytes([whole[place] ^ (1 << number % 8)]) + whole[place + 1 :]
        for number, place in enumerate(flips)
    ]
    harmed += [whole[:end] for end in range(0, len(whole), 9973)]
    harmed += [whole[:end] for end in range(len(whole) - 30, len(whole))]
    refused = 0
    for number, data in enumerate(harmed):
        (tmp_path / "bad.zip").write_bytes(data)
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            with open_archive(tmp_path / "bad.zip") as archive:
                unpack_model(archive, folder, CPU)
            assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected
        except ModelError:
            refused += 1
    assert refused > len(harmed) / 2


def test_a_disk_that_fills_up_meanwhile_is_named(good, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ModelError, match=r"good\.zip cannot be unpacked .*No space left"):
        read_archive(good, CPU)


def test_a_fault_that_is_not_the_zips_is_not_blamed_on_it(good, tmp_path, monkeypatch):
    def without_memory(folder, device):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(archives, "read_package", without_memory)
    with pytest.raises(RuntimeError, match="CUDA"):
        read_archive(good, CPU)


def test_unpacking_stops_where_an_entry_goes_on_beyond_its_listed_size(good, tmp_path):
    with open_archive(good) as archive:
        files = dict(archive.manifest.files)
        short = files["fold_0.safetensors"].model_copy(update={"size_bytes": 100})
        files["fold_0.safetensors"] = short
        lying = archive.manifest.model_copy(update={"files": files})
        with pytest.raises(ModelError, match="longer than it claims"):
            unpack_model(Archive(good, archive.opened, lying, archive.model), tmp_path, CPU)
    assert (tmp_path / "fold_0.safetensors").stat().st_size == 0


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ("LIMIT_BYTES", "no model of ours takes more"),
        ("JSON_LIMIT_BYTES", r"manifest\.json is larger than 500"),
    ],
)
def test_sizes_beyond_reason_are_refused_before_anything_is_read(good, monkeypatch, limit, said):
    monkeypatch.setattr(archives, limit, 500)
    with pytest.raises(ModelError, match=said), open_archive(good):
        pass


def test_a_description_too_large_for_memory_is_refused(good, tmp_path, monkeypatch):
    forge(tmp_path / "a.zip", files_of(good) | {"plan.json": bytes(20_000)})
    monkeypatch.setattr(archives, "JSON_LIMIT_BYTES", 15_000)
    with (
        pytest.raises(ModelError, match=r"plan\.json is missing, or too large"),
        open_archive(tmp_path / "a.zip"),
    ):
        pass
