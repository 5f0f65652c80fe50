"""A consolidated model made without training, zips of it, and zips that must be refused."""

import hashlib
import io
import json
import stat
import struct
import warnings
import zipfile

import safetensors.torch
import torch

from bonemet_auto.inference.archive import pack_model
from bonemet_auto.inference.package import read_description

CARD = "# Model card\n"


def write_zip(folder, path):
    """The model of a folder as a good zip."""
    pack_model(folder, read_description(folder)[0], CARD, path)
    return path


def contents(path):
    with zipfile.ZipFile(path) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def files_of(path):
    return {name: data for name, data in contents(path).items() if name != "manifest.json"}


def entry_of(data):
    return {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def listed(files):
    return {name: entry_of(data) for name, data in files.items()}


def forge(path, files, manifest=None, more=()):
    """A zip of files, of a manifest that lists them unless it lists others, and of more entries."""
    record = {"format_version": 1, "bonemet_version": "0.1.0", "files": manifest or listed(files)}
    with zipfile.ZipFile(path, "w") as opened, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # duplicate names are what some tests are about
        for name, data in ({"manifest.json": json.dumps(record).encode()} | files).items():
            opened.writestr(name, data)
        for entry, data in more:
            opened.writestr(entry, data)


def everything_below(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*"))


def _broken():
    yield "no zip", lambda path, good: path.write_bytes(b"weights" * 99), "no whole zip"
    yield "empty", lambda path, good: path.write_bytes(b""), "no whole zip"
    yield "cut", lambda path, good: path.write_bytes(good.read_bytes()[:-400]), "no whole zip"
    yield "missing", lambda path, good: None, "is no file"
    yield "a folder", lambda path, good: path.mkdir(), "is no file"
    yield "bzip2", _packed_by(zipfile.ZIP_BZIP2), "neither stored nor deflated"
    yield "lzma", _packed_by(zipfile.ZIP_LZMA), "neither stored nor deflated"
    yield "encrypted", _encrypted, "encrypted"
    yield "a bomb", _bomb, "no whole zip"


def _packed_by(method):
    def make(path, good):
        with zipfile.ZipFile(path, "w", method) as opened:
            for name, data in contents(good).items():
                opened.writestr(name, data)

    return make


def _encrypted(path, good):
    data = bytearray(good.read_bytes())
    for mark, flags in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        place = data.find(mark)
        while place >= 0:
            data[place + flags] |= 1
            place = data.find(mark, place + 4)
    path.write_bytes(data)


def _bomb(path, good):
    """Weights that unpack to 64 MiB, in a zip that everywhere claims their true size."""
    files, name = files_of(good), "fold_1.safetensors"
    forge(path, {key: data for key, data in files.items() if key != name}, listed(files))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr(name, bytes(64 << 20))
    data = bytearray(path.read_bytes())
    place = data.rindex(name.encode()) - 46
    assert data[place : place + 4] == b"PK\x01\x02"
    data[place + 24 : place + 28] = struct.pack("<I", len(files[name]))
    path.write_bytes(data)


def _badly_named():
    for name in (
        *("../evil", "/evil", "a/../../evil", "..\\evil", "C:evil", "sub/evil", "..", ".hidden"),
        *("folder/", "evil\0.txt", "évil", "a b", "evil\n"),
    ):
        yield f"entry {name!r}", _with_entry_named(name), "no plain file name"
    evil = {"../evil": b"1"}
    yield (
        "a listed way out",
        lambda path, good: forge(path, files_of(good) | evil),
        "no plain file name",
    )
    yield (
        "a way out in the manifest only",
        lambda path, good: forge(path, files_of(good), listed(files_of(good) | evil)),
        r"manifest\.json: files\.\.\./evil",
    )
    for name in ("plan.json", "PLAN.json", "manifest.json"):
        yield f"{name} twice", _with_more((name, b"{}")), f"{name.lower()} more than once"
    yield "a link", _with_more((_link("link"), b"/etc")), "link is no regular file"
    yield "a link in a file's place", _link_in_place, "plan.json is no regular file"
    yield "an entry that is not listed", _with_more(("more.txt", b"1")), "differ in more.txt"


def _with_entry_named(name):
    """Of a name that `zipfile` would not write."""

    def make(path, good):
        stand_in = "#" * len(name.encode("cp437"))
        forge(path, {}, more=[(stand_in, b"1")])
        data = path.read_bytes()
        assert data.count(stand_in.encode()) == 2
        path.write_bytes(data.replace(stand_in.encode(), name.encode("cp437")))

    return make


def _with_more(*more):
    return lambda path, good: forge(path, files_of(good), more=more)


def _link(name):
    entry = zipfile.ZipInfo(name)
    entry.create_system, entry.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return entry


def _link_in_place(path, good):
    files = files_of(good) | {"plan.json": b"/etc/passwd"}
    rest = {name: data for name, data in files.items() if name != "plan.json"}
    forge(path, rest, listed(files), [(_link("plan.json"), files["plan.json"])])


def _tampered():
    for name in ("fold_0.safetensors", "MODEL_CARD.md", "plan.json", "model.json", "dataset.json"):
        yield f"{name} changed", _harmed(name, _flip), f"{name} is not the file"
        yield f"{name} longer", _harmed(name, lambda data: data + b"1"), f"{name} has .* says"
        yield f"{name} shorter", _harmed(name, lambda data: data[:-1]), f"{name} has .* says"
    yield "weights not there", _lacking("fold_1.safetensors"), "differ in fold_1.safetensors"
    yield "weights swapped, manifest too", _swapped, "contradict"
    yield "without weights", _without("fold_0.safetensors"), "contradict"
    yield "without any fold", _described(folds=[]), "contradict"
    for name in ("model.json", "plan.json", "operating_point.json"):
        yield f"without {name}", _without(name), f"{name} is missing"


def _flip(data):
    return data[:-5] + bytes([data[-5] ^ 4]) + data[-4:]


def _harmed(name, harm):
    def make(path, good):
        files = files_of(good)
        forge(path, files | {name: harm(files[name])}, listed(files))

    return make


def _lacking(name):
    def make(path, good):
        files = files_of(good)
        forge(path, {key: files[key] for key in files if key != name}, listed(files))

    return make


def _swapped(path, good):
    files = files_of(good)
    forge(path, files | {"fold_0.safetensors": files["fold_1.safetensors"]})


def _described(**values):
    """With other values in `model.json`."""

    def make(path, good):
        files = files_of(good)
        record = json.dumps(json.loads(files["model.json"]) | values)
        forge(path, files | {"model.json": record.encode()})

    return make


def _without(name):
    """A file less, in agreement with all checksums."""

    def make(path, good):
        files = files_of(good)
        record = json.loads(files["model.json"])
        record["sha256"].pop(name, None)
        files["model.json"] = json.dumps(record).encode()
        forge(path, {key: files[key] for key in files if key != name})

    return make


def _foreign():
    yield "another program's", _of_another_program, "no model of bonemet_export"
    for name in ("manifest.json", "model.json", "plan.json", "operating_point.json"):
        said = rf"{name} was written by a newer version .* update bonemet_auto"
        yield f"newer {name}", _newer(name), said
    for text in (b"{}", b"no json"):
        yield f"manifest {text}", _with_manifest(text), r"manifest\.json: "
    pickled = io.BytesIO()
    torch.save({"weight": torch.zeros(3)}, pickled)
    other = safetensors.torch.save({"weight": torch.zeros(3)})
    for what, weights in (("pickled weights", pickled.getvalue()), ("other weights", other)):
        yield what, _with_weights(weights), r"loaded: .*fold_0\.safetensors cannot be used"
    yield "manifest no text", _with_manifest(b"\xff\xfe"), "no whole zip"


def _of_another_program(path, good):
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("Dataset001/nnUNetTrainer/fold_0/checkpoint.pth", b"1")


def _newer(name):
    def make(path, good):
        record = json.loads(contents(good)[name]) | {"format_version": 2, "colour": "blue"}
        forge(path, files_of(good) | {name: json.dumps(record).encode()}, listed(files_of(good)))
        if name != "manifest.json":
            forge(path, files_of(path))

    return make


def _with_weights(weights):
    """Of fold 0, in agreement with all checksums."""

    def make(path, good):
        files = files_of(good) | {"fold_0.safetensors": weights}
        record = json.loads(files["model.json"])
        record["sha256"]["fold_0.safetensors"] = entry_of(weights)["sha256"]
        forge(path, files | {"model.json": json.dumps(record).encode()})

    return make


def _with_manifest(text):
    return lambda path, good: forge(path, files_of(good) | {"manifest.json": text})


FORGERIES = {
    name: (make, said)
    for family in (_broken, _badly_named, _tampered, _foreign)
    for name, make, said in family()
}
"""What is wrong: a function of a path and a good zip that makes it, and what is said about it."""
