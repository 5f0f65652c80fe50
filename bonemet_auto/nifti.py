"""The values of NIfTI files, after checking that the files are whole.

SimpleITK reads a half-copied or bit-flipped NIfTI without a word (the missing part becomes 0) and
turns NaN into 0, which is water. So the pixels are unpacked here: the gzip stream must end with the
right checksum and hold as many bytes as its header says.
"""

import zlib
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bonemet_auto.errors import DataError
from bonemet_auto.files import gunzip_blocks

COPY_AGAIN = "Copy or export the file again"

_GZIP_MAGIC = b"\x1f\x8b"
_MOST_EXPANSION = 1032
"""Of deflate: a header that promises more is wrong, and nothing that large is asked for."""
_MOST_BYTES_PER_VOXEL = 8
_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8",
    256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
_HEADER_BYTES = 348
_HEADER = np.dtype(
    {
        "names": ["size", "dim", "datatype", "vox_offset", "scl_slope", "scl_inter"],
        "formats": ["i4", "(8,)i2", "i2", "f4", "f4", "f4"],
        "offsets": [0, 40, 70, 108, 112, 116],
        "itemsize": _HEADER_BYTES,
    }
)


Payload = bytes | npt.NDArray[np.uint8]


def nifti_values(path: Path) -> npt.NDArray[Any]:
    """All values of a NIfTI file in file order, rescaled as its header says.

    Raises:
        DataError: the file is truncated or corrupt, no NIfTI-1, or not of one number per voxel.
    """
    stored = path.read_bytes()
    payload = _inflate(path, stored) if stored.startswith(_GZIP_MAGIC) else stored
    order, header = _read_header(path, payload)
    count = _voxels(header)
    code = _TYPES.get(int(header["datatype"]))
    if code is None:
        raise DataError(
            f"{path}: NIfTI data type {int(header['datatype'])} (colour, complex or vector values);"
            " expected one integer or float per voxel. Export the plain CT or label map."
        )
    dtype, start = np.dtype(order + code), int(header["vox_offset"])
    expected = start + count * dtype.itemsize
    if len(payload) < expected:
        raise DataError(
            f"{path} is truncated: {len(payload)} bytes unpacked, its header promises {expected}. "
            f"{COPY_AGAIN}."
        )
    values = np.frombuffer(payload, dtype, count, start).astype(dtype.newbyteorder("="), copy=False)
    return _rescale(values, float(header["scl_slope"]), float(header["scl_inter"]))


def _inflate(path: Path, packed: bytes) -> npt.NDArray[np.uint8]:
    """Unpack a file; what is 0 in it stays memory that was never touched, most of a label map."""
    try:
        blocks = gunzip_blocks(packed)
        first = b""
        while len(first) < _HEADER_BYTES and (block := next(blocks, b"")):
            first += block
        _, header = _read_header(path, first)
        promised = int(header["vox_offset"]) + _MOST_BYTES_PER_VOXEL * _voxels(header)
        payload = np.zeros(min(promised, _MOST_EXPANSION * len(packed)), dtype=np.uint8)
        filled = 0
        for block in chain([first], blocks):
            values = np.frombuffer(block, np.uint8)[: payload.size - filled]
            if values.any():
                payload[filled : filled + values.size] = values
            filled += values.size
        return payload[:filled]
    except EOFError:
        raise DataError(
            f"{path} is truncated: its gzip stream breaks off after {len(packed)} bytes. "
            f"{COPY_AGAIN}."
        ) from None
    except zlib.error as error:
        raise DataError(
            f"{path} is corrupt: its gzip stream does not unpack to its checksum ({error}). "
            f"{COPY_AGAIN}."
        ) from None


def _voxels(header: Any) -> int:  # noqa: ANN401  a structured scalar
    return int(np.prod(np.maximum(header["dim"][1 : 1 + header["dim"][0]].astype(np.int64), 1)))


def _read_header(path: Path, payload: Payload) -> tuple[str, Any]:
    """Byte order, and the fields of a NIfTI-1 header that the values depend on."""
    if len(payload) >= _HEADER_BYTES:
        for order in ("<", ">"):
            header = np.frombuffer(payload, _HEADER.newbyteorder(order), 1)[0]
            if header["size"] == _HEADER_BYTES and 1 <= header["dim"][0] <= 7:
                return order, header
    raise DataError(f"{path} is no NIfTI-1 file, or its header is cut off. {COPY_AGAIN}.")


def _rescale(values: npt.NDArray[Any], slope: float, intercept: float) -> npt.NDArray[Any]:
    """Apply the header's scale; slope 0 means none, as the NIfTI standard has it."""
    if not np.isfinite([slope, intercept]).all() or slope == 0 or (slope, intercept) == (1, 0):
        return values
    scaled = values.astype(np.float64)
    scaled *= slope
    scaled += intercept
    return scaled
