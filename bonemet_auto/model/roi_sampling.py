"""Which proposals the RoI heads learn from, and what they should answer."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bonemet_auto.geometry import Index
from bonemet_auto.model.boxes import clip_boxes, pairwise_iou
from bonemet_auto.model.roi_align import roi_align

POSITIVE_IOU = 0.3
NEGATIVE_IOU = 0.15
"""3D IoU is harsh: a shift of 10 % per axis gives about .57. Between the two nothing is learnt."""

JITTERED_COPIES = 3
JITTER = 0.15


@dataclass(frozen=True)
class Targets:
    """What is to be found in one window.

    Attributes:
        boxes: (G, 6) voxels.
        instances: (Z, Y, X) integer map, value g + 1 for lesion g.
        is_lung: (G,) 1, 0, or -1 where the source is unknown.
    """

    boxes: Tensor
    instances: Tensor
    is_lung: Tensor


@dataclass(frozen=True)
class SampledRois:
    """RoIs of a batch; K over all images.

    Attributes:
        boxes: (K, 6).
        image_index: (K,) image of each RoI.
        matched: (K,) lesion of that image, or -1 for background.
    """

    boxes: Tensor
    image_index: Tensor
    matched: Tensor


def _jitter(boxes: Tensor, generator: torch.Generator) -> Tensor:
    """Copies of the true boxes, shifted and resized, as an honest proposal would be."""
    boxes = boxes.repeat(JITTERED_COPIES, 1)
    size = (boxes[:, 3:] - boxes[:, :3]).repeat(1, 2)
    noise = torch.randn(boxes.shape, generator=generator).to(boxes.device)
    return boxes + noise.clamp(-2, 2) * JITTER * size


@torch.no_grad()
def sample_rois(
    proposals: list[tuple[Tensor, Tensor]],
    targets: list[Targets],
    n_per_image: int,
    generator: torch.Generator,
) -> SampledRois:
    """Pick positives, true boxes and jittered copies among them, at most half, and negatives.

    Proposals come best first, so the negatives taken are the most lesion-like ones.
    """
    boxes, image_index, matched = [], [], []
    for i, ((proposed, _), target) in enumerate(zip(proposals, targets, strict=True)):
        window = tuple(target.instances.shape)
        jittered = clip_boxes(_jitter(target.boxes, generator), window)
        candidates = torch.cat([target.boxes, jittered, proposed])
        best, truth = _best_overlap(candidates, target.boxes)
        positive = torch.nonzero(best >= POSITIVE_IOU)[:, 0]
        if len(positive) > n_per_image // 2:
            order = torch.randperm(len(positive), generator=generator)[: n_per_image // 2]
            positive = positive[order.to(positive.device)]
        negative = torch.nonzero(best < NEGATIVE_IOU)[:, 0][: n_per_image - len(positive)]
        boxes += [candidates[positive], candidates[negative]]
        matched += [truth[positive], torch.full_like(negative, -1)]
        image_index.append(torch.full_like(torch.cat([positive, negative]), i))
    return SampledRois(torch.cat(boxes), torch.cat(image_index), torch.cat(matched))


def take_in_turn(image_index: Tensor, n: int) -> Tensor:
    """Indices of at most `n` RoIs: the first of each image, then the second of each, and so on.

    The first `n` as they lie would leave out the later images where an earlier one has many
    lesions.

    Args:
        image_index: (K,) image of each RoI, rising.
        n: how many to take.
    """
    counts = torch.bincount(image_index).tolist()
    turn = torch.cat([torch.arange(count) for count in counts])
    return turn.argsort(stable=True)[:n].to(image_index.device)


def _best_overlap(boxes: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    if not len(truth):
        return boxes.new_zeros(len(boxes)), boxes.new_zeros(len(boxes), dtype=torch.long)
    best, index = pairwise_iou(boxes, truth).max(dim=1)
    return best, index


def mask_targets(rois: SampledRois, targets: list[Targets], size: Index) -> Tensor:
    """Share of each RoI bin that its lesion fills, (K, *size); all RoIs must be positive."""
    lesion = torch.stack(
        [
            targets[image].instances == lesion + 1
            for image, lesion in zip(rois.image_index.tolist(), rois.matched.tolist(), strict=True)
        ]
    )
    index = torch.arange(len(lesion), device=lesion.device)
    return roi_align(lesion[:, None].float(), rois.boxes, index, (1, 1, 1), size)[:, 0]
