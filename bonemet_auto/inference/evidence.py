"""What the networks know of one scan, before outlines are drawn; in memory and as a file."""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bonemet_auto.errors import DataError
from bonemet_auto.files import atomic_write
from bonemet_auto.inference.find import FloatArray
from bonemet_auto.inference.fuse import Candidate
from bonemet_auto.resample import GridMap

EVIDENCE = "evidence"
"""Folder beside predictions that holds the evidence of each case."""

_REMEDY = "Validate the fold again (bonemet_train with --resume)."


@dataclass(frozen=True)
class Evidence:
    """All that a scan's lesions are drawn from.

    Attributes:
        candidates: what may be a lesion, on the planned grid.
        grid: how the planned grid lies in the upright scan.
        warnings: reasons to distrust it.
    """

    candidates: tuple[Candidate, ...]
    grid: GridMap
    warnings: tuple[str, ...]


def write_evidence(path: Path, evidence: Evidence) -> None:
    """Write evidence to a `.npz` file; probabilities are rounded to half precision."""
    candidates, grid = evidence.candidates, evidence.grid
    crops = [item.dense for item in candidates]
    masks = [item.mask for item in candidates if item.mask is not None]
    with atomic_write(path) as temporary:
        np.savez_compressed(
            temporary,
            score=np.array([item.score for item in candidates]),
            p_lung=np.array([item.p_lung for item in candidates]),
            mask_quality=np.array([item.mask_quality for item in candidates]),
            box=np.array([item.box for item in candidates]).reshape(-1, 6),
            start=np.array([item.start for item in candidates], int).reshape(-1, 3),
            shape=np.array([crop.shape for crop in crops], int).reshape(-1, 3),
            has_mask=np.array([item.mask is not None for item in candidates], bool),
            dense=_flat(crops),
            mask=_flat(masks),
            grid=np.array([grid.crop_start, grid.crop_shape, grid.shape]),
            warnings=np.array(evidence.warnings, dtype=np.str_),
        )


def read_evidence(path: Path) -> Evidence:
    """Read what `write_evidence` wrote.

    Raises:
        DataError: the file is missing or broken.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            found = {name: stored[name] for name in stored.files}
        return _assemble(found)
    except FileNotFoundError:
        raise DataError(f"{path} is missing. {_REMEDY}") from None
    except (OSError, EOFError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as broken:
        raise DataError(f"{path} cannot be read ({broken}). {_REMEDY}") from None


def _assemble(found: dict[str, npt.NDArray[np.generic]]) -> Evidence:
    shapes = found["shape"].tolist()
    has_mask = found["has_mask"].tolist()
    dense = _crops(found["dense"], shapes)
    masks = iter(_crops(found["mask"], [s for s, has in zip(shapes, has_mask, strict=True) if has]))
    rows = zip(
        found["score"].tolist(), found["p_lung"].tolist(), found["mask_quality"].tolist(),
        found["box"], found["start"].tolist(), dense, has_mask, strict=True,
    )  # fmt: skip
    candidates = tuple(
        Candidate(score, p_lung, quality, box, tuple(start), crop, next(masks) if has else None)
        for score, p_lung, quality, box, start, crop, has in rows
    )
    crop_start, crop_shape, shape = (tuple(row) for row in found["grid"].tolist())
    grid = GridMap(crop_start, crop_shape, shape)
    return Evidence(candidates, grid, tuple(found["warnings"].tolist()))


def _flat(crops: Sequence[FloatArray]) -> npt.NDArray[np.float16]:
    return np.concatenate([np.empty(0), *(crop.ravel() for crop in crops)]).astype(np.float16)


def _crops(flat: npt.NDArray[np.generic], shapes: Sequence[Sequence[int]]) -> list[FloatArray]:
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes], dtype=int)
    parts = np.split(flat.astype(np.float32), ends)
    if len(parts[-1]):
        raise ValueError("more voxels than its crops have")
    return [part.reshape(shape) for part, shape in zip(parts[:-1], shapes, strict=True)]
