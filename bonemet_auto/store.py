"""Preprocessed cases on disk: two compressed arrays and one JSON file each.

Blosc2 keeps a volume in chunks of blocks, so that a training patch is read without its neighbours
(8 ms for 128^3 voxels). `CASE.json` is written last and removed first: where it exists, the arrays
beside it are whole and belong to it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import blosc2
import numpy as np
import numpy.typing as npt

from bonemet_auto.errors import DataError
from bonemet_auto.files import atomic_write, require_file, sha256_file, write_text
from bonemet_auto.geometry import Index
from bonemet_auto.schema import StoredCase, read_json, write_json

Int16Array = npt.NDArray[np.int16]
UInt16Array = npt.NDArray[np.uint16]

AIR_HU = -1024
CHUNK_EDGE = 128
BLOCK_EDGE = 32
CHECKSUMS_NAME = "SHA256SUMS"
_REMEDY = "Run bonemet_plan_and_preprocess again."


@dataclass(frozen=True)
class OpenCase:
    """A stored case whose arrays are read piece by piece. Open it in the process that reads it."""

    meta: StoredCase
    _hu: blosc2.NDArray
    _instances: blosc2.NDArray

    def crop(self, start: Index, size: Index) -> tuple[Int16Array, UInt16Array]:
        """HU and instance ids of a window, which may stick out of the volume on any side.

        Args:
            start: first voxel (z, y, x), may be negative.
            size: voxels (z, y, x) of the window.

        Returns:
            Two arrays of shape `size`; outside the volume they hold -1024 HU and id 0.

        Raises:
            DataError: an array cannot be decompressed.
        """
        hu = np.full(size, AIR_HU, dtype=np.int16)
        instances = np.zeros(size, dtype=np.uint16)
        low = [max(s, 0) for s in start]
        high = [min(s + n, full) for s, n, full in zip(start, size, self.meta.shape, strict=True)]
        if all(a < b for a, b in zip(low, high, strict=True)):
            source = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
            target = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))
            hu[target], instances[target] = self._at(source)
        return hu, instances

    def read(self) -> tuple[Int16Array, UInt16Array]:
        """The whole HU volume and instance map.

        Raises:
            DataError: an array cannot be decompressed.
        """
        return self._at((slice(None),) * 3)

    def _at(self, where: tuple[slice, ...]) -> tuple[Int16Array, UInt16Array]:
        def decompress() -> tuple[Int16Array, UInt16Array]:
            return self._hu[where], self._instances[where]

        return _readable(decompress, self.meta.case)


def write_case(folder: Path, hu: Int16Array, instances: UInt16Array, meta: StoredCase) -> None:
    """Store one case as `CASE.b2nd`, `CASE_seg.b2nd` and, last, `CASE.json`.

    Args:
        folder: the plan's `cases` folder; made where missing.
        hu: (Z, Y, X) int16.
        instances: (Z, Y, X) uint16 on the same grid.
        meta: describes both; `meta.shape` is their shape.
    """
    hu_path, instances_path, meta_path = _paths(folder, meta.case)
    meta_path.unlink(missing_ok=True)
    _write_array(hu_path, hu)
    _write_array(instances_path, instances)
    sums = {path.name: sha256_file(path) for path in (hu_path, instances_path)}
    write_json(meta_path, meta.model_copy(update={"sha256": sums}))


def write_checksums(folder: Path, cases: Sequence[StoredCase]) -> None:
    """Write `SHA256SUMS` of stored cases, as `sha256sum --check` reads it.

    The arrays are not read again: their checksums stand in `CASE.json`, which is summed itself.
    """
    sums: dict[str, str] = {}
    for case in cases:
        meta_path = _paths(folder, case.case)[2]
        sums |= {**case.sha256, meta_path.name: sha256_file(meta_path)}
    text = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
    path = folder / CHECKSUMS_NAME
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


def read_meta(folder: Path, case: str) -> StoredCase:
    """Read `CASE.json`.

    Raises:
        DataError: missing or broken.
    """
    try:
        return read_json(_paths(folder, case)[2], StoredCase, "")
    except DataError as broken:
        raise DataError(f"{str(broken).strip()} {_REMEDY}") from None


def open_case(folder: Path, case: str) -> OpenCase:
    """Open a stored case for reading.

    Raises:
        DataError: a file is missing or broken, or the arrays do not belong to `CASE.json`.
    """
    meta = read_meta(folder, case)
    hu_path, instances_path, _ = _paths(folder, case)
    return OpenCase(
        meta,
        _open_array(hu_path, meta, np.dtype(np.int16)),
        _open_array(instances_path, meta, np.dtype(np.uint16)),
    )


def _paths(folder: Path, case: str) -> tuple[Path, Path, Path]:
    return folder / f"{case}.b2nd", folder / f"{case}_seg.b2nd", folder / f"{case}.json"


def _write_array(path: Path, array: Int16Array | UInt16Array) -> None:
    chunks = tuple(min(CHUNK_EDGE, n) for n in array.shape)
    with atomic_write(path) as temporary:
        blosc2.asarray(
            np.ascontiguousarray(array),
            urlpath=str(temporary),
            mode="w",
            chunks=chunks,
            blocks=tuple(min(BLOCK_EDGE, n) for n in chunks),
            cparams={
                "codec": blosc2.Codec.ZSTD,
                "clevel": 1,
                "filters": [blosc2.Filter.SHUFFLE],
                "nthreads": 1,
            },
            dparams={"nthreads": 1},
        )


def _open_array(path: Path, meta: StoredCase, dtype: np.dtype[np.generic]) -> blosc2.NDArray:
    def opened() -> blosc2.NDArray:
        return blosc2.open(str(path), mode="r", dparams={"nthreads": 1})

    array = _readable(opened, f"{meta.case} ({require_file(path, _REMEDY)})")
    if array.shape != meta.shape or array.dtype != dtype:
        raise DataError(
            f"{path} holds {array.dtype} {array.shape}, its CASE.json says {dtype} {meta.shape} "
            f"(z, y, x). {_REMEDY}"
        )
    return array


def _readable(read: Callable[[], blosc2.NDArray], where: str) -> blosc2.NDArray:
    """Blosc2 raises RuntimeError, ValueError or OSError, depending on which byte is wrong."""
    try:
        return read()
    except (RuntimeError, ValueError, OSError) as broken:
        raise DataError(f"stored case {where} is damaged: {broken}. {_REMEDY}") from broken
