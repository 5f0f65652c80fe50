"""Which predicted lesion found which annotated lesion."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

IdArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
InstanceMap = npt.NDArray[np.uint16]
VoxelBox = npt.NDArray[np.number[Any]]
"""(2, 3): where it starts and ends along z y x, half-open; voxel i spans [i, i + 1)."""

_IDS = 1 << 16


@dataclass(frozen=True)
class Overlaps:
    """Every pair of an annotated and a predicted lesion that share a voxel, one entry each."""

    reference: IdArray
    predicted: IdArray
    iou: FloatArray


@dataclass(frozen=True)
class Match:
    """What one prediction found: `reference` 0 and `iou` 0 where it found nothing."""

    reference: int
    iou: float


def lesion_volumes(instances: InstanceMap) -> dict[int, int]:
    """Voxels of each id that occurs in a map, background apart."""
    counts = np.bincount(instances[instances > 0])
    return {int(found): int(counts[found]) for found in np.flatnonzero(counts)}


def overlaps(reference: InstanceMap, predicted: InstanceMap) -> Overlaps:
    """Mask IoU of all overlapping pairs of two instance maps (z, y, x) of one shape."""
    both = (reference > 0) & (predicted > 0)
    keys, shared = np.unique(
        reference[both].astype(np.int64) * _IDS + predicted[both], return_counts=True
    )
    reference_ids, predicted_ids = np.divmod(keys, _IDS)
    reference_voxels = np.bincount(reference[reference > 0], minlength=_IDS)[reference_ids]
    predicted_voxels = np.bincount(predicted[predicted > 0], minlength=_IDS)[predicted_ids]
    iou = shared / (reference_voxels + predicted_voxels - shared)
    return Overlaps(reference_ids, predicted_ids, iou)


def overlaps_of_boxes(
    reference: Mapping[int, VoxelBox], predicted: Mapping[int, VoxelBox]
) -> Overlaps:
    """IoU of all overlapping pairs of boxes, by id.

    Args:
        reference: of the annotated lesions.
        predicted: of the predictions.
    """
    rows = []
    for lesion, ours in reference.items():
        for number, theirs in predicted.items():
            sides = np.minimum(ours[1], theirs[1]) - np.maximum(ours[0], theirs[0])
            if (sides > 0).all():
                shared = np.prod(sides)
                union = np.prod(ours[1] - ours[0]) + np.prod(theirs[1] - theirs[0]) - shared
                rows.append((lesion, number, shared / union))
    reference_ids, predicted_ids, iou = zip(*rows, strict=True) if rows else ((), (), ())
    return Overlaps(
        np.array(reference_ids, np.int64), np.array(predicted_ids, np.int64), np.array(iou, float)
    )


def join_overlaps(parts: Sequence[Overlaps]) -> Overlaps:
    """The pairs of several maps, or parts of one, in which no two lesions have one id."""
    none = np.empty(0, dtype=np.int64)
    return Overlaps(
        np.concatenate([none, *(part.reference for part in parts)]),
        np.concatenate([none, *(part.predicted for part in parts)]),
        np.concatenate([np.empty(0), *(part.iou for part in parts)]),
    )


def match_overlaps(
    pairs: Overlaps, scores: Mapping[int, float], iou_threshold: float
) -> dict[int, Match]:
    """Pair predictions with annotated lesions, greedily by score.

    In order of falling score (then rising id), each prediction takes the annotated lesion that it
    overlaps most among those still free, if their IoU reaches the threshold. Later predictions of
    a lesion that is taken count as false positives. A cut by score never changes the pairs above
    it, so one matching serves every operating point.

    Args:
        pairs: overlaps of the predictions.
        scores: score of every prediction by its id; pairs of other ids are passed over.
        iou_threshold: smallest mask IoU of a hit, above 0.

    Returns:
        A match for every id of `scores`, in its order.
    """
    candidates = sorted(
        (-scores[predicted], predicted, -iou, reference)
        for reference, predicted, iou in zip(
            pairs.reference.tolist(), pairs.predicted.tolist(), pairs.iou.tolist(), strict=True
        )
        if predicted in scores and iou >= iou_threshold
    )
    matches: dict[int, Match] = {}
    taken: set[int] = set()
    for _, predicted, negative_iou, reference in candidates:
        if predicted not in matches and reference not in taken:
            matches[predicted] = Match(reference, -negative_iou)
            taken.add(reference)
    return {predicted: matches.get(predicted, Match(0, 0.0)) for predicted in scores}


def match_lesions(
    reference: InstanceMap,
    predicted: InstanceMap,
    scores: Mapping[int, float],
    iou_threshold: float,
) -> dict[int, Match]:
    """As `match_overlaps`, from two instance maps (z, y, x) of one shape."""
    return match_overlaps(overlaps(reference, predicted), scores, iou_threshold)
