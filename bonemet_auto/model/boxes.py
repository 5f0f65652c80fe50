"""Axis-aligned boxes: overlap, coding against anchors, and exact greedy suppression.

A box is `(z0, y0, x0, z1, y1, x1)` in float voxels, half-open: voxel i spans [i, i + 1). A box
whose end lies before its start has no volume. Overlaps are computed in float32 at least, whatever
comes in.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

LOG_SIZE_LIMIT = math.log(8.0)
"""A decoded box is at most 8 times larger or smaller than its anchor, so that no exp overflows."""

_SMALLEST_EDGE = 1e-3
_SMALLEST_VOLUME = 1e-6


def box_volumes(boxes: Tensor) -> Tensor:
    """Volume in cubic voxels of each of (..., 6) boxes, shape (...)."""
    boxes = _precise(boxes)
    return (boxes[..., 3:] - boxes[..., :3]).clamp(min=0).prod(dim=-1)


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of every box of `a` (N, 6) with every box of `b` (M, 6): (N, M).

    A pair in which both boxes have no volume overlaps by 0.
    """
    a, b = _precise(a), _precise(b)
    inter = _pairwise_intersection(a, b)
    union = box_volumes(a)[:, None] + box_volumes(b)[None, :] - inter
    return inter / union.clamp(min=_SMALLEST_VOLUME)


def paired_giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU in [-1, 1] of box i of `a` (N, 6) with box i of `b` (N, 6): (N,).

    Differentiable and finite also for boxes without volume. Source: Rezatofighi et al. 2019,
    "Generalized Intersection over Union".
    """
    a, b = _precise(a), _precise(b)
    low = torch.maximum(a[:, :3], b[:, :3])
    high = torch.minimum(a[:, 3:], b[:, 3:])
    inter = (high - low).clamp(min=0).prod(dim=1)
    union = box_volumes(a) + box_volumes(b) - inter
    hull_low = torch.minimum(a[:, :3], b[:, :3])
    hull_high = torch.maximum(a[:, 3:], b[:, 3:])
    hull = (hull_high - hull_low).clamp(min=0).prod(dim=1)
    iou = inter / union.clamp(min=_SMALLEST_VOLUME)
    return iou - (hull - union) / hull.clamp(min=_SMALLEST_VOLUME)


def clip_boxes(boxes: Tensor, shape: Sequence[int]) -> Tensor:
    """Cut (..., 6) boxes to an image of `shape` (z, y, x) voxels; one outside loses its volume."""
    limit = torch.tensor([*shape, *shape], dtype=boxes.dtype, device=boxes.device)
    return torch.minimum(boxes.clamp(min=0), limit)


def encode_boxes(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Write (N, 6) boxes as seen from (N, 6) anchors; inverse of `decode_boxes`.

    Returns:
        (N, 6): centre offset along z, y, x in anchor edges, then log of the size ratio.
    """
    box_centre, box_size = _centre_and_size(_precise(boxes))
    anchor_centre, anchor_size = _centre_and_size(_precise(anchors))
    offset = (box_centre - anchor_centre) / anchor_size
    return torch.cat((offset, torch.log(box_size / anchor_size)), dim=-1)


def decode_boxes(deltas: Tensor, anchors: Tensor) -> Tensor:
    """Turn (N, 6) deltas, as `encode_boxes` writes them, into (N, 6) boxes.

    Log size ratios are clamped to +- `LOG_SIZE_LIMIT`.
    """
    deltas = _precise(deltas)
    anchor_centre, anchor_size = _centre_and_size(_precise(anchors))
    centre = anchor_centre + deltas[..., :3] * anchor_size
    log_ratio = deltas[..., 3:].clamp(-LOG_SIZE_LIMIT, LOG_SIZE_LIMIT)
    half = 0.5 * anchor_size * torch.exp(log_ratio)
    return torch.cat((centre - half, centre + half), dim=-1)


@torch.no_grad()
def greedy_leaders(boxes: Tensor, scores: Tensor, iou_threshold: float, block: int = 256) -> Tensor:
    """Cluster boxes as greedy non-maximum suppression does, and name the leader of each.

    Boxes are visited by falling score, ties by rising index. A box is kept unless its IoU with a
    box kept before is above `iou_threshold`; then it belongs to the first of those. Exact, but done
    one block of boxes at a time: never more than `block` x N overlaps in memory.

    Args:
        boxes: (N, 6).
        scores: (N,).
        iou_threshold: in [0, 1).
        block: boxes settled at once; larger blocks suit a GPU, where each costs a wait.

    Returns:
        (N,) long: index of the kept box that each box belongs to; a kept box is its own leader.
    """
    order = torch.sort(scores, descending=True, stable=True).indices
    alive = _precise(boxes)[order]
    leaders = torch.empty_like(order)
    while len(order):
        head, rest = alive[:block], alive[block:]
        overlap = _overlaps(head, head, iou_threshold)
        kept = _greedy_keep(overlap.triu(1))
        overlap.fill_diagonal_(True)
        kept_order = order[:block][kept]
        leaders[order[:block]] = kept_order[overlap[kept].max(dim=0).indices]

        # One pass tells whether a box is taken and, as the first of equal values wins, by whom.
        taken, first = _overlaps(head[kept], rest, iou_threshold).max(dim=0)
        order = order[block:]
        leaders[order[taken]] = kept_order[first[taken]]
        alive, order = rest[~taken], order[~taken]
    return leaders


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy suppression of (N, 6) boxes: kept indices by falling score, ties by index."""
    leaders = greedy_leaders(boxes, scores, iou_threshold)
    kept = torch.nonzero(leaders == torch.arange(len(leaders), device=leaders.device)).flatten()
    return kept[torch.sort(scores[kept], descending=True, stable=True).indices]


def _precise(boxes: Tensor) -> Tensor:
    return boxes if boxes.dtype == torch.float64 else boxes.float()


def _centre_and_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    low, high = boxes[..., :3], boxes[..., 3:]
    return 0.5 * (low + high), (high - low).clamp(min=_SMALLEST_EDGE)


def _pairwise_intersection(a: Tensor, b: Tensor) -> Tensor:
    # Axis by axis and in place: fresh (N, M) planes cost more than the arithmetic on them.
    a_rows, b_rows = a.t().contiguous(), b.t().contiguous()

    def edge(axis: int) -> Tensor:
        end = torch.minimum(a_rows[axis + 3][:, None], b_rows[axis + 3][None, :])
        start = torch.maximum(a_rows[axis][:, None], b_rows[axis][None, :])
        return end.sub_(start).clamp_(min=0)

    return edge(0).mul_(edge(1)).mul_(edge(2))


def _overlaps(a: Tensor, b: Tensor, iou_threshold: float) -> Tensor:
    # inter / (volumes - inter) > t without the division, so boxes without volume need no care.
    scaled = _pairwise_intersection(a, b).mul_(1 + iou_threshold)
    volumes = (iou_threshold * box_volumes(a))[:, None] + (iou_threshold * box_volumes(b))[None, :]
    return scaled > volumes


def _greedy_keep(suppresses: Tensor) -> Tensor:
    """Solve greedy suppression, `suppresses` (n, n) strictly upper triangular, as a fixed point.

    Each pass settles at least one more box of every chain, so it ends, and at the greedy answer:
    the first box is right from the start, and each box depends on those before it only.
    """
    matrix = suppresses.float()
    kept = torch.ones(len(matrix), dtype=torch.bool, device=matrix.device)
    while True:
        settled = (kept.float() @ matrix) == 0
        if torch.equal(settled, kept):
            return kept
        kept = settled
