"""Lesions on the scan's own grid: masks that do not overlap, and their size and place."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from bonemet_auto.geometry import Index, Triple
from bonemet_auto.images import Volume
from bonemet_auto.inference.find import FloatArray
from bonemet_auto.inference.fuse import (
    USUAL_OUTLINE,
    BoolArray,
    Candidate,
    Outline,
    fused_probability,
)
from bonemet_auto.resample import GridMap, resample_probability
from bonemet_auto.schema import Box
from bonemet_auto.upright import Turn

RIM_CLAIM = 0.5
"""In the rim of its box a lesion claims voxels with half the force: they may be a neighbour's."""

LEAST_SHARE_KEPT = 0.25
"""A lesion that loses more of its mask than this leaves was seen twice; it is dropped."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lesion:
    """One found lesion on the scan's own grid.

    Attributes:
        score: detection probability.
        p_lung: probability of a lung-cancer metastasis.
        mask_quality: estimated Dice of the mask, if there is a lesion; None for a drawn one.
        mean_hu: mean over the mask.
        mask: (z, y, x) bool crop, tight around the lesion.
        start: first voxel of the crop in the scan.
        volume_mm3: volume of the mask.
        centroid_lps_mm: its centre of mass in the patient.
    """

    score: float
    p_lung: float
    mask_quality: float | None
    mean_hu: float
    mask: BoolArray
    start: Index
    volume_mm3: float
    centroid_lps_mm: Triple

    @property
    def box(self) -> Box:
        """Extent of the mask in voxels of the scan, half-open z0 y0 x0 z1 y1 x1."""
        z, y, x = (float(begin) for begin in self.start)
        depth, height, width = self.mask.shape
        return (z, y, x, z + depth, y + height, x + width)

    @property
    def region(self) -> tuple[slice, ...]:
        """Where the crop lies in the scan."""
        return _slices(self.start, self.mask.shape)


@dataclass(frozen=True)
class _Claim:
    start: Index
    strength: FloatArray
    mask: BoolArray


def place_lesions(
    candidates: Sequence[Candidate],
    grid: GridMap,
    volume: Volume,
    outline: Outline = USUAL_OUTLINE,
) -> list[Lesion]:
    """Bring candidates to the scan's grid, share out the voxels, and measure what is left.

    A voxel that several lesions hold goes to the one with the highest probability times score.
    Every lesion has a voxel at least: one too small for the grid keeps its most probable voxel.
    Lesions that lose nearly all of their mask to others are dropped, and counted in the log.

    Args:
        candidates: lesions on the planned grid.
        grid: how the planned grid lies in the scan.
        volume: the scan, HU.
        outline: how masks are drawn.

    Returns:
        Lesions by falling score.
    """
    ranked = sorted(candidates, key=lambda candidate: -candidate.score)
    claims = [_claim(candidate, grid, outline) for candidate in ranked]
    left = [claim.mask.copy() for claim in claims]
    for i, winner in enumerate(claims):
        for j in range(i + 1, len(claims)):
            _settle(winner, claims[j], left[i], left[j])
    lesions = [
        measure(
            mask, claim.start, volume, candidate.score, candidate.p_lung, candidate.mask_quality
        )
        for candidate, claim, mask in zip(ranked, claims, left, strict=True)
        if mask.sum() > LEAST_SHARE_KEPT * claim.mask.sum()
    ]
    if dropped := len(ranked) - len(lesions):
        _log.debug("%d of %d lesions lost their voxels to others; left out", dropped, len(ranked))
    return lesions


def _claim(candidate: Candidate, grid: GridMap, outline: Outline) -> _Claim:
    stored = fused_probability(candidate, outline)
    probability, start = resample_probability(stored, candidate.start, grid)
    mask = probability > outline.threshold
    if not mask.any():
        mask.flat[probability.argmax()] = True
    low, high = grid.to_original(candidate.box).reshape(2, 3)
    inside = np.ones((1, 1, 1), dtype=np.bool_)
    for axis, size in enumerate(mask.shape):
        centres = start[axis] + np.arange(size) + 0.5
        shape = [-1 if other == axis else 1 for other in range(3)]
        inside = inside & ((centres >= low[axis]) & (centres < high[axis])).reshape(shape)
    force = np.where(inside, candidate.score, RIM_CLAIM * candidate.score)
    return _Claim(start, (probability * force).astype(np.float32), mask)


def _settle(first: _Claim, second: _Claim, first_left: BoolArray, second_left: BoolArray) -> None:
    """Take each voxel that both hold from the weaker one, in place; the first wins ties."""
    low = np.maximum(first.start, second.start)
    high = np.minimum(
        np.add(first.start, first.mask.shape), np.add(second.start, second.mask.shape)
    )
    if (high <= low).any():
        return
    size = tuple(high - low)
    here = _slices(low - first.start, size)
    there = _slices(low - second.start, size)
    both = first.mask[here] & second.mask[there]
    first_wins = first.strength[here] >= second.strength[there]
    second_left[there] &= ~(both & first_wins)
    first_left[here] &= ~(both & ~first_wins)


def measure(
    mask: BoolArray,
    start: Index,
    volume: Volume,
    score: float,
    p_lung: float,
    mask_quality: float | None,
) -> Lesion:
    """A lesion of a scan, with its crop tight around the mask.

    Args:
        mask: (z, y, x) bool crop with a voxel at least.
        start: first voxel of the crop in the scan.
        volume: the scan, HU.
        score: of detection.
        p_lung: probability of a lung-cancer metastasis.
        mask_quality: estimated Dice of the mask.
    """
    geometry = volume.geometry
    voxels = np.argwhere(mask)
    low, high = voxels.min(axis=0), voxels.max(axis=0) + 1
    centroid = geometry.index_to_lps(voxels.mean(axis=0) + np.asarray(start)).tolist()
    first = (low + np.asarray(start)).tolist()
    hu = volume.array[_slices(start, mask.shape)][mask]
    return Lesion(
        score=min(max(score, 0.0), 1.0),
        p_lung=p_lung,
        mask_quality=mask_quality,
        mean_hu=float(hu.mean()),
        mask=mask[_slices(low, high - low)].copy(),
        start=(first[0], first[1], first[2]),
        volume_mm3=len(voxels) * geometry.voxel_volume_mm3,
        centroid_lps_mm=(centroid[0], centroid[1], centroid[2]),
    )


def turned_back(lesion: Lesion, turn: Turn) -> Lesion:
    """A lesion of the upright scan, on the axes of its file."""
    mask, start = turn.back(lesion.mask, lesion.start)
    return replace(lesion, mask=mask, start=start)


def _slices(start: npt.ArrayLike, size: npt.ArrayLike) -> tuple[slice, ...]:
    begin, extent = np.asarray(start), np.asarray(size)
    return tuple(slice(int(b), int(b + e)) for b, e in zip(begin, extent, strict=True))
