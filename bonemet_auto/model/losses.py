"""Losses that more than one part of the network uses. All run in float32."""

import torch
import torch.nn.functional as F
from torch import Tensor

_DICE_SMOOTH_VOXELS = 1.0


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Soft Dice loss, the mean over those samples (N, ...) that hold a lesion.

    One Dice for the whole batch would count voxels: large lesions would drown the small ones. In a
    sample without lesion the loss would jump between 0 and 1 on a single voxel; cross-entropy
    looks after those.
    """
    probability, truth = logits.sigmoid().flatten(1), target.flatten(1)
    size = truth.sum(dim=1)
    overlap = (probability * truth).sum(dim=1)
    loss = 1 - (2 * overlap + _DICE_SMOOTH_VOXELS) / (
        probability.sum(dim=1) + size + _DICE_SMOOTH_VOXELS
    )
    holds = size > 0
    return (loss * holds).sum() / holds.sum().clamp_min(1)


def dense_loss(logits: Tensor, target: Tensor, lesion_weight: float = 1.0) -> Tensor:
    """Dice plus cross-entropy of a binary map; `target` is float of the same shape."""
    return dice_loss(logits, target) + voxel_entropy(logits, target, lesion_weight)


def voxel_entropy(logits: Tensor, target: Tensor, lesion_weight: float = 1.0) -> Tensor:
    """Cross-entropy of a binary map; `target` is float of the same shape.

    `lesion_weight` is that of a lesion voxel. Where lesions are rare the Dice of a small one has
    next to no gradient while the network still answers "perhaps" everywhere.
    """
    weight = logits.new_tensor(lesion_weight)
    return F.binary_cross_entropy_with_logits(logits, target, pos_weight=weight)


def quality_loss(quality_logits: Tensor, mask_logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy between the estimated Dice (K,) of K masks and their Dice as they are.

    Args:
        quality_logits: (K,) of the estimated Dice.
        mask_logits: (K, ...); the mask is where they are positive.
        target: (K, ...) share of each bin that the lesion fills.
    """
    mask, truth = (mask_logits > 0).flatten(1), (target > 0.5).flatten(1)
    overlap = 2 * (mask & truth).sum(dim=1) + _DICE_SMOOTH_VOXELS
    dice = overlap / (mask.sum(dim=1) + truth.sum(dim=1) + _DICE_SMOOTH_VOXELS)
    return F.binary_cross_entropy_with_logits(quality_logits, dice)


def mean_over(values: Tensor, n: int) -> Tensor:
    """Sum over max(1, n): an image without positives adds nothing instead of NaN."""
    return values.sum() / max(1, n)


def source_loss(logits: Tensor, is_lung: Tensor) -> Tensor:
    """Class-balanced cross-entropy of the source; `is_lung` is 1, 0, or -1 where unknown."""
    known = is_lung >= 0
    if not known.any():
        return logits.sum() * 0
    target = is_lung[known].float()
    n_positive = target.sum()
    n_negative = len(target) - n_positive
    weight = torch.where(target > 0, 0.5 / n_positive.clamp_min(1), 0.5 / n_negative.clamp_min(1))
    return F.binary_cross_entropy_with_logits(logits[known], target, weight, reduction="sum")
