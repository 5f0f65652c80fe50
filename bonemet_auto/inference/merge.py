"""One box per lesion out of the detections of many overlapping windows, mirrors and networks."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from scipy.sparse import csgraph
from torch import Tensor

from bonemet_auto.geometry import Index
from bonemet_auto.model.boxes import box_volumes, greedy_leaders

CLUSTER_IOU = 0.3
FACE_TOLERANCE_VOXEL = 1.0

IntArray = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Boxes:
    """Detections of one forward or of many.

    Attributes:
        boxes: (N, 6) voxels of the scan.
        scores: (N,) in [0, 1].
        weights: (N,) trust, by the distance from the centre of the window that saw the box.
        forwards: (N,) long, which (window, mirror, network) found the box.
        cut: (N,) bool, the box ends at a window face inside the scan: the lesion may go on.
    """

    boxes: Tensor
    scores: Tensor
    weights: Tensor
    forwards: Tensor
    cut: Tensor


@dataclass(frozen=True)
class Clusters:
    """Consolidated boxes, by falling score of their leaders.

    Attributes:
        boxes: (C, 6) float64 voxels of the scan.
        scores: (C,) float64 in [0, 1].
        cut: (C,) bool, no forward saw the whole of it.
    """

    boxes: Tensor
    scores: Tensor
    cut: Tensor


def touches_inner_face(boxes: Tensor, start: Index, patch: Index, shape: Index) -> Tensor:
    """(N,) bool: which (N, 6) boxes of a window end at a face of it that lies inside the scan.

    Args:
        boxes: voxels of the window.
        start: first voxel of the window in the scan.
        patch: voxels of the window.
        shape: voxels of the scan.
    """
    low_inside = torch.tensor([s > 0 for s in start], device=boxes.device)
    high_inside = torch.tensor(
        [s + p < n for s, p, n in zip(start, patch, shape, strict=True)], device=boxes.device
    )
    size = torch.tensor(patch, device=boxes.device)
    at_low = (boxes[:, :3] <= FACE_TOLERANCE_VOXEL) & low_inside
    at_high = (boxes[:, 3:] >= size - FACE_TOLERANCE_VOXEL) & high_inside
    return (at_low | at_high).any(dim=1)


def weighted_clusters(
    found: Boxes,
    expected: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.int64]],
    iou_threshold: float = CLUSTER_IOU,
) -> Clusters:
    """Weighted box clustering over all forwards.

    Clusters are those of greedy suppression. With w = IoU with the leader times trust, the box is
    the mean of its members weighted by w s: of those that were not cut by a window face, as far as
    there are any, because a cut box does not tell where the lesion ends. Its score is

        sum(w s) / (sum(w) + max(0, expected - n) * mean(w)),

    n being the forwards that found it and `expected` those that looked at its centre: a lesion that
    half of them miss keeps half its score. Source: Jaeger et al. 2018, "Retina U-Net".

    Args:
        found: detections of all forwards.
        expected: number of forwards that covered each of (C, 3) points in voxels.
        iou_threshold: overlap with the leader above which a box joins its cluster.
    """
    if not len(found.scores):
        return Clusters(found.boxes.double(), found.scores.double(), found.cut)
    leaders = greedy_leaders(found.boxes, found.scores, iou_threshold)
    heads = torch.nonzero(leaders == torch.arange(len(leaders))).flatten()
    heads = heads[torch.sort(found.scores[heads], descending=True, stable=True).indices]
    rank = torch.empty(len(leaders), dtype=torch.long)
    rank[heads] = torch.arange(len(heads))
    cluster = rank[leaders]

    def per_cluster(values: Tensor) -> Tensor:
        total = values.new_zeros((len(heads), *values.shape[1:]))
        return total.index_add_(0, cluster, values)

    boxes, scores = found.boxes.double(), found.scores.double()
    weights = _paired_iou(boxes, boxes[leaders]) * found.weights.double()
    size = per_cluster(torch.ones_like(weights))
    summed, evidence = per_cluster(weights), per_cluster(weights * scores)
    whole = per_cluster((~found.cut).double())
    placing = weights * scores * ~(found.cut & (whole[cluster] > 0))
    merged = per_cluster(boxes * placing[:, None]) / per_cluster(placing).clamp(min=1e-12)[:, None]
    n_possible = int(found.forwards.max()) + 1
    pairs = torch.unique(cluster * n_possible + found.forwards)
    n_forwards = torch.bincount(pairs // n_possible, minlength=len(heads))
    looked = torch.from_numpy(expected(((merged[:, :3] + merged[:, 3:]) / 2).numpy()))
    missing = (looked - n_forwards).clamp(min=0)
    score = evidence / (summed + missing * summed / size).clamp(min=1e-12)
    return Clusters(merged, score, whole == 0)


def unite_cut_boxes(clusters: Clusters, components: IntArray) -> Clusters:
    """Join the pieces of lesions that no window saw whole.

    Pieces are cut clusters that touch or overlap each other and lie on one component of the dense
    probability above 0.5. Their union keeps the best score. A piece most of which lies in a box
    that some window saw whole, on the same component, adds nothing and is left out.

    Args:
        clusters: consolidated boxes.
        components: (Z, Y, X) numbered components of the dense probability above 0.5.
    """
    pieces = torch.nonzero(clusters.cut).flatten().tolist()
    if not pieces:
        return clusters
    boxes = clusters.boxes.numpy()
    owner = [_component_of(box, components) for box in boxes]
    whole = torch.nonzero(~clusters.cut).flatten().tolist()
    wholes_of: dict[int, list[int]] = defaultdict(list)
    for i in whole:
        wholes_of[owner[i]].append(i)
    # Without a component nothing is joined, and nearly all boxes of a large scan have none.
    loose = [i for i in pieces if not owner[i]]
    owned = [
        i
        for i in pieces
        if owner[i]
        and not any(_share_inside(boxes[i], boxes[j]) > 0.5 for j in wholes_of[owner[i]])
    ]
    groups = [[i] for i in whole + loose] + _joined(owned, boxes, owner)
    groups.sort(key=lambda group: group[0])
    first = torch.tensor([group[0] for group in groups])
    united, scores, cut = clusters.boxes[first], clusters.scores[first], clusters.cut[first]
    for row, group in enumerate(groups):
        if len(group) > 1:
            united[row, :3] = clusters.boxes[group, :3].amin(dim=0)
            united[row, 3:] = clusters.boxes[group, 3:].amax(dim=0)
            scores[row] = clusters.scores[group].amax()
    return Clusters(united, scores, cut)


def _paired_iou(a: Tensor, b: Tensor) -> Tensor:
    low, high = torch.maximum(a[:, :3], b[:, :3]), torch.minimum(a[:, 3:], b[:, 3:])
    inter = (high - low).clamp(min=0).prod(dim=1)
    return inter / (box_volumes(a) + box_volumes(b) - inter).clamp(min=1e-6)


def _component_of(box: npt.NDArray[np.float64], components: IntArray) -> int:
    """The component that fills most of a box; 0 where there is none."""
    low, high = np.maximum(np.floor(box[:3]), 0).astype(int), np.ceil(box[3:]).astype(int)
    inside = components[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    names, counts = np.unique(inside[inside > 0], return_counts=True)
    return int(names[counts.argmax()]) if len(names) else 0


def _share_inside(box: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    low, high = np.maximum(box[:3], other[:3]), np.minimum(box[3:], other[3:])
    volume = np.prod(np.maximum(box[3:] - box[:3], 1e-6))
    return float(np.prod(np.maximum(high - low, 0)) / volume)


def _joined(pieces: list[int], boxes: npt.NDArray[np.float64], owner: list[int]) -> list[list[int]]:
    """Groups of pieces, all on components, that hang together, directly or through others."""
    if not pieces:
        return []
    low, high = boxes[pieces, :3] - FACE_TOLERANCE_VOXEL, boxes[pieces, 3:] + FACE_TOLERANCE_VOXEL
    touching = ((low[:, None] <= high[None]) & (low[None] <= high[:, None])).all(axis=2)
    names = np.asarray([owner[i] for i in pieces])
    same = names[:, None] == names[None]
    count, group = csgraph.connected_components(sparse.csr_matrix(touching & same), directed=False)
    return [[pieces[i] for i in np.flatnonzero(group == g)] for g in range(count)]
