"""Which anchor learns which lesion, and which background anchors are worth learning from."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bonemet_auto.model.boxes import pairwise_iou


@torch.no_grad()
def atss_match(anchors: Sequence[Tensor], boxes: Tensor, k: int = 4) -> Tensor:
    """Assign anchors to ground-truth boxes by adaptive training sample selection.

    Candidates of a box are the k anchors of each level whose centres are closest to its own, ties
    by index. Those that overlap the box with at least the mean plus one standard deviation of the
    candidates' IoUs become positive; their centres need not lie in the box, as a small lesion may
    hold no centre. The anchor that overlaps a box most, candidate or not, is forced positive. An
    anchor that several boxes claim goes to one that forces it, else to the one it overlaps most.

    Source: Zhang et al. 2020, "Bridging the Gap Between Anchor-based and Anchor-free Detection".

    Args:
        anchors: per level (n_l, 6).
        boxes: (G, 6).
        k: candidates per level and box; where a cell has several sizes, they compete for them.

    Returns:
        (sum n_l,) long: index of the box of each anchor, -1 for background. A box is left
        without an anchor where none overlaps it, or where other boxes take its candidates and the
        anchor that overlaps it most.
    """
    everything = torch.cat(list(anchors))
    if len(boxes) == 0 or len(everything) == 0:
        return torch.full((len(everything),), -1, dtype=torch.long, device=everything.device)
    iou = pairwise_iou(everything, boxes)
    candidate = torch.cat([_closest(level, boxes, k) for level in anchors])
    per_box = iou.t()[candidate.t()].view(len(boxes), -1)
    threshold = per_box.mean(dim=1) + per_box.std(dim=1, correction=0)
    # Where all candidates overlap alike, rounding must not decide.
    positive = candidate & (iou >= threshold - 1e-6)
    best, best_anchor = iou.max(dim=0)
    forced = torch.zeros_like(positive)
    forced[best_anchor, torch.arange(len(boxes), device=boxes.device)] = True

    # An IoU is at most 1, so a forced claim, raised by 2, beats any other; no overlap is no claim.
    claim = torch.where(forced, iou + 2, torch.where(positive, iou, 0)) * (iou > 0)
    strength, winner = claim.max(dim=1)
    return torch.where(strength > 0, winner, -1)


def sample_negatives(
    scores: Tensor,
    is_negative: Tensor,
    n_wanted: int,
    pool_factor: int,
    generator: torch.Generator,
) -> Tensor:
    """Draw hard negatives: at random from a pool of those that score highest.

    A pool larger than the draw keeps a few unmarked lesions from being picked in every step.

    Args:
        scores: (n,) objectness.
        is_negative: (n,) bool.
        n_wanted: how many to draw.
        pool_factor: size of the pool as a multiple of `n_wanted`.
        generator: source of the draw, on any device.

    Returns:
        (min(n_wanted, negatives),) long indices into `scores`.
    """
    negatives = torch.nonzero(is_negative).flatten()
    pool_size = min(n_wanted * pool_factor, len(negatives))
    pool = negatives[scores[negatives].topk(pool_size).indices]
    shuffle = torch.randperm(pool_size, generator=generator, device=generator.device)
    return pool[shuffle[:n_wanted].to(pool.device)]


def _closest(anchors: Tensor, boxes: Tensor, k: int) -> Tensor:
    """Mark for each of G boxes the k closest anchors by centre, ties by index: (n, G) bool."""
    k = min(k, len(anchors))
    if k == 0:
        return torch.zeros(len(anchors), len(boxes), dtype=torch.bool, device=boxes.device)
    anchor_centres = (anchors[:, :3] + anchors[:, 3:]) / 2
    box_centres = (boxes[:, :3] + boxes[:, 3:]) / 2
    distance = (anchor_centres[:, None] - box_centres[None]).square().sum(dim=2)
    # topk breaks ties as it likes, and sizes that share a cell always tie: count them instead.
    farthest = distance.topk(k, dim=0, largest=False).values[-1]
    closer, tied = distance < farthest, distance == farthest
    return closer | (tied & (tied.cumsum(dim=0) <= k - closer.sum(dim=0)))
