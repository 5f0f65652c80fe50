"""A consolidated model as one zip, packed with sizes and checksums, and unpacked without trust.

`manifest.json` lists every other file of the zip. Before anything is written, names, kinds and
sizes of all entries are held against it, and what the model says of itself is read; while an entry
is unpacked, its length and checksum are. Equal folders give equal bytes. Checksums find damage, not
forgery: whoever can rewrite the zip can rewrite its manifest too, so nothing in it is ever run.
"""

import hashlib
import io
import os
import re
import shutil
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import torch

from bonemet_auto import __version__
from bonemet_auto.errors import ModelError, UsageError
from bonemet_auto.files import atomic_write, sha256_file
from bonemet_auto.inference.load import POINT_NAME, Ensemble
from bonemet_auto.inference.package import MODEL_NAME, PLAN_NAME, read_package, weights_name
from bonemet_auto.plan_schema import Plan
from bonemet_auto.result_schema import (
    PLAIN_NAME,
    ArchivedFile,
    ArchiveManifest,
    ConsolidatedModel,
    OperatingPoint,
)
from bonemet_auto.schema import Model, parse_json

MANIFEST_NAME = "manifest.json"
CARD_NAME = "MODEL_CARD.md"
LIMIT_BYTES = 16 * 2**30
"""Unpacked; five of the largest planned networks take less than a twentieth of it."""
JSON_LIMIT_BYTES = 16 * 2**20
"""Of a file that is read into memory."""

_CHUNK_BYTES = 1 << 20
_SAME_DATE = (1980, 1, 1, 0, 0, 0)
_REMEDY = "Fetch the zip again, or have it exported anew (bonemet_export)."
_BROKEN = (BadZipFile, zlib.error, EOFError, ValueError, RuntimeError)
"""What zipfile raises on files that are cut, damaged, encrypted or of a kind it does not know."""


@dataclass(frozen=True)
class Archive:
    """An open model zip whose contents were found to be what its manifest says."""

    path: Path
    opened: ZipFile
    manifest: ArchiveManifest
    model: ConsolidatedModel


def pack_model(folder: Path, model: ConsolidatedModel, card: str, path: Path) -> None:
    """Write a consolidated model as a zip; equal files and card give equal bytes.

    Args:
        folder: holds the model's files, found unchanged (`read_description`).
        model: its `model.json`.
        card: text of the model card.
        path: the zip.
    """
    text = card.encode()
    files = {
        name: ArchivedFile(size_bytes=(folder / name).stat().st_size, sha256=sha256)
        for name, sha256 in (*model.sha256.items(), (MODEL_NAME, sha256_file(folder / MODEL_NAME)))
    }
    files[CARD_NAME] = ArchivedFile(size_bytes=len(text), sha256=hashlib.sha256(text).hexdigest())
    manifest = ArchiveManifest(bonemet_version=__version__, files=dict(sorted(files.items())))
    texts = {CARD_NAME: text, MANIFEST_NAME: f"{manifest.model_dump_json(indent=1)}\n".encode()}
    with atomic_write(path) as temporary, ZipFile(temporary, "w") as opened:
        for name in sorted({*files, MANIFEST_NAME}):
            with io.BytesIO(texts[name]) if name in texts else (folder / name).open("rb") as source:
                _add(opened, name, source)


def _add(opened: ZipFile, name: str, source: BinaryIO) -> None:
    """Add an entry that tells nothing of when and where it was written.

    It is stored as it is: weights hardly shrink, and other builds of zlib compress to other bytes.
    """
    entry = ZipInfo(name, _SAME_DATE)
    entry.create_system = 3  # Unix, wherever it is written
    entry.external_attr = (stat.S_IFREG | 0o644) << 16
    entry.file_size = source.seek(0, os.SEEK_END)
    source.seek(0)
    with opened.open(entry, "w") as target:
        shutil.copyfileobj(source, target, _CHUNK_BYTES)


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open a model zip and check all but the bytes of its larger files; nothing is written.

    Raises:
        ModelError: no such file, not a whole zip or not one of ours, of a newer program, or its
            entries are not exactly what its manifest says.
    """
    if not path.is_file():
        raise ModelError(f"{path} is no file; give a zip that bonemet_export wrote")
    with _faults_named(path):
        opened = ZipFile(path)
    with opened:
        with _faults_named(path):
            manifest = _read_manifest(path, opened)
            _require_listed(path, opened, manifest)
            model = _read_model(path, opened, manifest)
        yield Archive(path, opened, manifest, model)


def unpack_model(archive: Archive, folder: Path, device: torch.device) -> Ensemble:
    """Unpack a model into an empty folder and load it from there.

    Raises:
        ModelError: an entry is damaged, or longer or other than the manifest says, or the model
            cannot be loaded; the folder then holds a part of the files.
        UsageError: the disk has not enough room.
    """
    files = archive.manifest.files
    needed = sum(known.size_bytes for known in files.values())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UsageError(
            f"{archive.path} takes {needed >> 20} MiB unpacked, {folder.parent} has "
            f"{free >> 20} MiB left; make room there, or unpack elsewhere "
            "(bonemet_install -o FOLDER; $TMPDIR for bonemet_predict)"
        )
    for name, known in files.items():
        with _faults_named(archive.path), (folder / name).open("xb") as target:
            for piece in _pieces(archive.path, archive.opened, name, known):
                target.write(piece)
            target.flush()
            os.fsync(target.fileno())
    try:
        return replace(read_package(folder, device), folders=[archive.path])
    except ModelError as error:
        raise ModelError(f"{archive.path} holds no model that can be loaded: {error}") from None


def read_archive(path: Path, device: torch.device) -> Ensemble:
    """Load a consolidated model from its zip, by way of a temporary folder.

    Raises:
        ModelError: as `open_archive` and `unpack_model`.
        UsageError: as `unpack_model`.
    """
    with open_archive(path) as archive, TemporaryDirectory(prefix="bonemet_") as folder:
        return unpack_model(archive, Path(folder), device)


@contextmanager
def _faults_named(path: Path) -> Iterator[None]:
    """Turn what reading a zip may raise into one error that names it."""
    try:
        yield
    except _BROKEN as broken:
        raise ModelError(f"{path} is no whole zip file ({broken}). {_REMEDY}") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be unpacked ({error}).") from None


def _read_manifest(path: Path, opened: ZipFile) -> ArchiveManifest:
    entries = opened.infolist()
    if MANIFEST_NAME not in opened.namelist():
        raise ModelError(
            f"{path} is no model of bonemet_export: it holds no {MANIFEST_NAME}. Give another file."
        )
    for entry in entries:
        _require_plain(path, entry)
    names = [entry.filename.casefold() for entry in entries]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ModelError(f"{path} holds {', '.join(twice)} more than once. {_REMEDY}")
    if opened.getinfo(MANIFEST_NAME).file_size > JSON_LIMIT_BYTES:
        raise ModelError(f"{path}: {MANIFEST_NAME} is larger than {JSON_LIMIT_BYTES} bytes.")
    text = opened.read(MANIFEST_NAME).decode()
    return parse_json(text, ArchiveManifest, f"{path}: {MANIFEST_NAME}", ModelError)


def _require_plain(path: Path, entry: ZipInfo) -> None:
    """Refuse what would not become a regular file of that name right in the model's folder."""
    name, kind = entry.orig_filename, stat.S_IFMT(entry.external_attr >> 16)
    if name != entry.filename or not re.fullmatch(PLAIN_NAME, name):
        raise ModelError(f"{path} holds {name!r}, which is no plain file name. {_REMEDY}")
    if kind not in (0, stat.S_IFREG):
        raise ModelError(f"{path}: {name} is no regular file, but a link or the like. {_REMEDY}")
    if entry.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        # Others may unpack to gigabytes in one piece.
        raise ModelError(f"{path}: {name} is neither stored nor deflated. {_REMEDY}")


def _require_listed(path: Path, opened: ZipFile, manifest: ArchiveManifest) -> None:
    """Refuse a zip whose entries are others, or of other sizes, than its manifest says."""
    sizes = {entry.filename: entry.file_size for entry in opened.infolist()}
    del sizes[MANIFEST_NAME]
    listed = {name: known.size_bytes for name, known in manifest.files.items()}
    if sizes.keys() != listed.keys():
        differing = ", ".join(sorted(sizes.keys() ^ listed.keys()))
        raise ModelError(f"{path} and its {MANIFEST_NAME} differ in {differing}. {_REMEDY}")
    for name, size in sizes.items():
        if size != listed[name]:
            raise ModelError(
                f"{path}: {name} has {size} bytes, {MANIFEST_NAME} says {listed[name]}. {_REMEDY}"
            )
    if sum(listed.values()) > LIMIT_BYTES:
        raise ModelError(
            f"{path} takes {sum(listed.values()) / 2**30:.1f} GiB unpacked, and no model of ours "
            f"takes more than {LIMIT_BYTES / 2**30:.0f} GiB; it is left alone."
        )


def _read_model(path: Path, opened: ZipFile, manifest: ArchiveManifest) -> ConsolidatedModel:
    """What the model says of itself, held against the manifest; nothing newer than this program."""

    def read(name: str, schema: type[Model]) -> Model:
        known = manifest.files.get(name)
        if known is None or known.size_bytes > JSON_LIMIT_BYTES:
            raise ModelError(f"{path}: {name} is missing, or too large. {_REMEDY}")
        text = b"".join(_pieces(path, opened, name, known)).decode()
        return parse_json(text, schema, f"{path}: {name}", ModelError)

    model = read(MODEL_NAME, ConsolidatedModel)
    read(PLAN_NAME, Plan)
    read(POINT_NAME, OperatingPoint)
    own = {name: known.sha256 for name, known in manifest.files.items() if name != CARD_NAME}
    del own[MODEL_NAME]
    weights = {weights_name(fold) for fold in model.folds}
    if own != model.sha256 or not weights or not weights <= own.keys():
        raise ModelError(f"{path}: {MODEL_NAME} and {MANIFEST_NAME} contradict. {_REMEDY}")
    return model


def _pieces(path: Path, opened: ZipFile, name: str, known: ArchivedFile) -> Iterator[bytes]:
    """The bytes of an entry, never more than listed; at their end they are the ones listed."""
    digest, left = hashlib.sha256(), known.size_bytes
    with opened.open(name) as source:
        while piece := source.read(_CHUNK_BYTES):
            left -= len(piece)
            if left < 0:
                raise ModelError(f"{path}: {name} is longer than it claims. {_REMEDY}")
            digest.update(piece)
            yield piece
    if digest.hexdigest() != known.sha256:
        raise ModelError(f"{path}: {name} is not the file that was exported. {_REMEDY}")
