"""RoI heads: is it a lesion and where exactly, which voxels, and from lung cancer or not.

Source: He et al. 2017 (Mask R-CNN) for the box and mask heads; the dense branch as an input of
every head and the source head with its context box are ours.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bonemet_auto.geometry import Index
from bonemet_auto.model.layers import ConvAct, join_channels
from bonemet_auto.model.precision import Conv3x3x3
from bonemet_auto.model.roi_align import pyramid_levels, roi_align

BOX_BINS = 7
MASK_BINS = 14
SOURCE_BINS = 8
CONTEXT_SCALE = 1.75
SOURCE_GRADIENT = 0.1
"""Share of the source loss's gradient that reaches the trunk: with few lesions it overfits."""


@dataclass(frozen=True)
class Trunk:
    """All maps of one batch of windows.

    Attributes:
        images: (N, 1, Z, Y, X) normalised HU.
        pyramid: fused maps, finest first.
        strides: voxels per cell of each of them.
        dense_logits: (N, Z, Y, X) float32.
    """

    images: Tensor
    pyramid: list[Tensor]
    strides: list[Index]
    dense_logits: Tensor

    @property
    def window(self) -> Index:
        """Voxels (Z, Y, X) of each window."""
        z, y, x = self.images.shape[2:]
        return z, y, x

    @cached_property
    def probability(self) -> Tensor:
        """(N, 1, Z, Y, X) dense lesion probability, without gradient."""
        return self.dense_logits.detach().sigmoid()[:, None]

    @cached_property
    def evidence(self) -> list[Tensor]:
        """`pyramid`, each with one channel more: the probability, averaged over the map's cells."""
        means = [F.avg_pool3d(self.probability, stride) for stride in self.strides]
        return [
            join_channels(feature, mean) for feature, mean in zip(self.pyramid, means, strict=True)
        ]


def pool_pyramid(trunk: Trunk, boxes: Tensor, image_index: Tensor, bins: int) -> Tensor:
    """RoIAlign each box on the level that fits its size: (K, C + 1, bins, bins, bins).

    The last channel is the dense lesion probability, see `Trunk.evidence`.
    """
    levels = pyramid_levels(boxes, trunk.strides)
    size = (bins, bins, bins)
    pooled = trunk.evidence[0].new_zeros(len(boxes), trunk.evidence[0].shape[1], *size)
    for level, (maps, stride) in enumerate(zip(trunk.evidence, trunk.strides, strict=True)):
        chosen = torch.nonzero(levels == level)[:, 0]
        if len(chosen):
            rois = roi_align(maps, boxes[chosen], image_index[chosen], stride, size)
            pooled = pooled.index_copy(0, chosen, rois.to(pooled.dtype))
    return pooled


def pool_voxels(volumes: Tensor, boxes: Tensor, image_index: Tensor, bins: int) -> Tensor:
    """RoIAlign full-resolution (N, C, Z, Y, X) volumes: (K, C, bins, bins, bins)."""
    return roi_align(volumes, boxes, image_index, (1, 1, 1), (bins, bins, bins))


class BoxHead(nn.Module):
    """Lesion or background, and the refinement of the box."""

    def __init__(self, width: int, hidden: int = 128) -> None:
        super().__init__()
        self.conv = ConvAct(width + 1, width)
        self.reduce = Conv3x3x3(width, width, (2, 2, 2))
        self.hidden = nn.Linear(width * ((BOX_BINS + 1) // 2) ** 3, hidden)
        self.score = nn.Linear(hidden, 1)
        self.deltas = nn.Linear(hidden, 6)
        nn.init.normal_(self.deltas.weight, std=0.001)
        nn.init.zeros_(self.deltas.bias)

    def forward(self, trunk: Trunk, boxes: Tensor, image_index: Tensor) -> tuple[Tensor, Tensor]:
        """Score logits (K,) and deltas (K, 6) of K boxes, float32."""
        return self.read(pool_pyramid(trunk, boxes, image_index, BOX_BINS))

    def read(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and deltas of boxes whose features (K, C + 1, B, B, B) are pooled."""
        h = F.gelu(self.reduce(self.conv(pooled)))
        h = F.gelu(self.hidden(h.flatten(1)))
        return self.score(h)[:, 0].float(), self.deltas(h).float()


class MaskHead(nn.Module):
    """Which bins of the box belong to the lesion, as a correction of the dense logits in it.

    And how well they do: a second, small head estimates the Dice of the mask, as in Mask Scoring
    R-CNN (Huang et al. 2019). It reads features of the mask head and does not change them.
    """

    def __init__(self, width: int, hidden: int = 32) -> None:
        super().__init__()
        # Half the width: at 14^3 bins this head would otherwise cost more than the trunk.
        narrow = width // 2
        self.convs = nn.Sequential(ConvAct(width + 1, narrow), ConvAct(narrow, narrow))
        self.logit = nn.Conv3d(narrow, 1, 1)
        self.quality_hidden = nn.Linear(2 * narrow + 2, hidden)
        self.quality = nn.Linear(hidden, 1)

    def forward(self, trunk: Trunk, boxes: Tensor, image_index: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (K, M, M, M) of the masks and (K,) of their Dice, float32."""
        dense = pool_voxels(trunk.dense_logits.detach()[:, None], boxes, image_index, MASK_BINS)
        return self.read(pool_pyramid(trunk, boxes, image_index, MASK_BINS), dense)

    def read(self, pooled: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of boxes whose features (K, C + 1, M, M, M) and dense logits are pooled."""
        h = self.convs(pooled)
        logits = (self.logit(h) + dense).float()
        return logits[:, 0], self._quality(h.detach().float(), logits.detach())

    def _quality(self, h: Tensor, logits: Tensor) -> Tensor:
        """Logits (K,) of the Dice, from what lies inside the mask and along its doubtful edge."""
        inside = logits.sigmoid()
        edge = inside * (1 - inside)
        summary = torch.cat(
            [
                weighted_mean(h, inside),
                weighted_mean(h, edge),
                inside.mean((2, 3, 4)),
                edge.mean((2, 3, 4)),
            ],
            dim=1,
        )
        return self.quality(F.gelu(self.quality_hidden(summary)))[:, 0].float()


class SourceHead(nn.Module):
    """Lung-cancer metastasis or not, from the lesion and what surrounds it.

    Reads HU, dense probability and fused features in a box larger than the lesion (is the rim
    sclerotic, is the cortex breached?), pooled over the lesion, over its surroundings, and by
    maximum.
    """

    def __init__(self, width: int, hidden: int = 64) -> None:
        super().__init__()
        self.convs = nn.Sequential(ConvAct(width + 2, width), ConvAct(width, width))
        self.hidden = nn.Linear(3 * width + 6, hidden)
        self.logit = nn.Linear(hidden, 1)

    def forward(self, trunk: Trunk, boxes: Tensor, image_index: Tensor) -> Tensor:
        """Logits (K,) float32."""
        context = enlarge(boxes, CONTEXT_SCALE)
        size = (SOURCE_BINS,) * 3
        finest = scale_gradient(trunk.pyramid[0], SOURCE_GRADIENT)
        features = roi_align(finest, context, image_index, trunk.strides[0], size)
        volumes = torch.cat([trunk.images, trunk.probability], dim=1)
        return self.read(features, pool_voxels(volumes, context, image_index, SOURCE_BINS), boxes)

    def read(self, features: Tensor, voxels: Tensor, boxes: Tensor) -> Tensor:
        """Logits of boxes (K, 6) whose surroundings are pooled.

        Args:
            features: (K, C, B, B, B) of the finest map.
            voxels: (K, 2, B, B, B) normalised HU and dense probability.
            boxes: the lesions' own boxes.
        """
        hu, probability = voxels[:, :1], voxels[:, 1:]
        h = self.convs(join_channels(features, voxels)).float()
        inside, outside = weighted_mean(h, probability), weighted_mean(h, 1 - probability)
        hu_mean = weighted_mean(hu, probability)
        hu_sd = weighted_mean((hu - hu_mean[:, :, None, None, None]) ** 2, probability).sqrt()
        hu_outside = weighted_mean(hu, 1 - probability)
        log_size = (boxes[:, 3:] - boxes[:, :3]).clamp_min(1).log() - 2
        summary = torch.cat(
            [inside, outside, h.amax((2, 3, 4)), log_size, hu_mean, hu_sd, hu_outside], 1
        )
        return self.logit(F.gelu(self.hidden(summary)))[:, 0].float()


def enlarge(boxes: Tensor, scale: float) -> Tensor:
    """Boxes (K, 6) grown about their centres."""
    centre = (boxes[:, :3] + boxes[:, 3:]) / 2
    half = (boxes[:, 3:] - boxes[:, :3]) * (scale / 2)
    return torch.cat([centre - half, centre + half], dim=1)


def scale_gradient(x: Tensor, share: float) -> Tensor:
    """The same values, with only a share of the gradient flowing back."""
    return x * share + x.detach() * (1 - share)


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Mean over the bins of (K, C, z, y, x) by weights (K, 1, z, y, x): (K, C)."""
    return (values * weight).sum((2, 3, 4)) / weight.sum((2, 3, 4)).clamp_min(1e-3)
