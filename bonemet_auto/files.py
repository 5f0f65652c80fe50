"""Files never seen half-written, checksums, gzip, and where a data root keeps its folders."""

import hashlib
import os
import re
import secrets
import zlib
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from bonemet_auto.errors import DataError, UsageError

_CHUNK_BYTES = 1 << 20
_PIECE_BYTES = 1 << 16
_GZIP_WINDOW = 31
_TEMPORARY, _TOKEN_BYTES = ".bonemet-", 4

MODEL_FOLDER = "model"
"""Folder of a consolidated model, in a plan's results beside the folds that it is made of."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, and move it into place once it is complete on disk.

    The temporary name keeps the ending of `path`, which many writers read as the format. After an
    exception or a kill the old file is still whole; a kill leaves the temporary one, hidden (see
    `remove_temporaries`).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # By chance, not by process: containers that share a folder number their processes alike.
    temporary = path.with_name(f"{_TEMPORARY}{secrets.token_hex(_TOKEN_BYTES)}.{path.name}")
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporaries(folder: Path, names: Container[str] | None = None) -> None:
    """Remove what `atomic_write` left in a folder, and below it, when it was killed.

    Args:
        folder: where to look; it may be missing.
        names: remove only those that were to become files of these names; None removes all. Those
            of a process that is at work are not to be among them.
    """
    for path in folder.rglob(f"{_TEMPORARY}*"):
        name = path.name[len(_TEMPORARY) + 2 * _TOKEN_BYTES + 1 :]
        if path.is_file() and (names is None or name in names):
            path.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder, and move it to `path` once it is complete; a folder there gives way.

    After an exception `path` is as it was, and nothing else is left. A kill may leave a hidden
    folder in the nearest parent of `path` that was there.
    """
    beside = next(parent for parent in path.absolute().parents if parent.is_dir())
    with TemporaryDirectory(prefix=f".{path.name}.", dir=beside) as hidden:
        new, old = Path(hidden) / "new", Path(hidden) / "old"
        new.mkdir()
        yield new
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            path.rename(old)
        new.rename(path)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as source:
        while piece := source.read(_CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def data_root(flag: Path | None) -> Path:
    """The data root: the flag, else `$BONEMET_ROOT`, else `./bonemet_data`."""
    return flag or Path(os.environ.get("BONEMET_ROOT") or "bonemet_data")


def find_dataset(root: Path, dataset: str) -> str:
    """Full folder name (`Dataset001_Name`) of a dataset given by number, short or full name.

    Raises:
        UsageError: no such dataset under `root/raw` or `root/preprocessed`, or several.
    """
    folders = sorted(
        {
            folder.name
            for stage in ("raw", "preprocessed")
            if (root / stage).is_dir()
            for folder in (root / stage).iterdir()
            if folder.is_dir() and re.fullmatch(r"Dataset\d{3}_.+", folder.name)
        }
    )
    by_number = int(dataset) if dataset.isdecimal() else None
    matches = [
        name
        for name in folders
        if dataset in (name, name.split("_", 1)[1]) or by_number == int(name[7:10])
    ]
    if len(matches) == 1:
        return matches[0]
    problem = f"'{dataset}' fits {', '.join(matches)}" if matches else f"no dataset '{dataset}'"
    known = ", ".join(folders) or "none"
    raise UsageError(
        f"{problem} under {root} (datasets there: {known}). Give the number or the full folder "
        "name (Dataset001_Name), or point --root or $BONEMET_ROOT to the data root."
    )


def raw_folder(root: Path, dataset: str) -> Path:
    """`ROOT/raw/DATASET`."""
    return root / "raw" / dataset


def preprocessed_folder(root: Path, dataset: str) -> Path:
    """`ROOT/preprocessed/DATASET`; plans live in sub-folders named after them."""
    return root / "preprocessed" / dataset


def results_folder(root: Path, dataset: str, plan_name: str) -> Path:
    """`ROOT/results/DATASET/PLAN`; folds live in `fold_0` to `fold_4` below it."""
    return root / "results" / dataset / plan_name


def models_folder(root: Path) -> Path:
    """`ROOT/models`; installed models live in folders of their own below it."""
    return root / "models"


def require_file(path: Path, remedy: str) -> Path:
    """Return `path` if it is a file.

    Raises:
        DataError: it is missing; the message ends with `remedy`.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist. {remedy}")
    return path


def gunzip_blocks(packed: bytes) -> Iterator[bytes]:
    """Content of a gzip file, which may have several members, block by block.

    Raises:
        EOFError: it breaks off.
        zlib.error: it is damaged: each member ends with its checksum and length.
    """
    at = 0
    while at < len(packed):
        member = zlib.decompressobj(_GZIP_WINDOW)
        while not member.eof:
            piece = member.unconsumed_tail
            if not piece:
                piece = packed[at : at + _PIECE_BYTES]
                at += len(piece)
            block = member.decompress(piece, _CHUNK_BYTES)
            if block:
                yield block
            elif not (piece or member.eof):
                raise EOFError
        at -= len(member.unused_data)
        while packed[at : at + 1] == b"\0":  # padding
            at += 1
