"""Region proposals: which boxes of the window may hold a lesion.

Source: Ren et al. 2015 (RPN), Zhang et al. 2020 (ATSS matching), Rezatofighi et al. 2019 (GIoU).
The head also reads the dense branch's lesion probability: it is the earliest reliable signal when
training from scratch, and spares the RPN learning the same thing again.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bonemet_auto.geometry import Index, Triple
from bonemet_auto.model.anchors import grid_anchors
from bonemet_auto.model.boxes import clip_boxes, decode_boxes, nms, paired_giou
from bonemet_auto.model.layers import ConvAct, join_channels
from bonemet_auto.model.losses import mean_over
from bonemet_auto.model.matching import atss_match, sample_negatives

PRIOR = 0.02
"""Objectness at the start: rare lesions must not drown the first steps in false positives."""

NEGATIVES_PER_POSITIVE = 3
MIN_NEGATIVES = 16
HARD_POOL_FACTOR = 8
PRE_NMS = 400
PROPOSAL_NMS_IOU = 0.5


@dataclass(frozen=True)
class RpnOutput:
    """Raw head output; A runs over all anchors of all levels.

    Attributes:
        anchors: one (A_l, 6) tensor per level.
        objectness: (N, A) float32 logits.
        deltas: (N, A, 6) float32, see `boxes.decode_boxes`.
    """

    anchors: list[Tensor]
    objectness: Tensor
    deltas: Tensor


class RegionProposalNetwork(nn.Module):
    """One shared head over several levels of the neck.

    Args:
        width: channels of the neck.
        strides: voxels per cell of each level.
        anchor_sizes: box sizes (voxels) of each level; all levels have the same number.
    """

    anchor_sizes: Tensor

    def __init__(
        self, width: int, strides: Sequence[Index], anchor_sizes: Sequence[Sequence[Triple]]
    ) -> None:
        super().__init__()
        self.strides = list(strides)
        self.register_buffer("anchor_sizes", torch.tensor(anchor_sizes), persistent=False)
        n_sizes = len(anchor_sizes[0])
        self.conv = ConvAct(width + 2, width)
        self.objectness = nn.Conv3d(width, n_sizes, 1)
        self.deltas = nn.Conv3d(width, 6 * n_sizes, 1)
        nn.init.constant_(cast(Tensor, self.objectness.bias), math.log(PRIOR / (1 - PRIOR)))
        nn.init.normal_(self.deltas.weight, std=0.001)

    def forward(self, features: Sequence[Tensor], probability: Tensor) -> RpnOutput:
        """Score and shift all anchors.

        Args:
            features: one (N, C, z, y, x) map per level.
            probability: (N, 1, Z, Y, X) dense lesion probability, without gradient.
        """
        anchors, objectness, deltas = [], [], []
        for feature, stride, sizes in zip(features, self.strides, self.anchor_sizes, strict=True):
            evidence = [F.avg_pool3d(probability, stride), F.max_pool3d(probability, stride)]
            h = self.conv(join_channels(feature, *evidence))
            anchors.append(grid_anchors(feature.shape[2:], stride, sizes))
            objectness.append(self.objectness(h).permute(0, 2, 3, 4, 1).flatten(1))
            deltas.append(self.deltas(h).permute(0, 2, 3, 4, 1).reshape(len(h), -1, 6))
        return RpnOutput(anchors, torch.cat(objectness, 1).float(), torch.cat(deltas, 1).float())

    def losses(
        self, output: RpnOutput, boxes: Sequence[Tensor], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Objectness loss over positives and sampled hard negatives, GIoU loss over positives."""
        all_anchors = torch.cat(output.anchors)
        scores, targets, giou, n_positive = [], [], [], 0
        for objectness, deltas, truth in zip(output.objectness, output.deltas, boxes, strict=True):
            matched = atss_match(output.anchors, truth)
            positive = torch.nonzero(matched >= 0)[:, 0]
            n_negative = max(MIN_NEGATIVES, NEGATIVES_PER_POSITIVE * len(positive))
            negative = sample_negatives(
                objectness.detach(), matched < 0, n_negative, HARD_POOL_FACTOR, generator
            )
            scores.append(objectness[torch.cat([positive, negative])])
            targets.append(torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))]))
            decoded = decode_boxes(deltas[positive], all_anchors[positive])
            giou.append(paired_giou(decoded, truth[matched[positive]]))
            n_positive += len(positive)
        target = torch.cat(targets).to(scores[0].device)
        return (
            F.binary_cross_entropy_with_logits(torch.cat(scores), target),
            mean_over(1 - torch.cat(giou), n_positive),
        )

    @torch.no_grad()
    def proposals(
        self, output: RpnOutput, window: Index, n_kept: int
    ) -> list[tuple[Tensor, Tensor]]:
        """Best (K, 6) boxes and (K,) probabilities of each image, K <= n_kept, after NMS."""
        all_anchors = torch.cat(output.anchors)
        found = []
        for objectness, deltas in zip(output.objectness, output.deltas, strict=True):
            best, index = objectness.topk(min(PRE_NMS, len(objectness)))
            boxes = clip_boxes(decode_boxes(deltas[index], all_anchors[index]), window)
            kept = nms(boxes, best, PROPOSAL_NMS_IOU)[:n_kept]
            found.append((boxes[kept], best[kept].sigmoid()))
        return found
