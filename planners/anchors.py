"""RPN levels and anchor sizes, from the lesions' sizes in planned voxels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bonemet_auto.geometry import Index, Triple

RPN_STRIDES = (4, 16)
"""Strides along the most strided axis whose stages propose lesions."""
SEARCH_STEPS = 400
SEARCH_LESIONS = 2000

Sizes = npt.NDArray[np.float64]


@dataclass(frozen=True)
class AnchorFit:
    """How well anchors cover the lesions, position aside."""

    mean_best_iou: float
    recall_at_03: float
    recall_at_05: float


def choose_stages(
    total_strides: Sequence[Index], lesions: Sizes, spacing_mm: Triple, fine_level_voxels: float
) -> list[int]:
    """Indices of the stages that propose lesions.

    Stages with strides 4 to 16 along their most strided axis, and the stride-2 stage where the 10th
    percentile of the lesions' mean edge over the fine axes is below `fine_level_voxels`; the
    deepest stage if that leaves none.
    """
    strides = [max(stride) for stride in total_strides]
    low, high = RPN_STRIDES
    if small_edge(lesions, spacing_mm) < fine_level_voxels:
        low //= 2
    chosen = [stage for stage, stride in enumerate(strides) if low <= stride <= high]
    return chosen or [len(strides) - 1]


def small_edge(lesions: Sizes, spacing_mm: Triple) -> float:
    """10th percentile of the lesions' mean edge in voxels over axes within twice the finest."""
    fine = np.asarray(spacing_mm) < 2 * min(spacing_mm)
    return float(np.percentile(lesions[:, fine].mean(axis=1), 10))


def search_anchors(
    lesions: Sizes, level_strides: Sequence[Index], per_level: int, seed: int
) -> tuple[tuple[Triple, ...], ...]:
    """Anchor sizes per level: seeded search over log sizes that keeps the best set it saw.

    Starts at k-means centres of the log sizes, then changes one anchor at a time. Anchors are
    sorted by volume and dealt to the levels in order, the same number to each (the head is shared);
    none is smaller than a cell of its level in volume, where neighbours would leave gaps.

    Args:
        lesions: (L, 3) box edges in planned voxels, L >= 1.
        level_strides: voxels per cell of each level, finest first.
        per_level: anchors per level.
        seed: of the search.
    """
    random = np.random.default_rng(seed)
    if len(lesions) > SEARCH_LESIONS:
        lesions = lesions[np.sort(random.choice(len(lesions), SEARCH_LESIONS, replace=False))]
    smallest = np.repeat([np.prod(stride, dtype=float) for stride in level_strides], per_level)
    best = _deal(_log_means(np.log(lesions), len(smallest)), smallest)
    best_fit = best_ious(lesions, np.exp(best)).mean()
    for step in range(SEARCH_STEPS):
        candidate = best.copy()
        reach = 0.4 * (1 - step / SEARCH_STEPS) + 0.02
        candidate[random.integers(len(best))] += random.normal(0, reach, 3)
        candidate = _deal(candidate, smallest)
        fit = best_ious(lesions, np.exp(candidate)).mean()
        if fit > best_fit:
            best, best_fit = candidate, fit
    sizes = [(z, y, x) for z, y, x in np.exp(best).round(2).tolist()]
    return tuple(tuple(sizes[i : i + per_level]) for i in range(0, len(sizes), per_level))


def anchor_fit(lesions: Sizes, anchor_sizes: Sequence[Sequence[Triple]]) -> AnchorFit:
    """Mean best IoU and recall of lesion boxes, each centred on each anchor."""
    ious = best_ious(lesions, np.concatenate([np.asarray(level) for level in anchor_sizes]))
    return AnchorFit(float(ious.mean()), float((ious >= 0.3).mean()), float((ious >= 0.5).mean()))


def best_ious(lesions: Sizes, anchors: Sizes) -> Sizes:
    """(L,) IoU of each lesion with the anchor that suits it best, centres on each other."""
    shared = np.minimum(lesions[:, None], anchors[None]).prod(axis=2)
    union = lesions.prod(axis=1)[:, None] + anchors.prod(axis=1)[None] - shared
    best: Sizes = (shared / union).max(axis=1)
    return best


def _deal(log_sizes: Sizes, smallest_volumes: Sizes) -> Sizes:
    """Sort by volume and grow those that are too small for the level they fall to.

    No edge is below a voxel. Raising one to it changes the volume, so that comes first.
    """
    raised = np.maximum(0.0, log_sizes)
    ordered = raised[np.argsort(raised.sum(axis=1), kind="stable")]
    lacking = np.maximum(0.0, np.log(smallest_volumes) - ordered.sum(axis=1))
    return ordered + lacking[:, None] / 3


def _log_means(points: Sizes, k: int, rounds: int = 10) -> Sizes:
    """k-means from quantiles of the volume; with fewer points than centres they repeat."""
    ordered = points[np.argsort(points.sum(axis=1), kind="stable")]
    places = (np.arange(k) + 0.5) / k * len(ordered)
    centres = ordered[np.minimum(places.astype(int), len(ordered) - 1)]
    for _ in range(rounds):
        distance = ((points[:, None] - centres[None]) ** 2).sum(axis=2)
        nearest = distance.argmin(axis=1)
        for i in np.unique(nearest):
            centres[i] = points[nearest == i].mean(axis=0)
    return centres
