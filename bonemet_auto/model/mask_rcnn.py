"""The whole network: trunk, neck, dense branch, proposals, RoI heads.

`forward` returns losses only, `detect` detections only, and `outline` describes lesions whose boxes
are known. Source: Zhao et al. 2024 (10.1016/j.jbo.2024.100637) as re-implemented by reading.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bonemet_auto.geometry import Index
from bonemet_auto.model.boxes import clip_boxes, decode_boxes, nms, paired_giou
from bonemet_auto.model.convnext import ConvNextTrunk, build_trunk
from bonemet_auto.model.fpn import CoarseLogit, DenseBranch, FeaturePyramid, FusionNeck
from bonemet_auto.model.heads import BoxHead, MaskHead, SourceHead, Trunk
from bonemet_auto.model.losses import (
    dense_loss,
    dice_loss,
    mean_over,
    quality_loss,
    source_loss,
    voxel_entropy,
)
from bonemet_auto.model.roi_sampling import (
    SampledRois,
    Targets,
    mask_targets,
    sample_rois,
    take_in_turn,
)
from bonemet_auto.model.rpn import RegionProposalNetwork, RpnOutput
from bonemet_auto.plan_schema import NetworkPlan

PROPOSALS = 32
ROIS_PER_IMAGE = 12
MASK_ROIS = 8
DETECTION_NMS_IOU = 0.3
MIN_SCORE = 0.01

LESION_WEIGHT = 8.0
"""Of a lesion voxel in a window; within RoIs lesions are not rare."""


@dataclass(frozen=True)
class Detections:
    """What one forward finds in N windows.

    Attributes:
        dense: (N, Z, Y, X) lesion probability.
        boxes: N tensors (K, 6), window voxels, best first.
        scores: N tensors (K,) in [0, 1].
    """

    dense: Tensor
    boxes: list[Tensor]
    scores: list[Tensor]


@dataclass(frozen=True)
class Outlines:
    """Description of K lesions of one window.

    Attributes:
        masks: (K, M, M, M) probability in each bin of the lesion's box.
        p_lung: (K,) probability that the lesion is a lung-cancer metastasis.
        scores: (K,) probability that the box holds a lesion.
        mask_quality: (K,) estimated Dice of the mask, if there is a lesion.
    """

    masks: Tensor
    p_lung: Tensor
    scores: Tensor
    mask_quality: Tensor


class MaskRCNN(nn.Module):
    """Composed of ready-made parts; see `build_model`."""

    def __init__(
        self,
        trunk: ConvNextTrunk,
        neck: FusionNeck | FeaturePyramid,
        dense: DenseBranch,
        rpn: RegionProposalNetwork,
        strides: Sequence[Index],
        rpn_stages: Sequence[int],
        neck_width: int,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.neck = neck
        self.dense = dense
        self.rpn = rpn
        self.coarse_logits = nn.ModuleList(CoarseLogit(neck_width) for _ in strides)
        self.box_head = BoxHead(neck_width)
        self.mask_head = MaskHead(neck_width)
        self.source_head = SourceHead(neck_width)
        self.strides = list(strides)
        self.rpn_stages = list(rpn_stages)

    def forward(
        self,
        images: Tensor,
        targets: list[Targets],
        generator: torch.Generator,
        dense_only: bool = False,
    ) -> dict[str, Tensor]:
        """Losses of one batch, unweighted.

        Args:
            images: (N, 1, Z, Y, X) normalised HU.
            targets: one per image.
            generator: draws negatives, RoIs and dropped paths; a CPU generator.
            dense_only: leave out the proposals and RoI heads, and their losses.

        Returns:
            Scalars, named as in `training.schedule.LOSS_WEIGHTS`: `dense_dice`, `dense_entropy`,
            `coarse`, `rpn_score`, `rpn_box`, `roi_score`, `roi_box`, `mask`, `quality`, `source`.
        """
        trunk = self.look(images, generator)
        instances = torch.stack([target.instances for target in targets])
        lesion = (instances > 0).float()
        losses = {
            "dense_dice": dice_loss(trunk.dense_logits, lesion),
            "dense_entropy": voxel_entropy(trunk.dense_logits, lesion, LESION_WEIGHT),
            "coarse": self.coarse_loss(trunk, lesion),
        }
        return losses if dense_only else losses | self.detection_losses(trunk, targets, generator)

    def detection_losses(
        self, trunk: Trunk, targets: list[Targets], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Losses of the proposals and of the RoI heads; see `forward`."""
        output = self.propose(trunk)
        rpn_score, rpn_box = self.rpn.losses(
            output, [target.boxes for target in targets], generator
        )
        proposals = self.rpn.proposals(output, trunk.window, PROPOSALS)
        rois = sample_rois(proposals, targets, ROIS_PER_IMAGE, generator)
        losses = {"rpn_score": rpn_score, "rpn_box": rpn_box}
        return losses | self._roi_losses(trunk, rois, targets)

    @torch.no_grad()
    def detect(self, images: Tensor) -> Detections:
        """Find lesions in (N, 1, Z, Y, X) windows of the training patch size."""
        trunk = self.look(images)
        boxes, scores = [], []
        for i, (proposed, _) in enumerate(
            self.rpn.proposals(self.propose(trunk), trunk.window, PROPOSALS)
        ):
            logits, deltas = self.box_head(
                trunk, proposed, proposed.new_full((len(proposed),), i).long()
            )
            refined = clip_boxes(decode_boxes(deltas, proposed), trunk.window)
            score = logits.sigmoid()
            kept = nms(refined, score, DETECTION_NMS_IOU)
            kept = kept[score[kept] >= MIN_SCORE]
            boxes.append(refined[kept])
            scores.append(score[kept])
        return Detections(trunk.dense_logits.sigmoid(), boxes, scores)

    @torch.no_grad()
    def outline(self, images: Tensor, boxes: list[Tensor]) -> list[Outlines]:
        """Mask and its quality, source and score of known boxes (K, 6) of each of N windows."""
        trunk = self.look(images)
        counts = [len(item) for item in boxes]
        rois = torch.cat(boxes)
        index = torch.repeat_interleave(torch.arange(len(boxes)), torch.tensor(counts)).to(
            rois.device
        )
        masks, quality = (
            logits.sigmoid().split(counts) for logits in self.mask_head(trunk, rois, index)
        )
        p_lung = self.source_head(trunk, rois, index).sigmoid().split(counts)
        scores = self.box_head(trunk, rois, index)[0].sigmoid().split(counts)
        return [Outlines(*parts) for parts in zip(masks, p_lung, scores, quality, strict=True)]

    def look(self, images: Tensor, generator: torch.Generator | None = None) -> Trunk:
        """All maps of (N, 1, Z, Y, X) windows."""
        skip, maps = self.trunk(images, generator)
        pyramid = self.neck(maps)
        return Trunk(images, pyramid, self.strides, self.dense(skip, pyramid[0]))

    def coarse_loss(self, trunk: Trunk, lesion: Tensor) -> Tensor:
        """Deep supervision: each fused map tells what share of its cells is lesion.

        Coarse maps get a direct signal instead of one through the dense branch alone. The weight
        halves from level to level.
        """
        total, scale = lesion.new_zeros(()), 0.0
        for level, (head, feature) in enumerate(
            zip(self.coarse_logits, trunk.pyramid, strict=True)
        ):
            share = F.avg_pool3d(lesion[:, None], trunk.strides[level])[:, 0]
            total = total + 0.5**level * dense_loss(head(feature), share, LESION_WEIGHT)
            scale += 0.5**level
        return total / scale

    def propose(self, trunk: Trunk) -> RpnOutput:
        """Scores and shifts of all anchors."""
        return self.rpn([trunk.pyramid[stage] for stage in self.rpn_stages], trunk.probability)

    def _roi_losses(
        self, trunk: Trunk, rois: SampledRois, targets: list[Targets]
    ) -> dict[str, Tensor]:
        logits, deltas = self.box_head(trunk, rois.boxes, rois.image_index)
        found = rois.matched >= 0
        losses = {"roi_score": F.binary_cross_entropy_with_logits(logits, found.float())}
        positive = SampledRois(rois.boxes[found], rois.image_index[found], rois.matched[found])
        pairs = list(zip(positive.image_index.tolist(), positive.matched.tolist(), strict=True))
        if not pairs:
            nothing = (logits.sum() + deltas.sum()) * 0
            return losses | dict.fromkeys(("roi_box", "mask", "quality", "source"), nothing)
        truth = torch.stack([targets[i].boxes[g] for i, g in pairs])
        is_lung = torch.stack([targets[i].is_lung[g] for i, g in pairs])
        refined = decode_boxes(deltas[found], positive.boxes)
        losses["roi_box"] = mean_over(1 - paired_giou(refined, truth), len(pairs))
        few = take_in_turn(positive.image_index, MASK_ROIS)
        chosen = SampledRois(positive.boxes[few], positive.image_index[few], positive.matched[few])
        mask_logits, quality_logits = self.mask_head(trunk, chosen.boxes, chosen.image_index)
        mask_truth = mask_targets(chosen, targets, mask_logits.shape[1:])
        losses["mask"] = dense_loss(mask_logits, mask_truth)
        losses["quality"] = quality_loss(quality_logits, mask_logits, mask_truth)
        source_logits = self.source_head(trunk, chosen.boxes, chosen.image_index)
        losses["source"] = source_loss(source_logits, is_lung[few])
        return losses


def build_model(plan: NetworkPlan) -> MaskRCNN:
    """Network of a plan, freshly initialised from torch's global random state."""
    model = assemble_model(plan)
    model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    return model


def assemble_model(plan: NetworkPlan) -> MaskRCNN:
    """As `build_model`, with parameters laid out as torch does by default."""
    strides = [plan.total_stride(stage) for stage in range(len(plan.widths))]
    rpn_strides = [strides[stage] for stage in plan.rpn_stages]
    neck: FusionNeck | FeaturePyramid
    if plan.neck == "fusion":
        neck = FusionNeck(plan.widths, plan.strides, plan.neck_width)
    else:
        neck = FeaturePyramid(plan.widths, plan.neck_width)
    return MaskRCNN(
        trunk=build_trunk(plan),
        neck=neck,
        dense=DenseBranch(plan.neck_width, plan.skip_width, strides[0]),
        rpn=RegionProposalNetwork(plan.neck_width, rpn_strides, plan.anchor_sizes),
        strides=strides,
        rpn_stages=plan.rpn_stages,
        neck_width=plan.neck_width,
    )
