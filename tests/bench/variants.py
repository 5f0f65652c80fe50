"""What is compared in studies: the network with parts left out, and other ways to train it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from bonemet_auto.model import mask_rcnn
from bonemet_auto.model.heads import Trunk
from bonemet_auto.model.mask_rcnn import Detections, MaskRCNN, Outlines
from bonemet_auto.model.roi_sampling import Targets
from bonemet_auto.plan_schema import NetworkPlan

FUSED_WITH_NOTHING = 2.0
"""Fusion takes the mean of mask and dense probability: without the latter it would halve masks."""


class DenseOnly(MaskRCNN):
    """Voxels alone: lesions are connected components, and their source is not known."""

    def forward(
        self,
        images: Tensor,
        targets: list[Targets],
        generator: torch.Generator,
        dense_only: bool = True,
    ) -> dict[str, Tensor]:
        return super().forward(images, targets, generator, dense_only=True)

    @torch.no_grad()
    def detect(self, images: Tensor) -> Detections:
        nothing = [images.new_zeros(0, 6) for _ in images]
        scores = [images.new_zeros(0) for _ in images]
        return Detections(self.look(images).dense_logits.sigmoid(), nothing, scores)

    @torch.no_grad()
    def outline(self, images: Tensor, boxes: list[Tensor]) -> list[Outlines]:
        return [whole_boxes(item) for item in boxes]


class WithoutDense(MaskRCNN):
    """Mask R-CNN by itself: no dense branch, no deep supervision, nothing that reads them."""

    def look(self, images: Tensor, generator: torch.Generator | None = None) -> Trunk:
        _, maps = self.trunk(images, generator)
        return Trunk(images, self.neck(maps), self.strides, torch.zeros_like(images[:, 0]))

    def forward(
        self,
        images: Tensor,
        targets: list[Targets],
        generator: torch.Generator,
        dense_only: bool = False,
    ) -> dict[str, Tensor]:
        return self.detection_losses(self.look(images, generator), targets, generator)

    @torch.no_grad()
    def detect(self, images: Tensor) -> Detections:
        found = super().detect(images)
        return replace(found, dense=torch.zeros_like(found.dense))

    @torch.no_grad()
    def outline(self, images: Tensor, boxes: list[Tensor]) -> list[Outlines]:
        found = super().outline(images, boxes)
        return [replace(item, masks=FUSED_WITH_NOTHING * item.masks) for item in found]


class BoxesOnly(WithoutDense):
    """A box detector with a source head: the mask of a lesion is its box."""

    def forward(
        self,
        images: Tensor,
        targets: list[Targets],
        generator: torch.Generator,
        dense_only: bool = False,
    ) -> dict[str, Tensor]:
        losses = super().forward(images, targets, generator)
        return {name: loss for name, loss in losses.items() if name not in ("mask", "quality")}

    @torch.no_grad()
    def outline(self, images: Tensor, boxes: list[Tensor]) -> list[Outlines]:
        found = super().outline(images, boxes)
        return [replace(item, masks=torch.full_like(item.masks, 1.1)) for item in found]


@dataclass(frozen=True)
class Variant:
    """One column of a table.

    Attributes:
        network: what is done with the parts.
        cases: training scans; None for all.
        pretrained: start from `bonemet_pretrain` on all training scans.
        planting: share of windows with a planted lesion.
        constants: other values of constants, see `tests.bench.constants`.
    """

    network: type[MaskRCNN] = MaskRCNN
    cases: int | None = None
    pretrained: bool = False
    planting: float = 0.0
    constants: Mapping[str, Any] = field(default_factory=dict)


def dense_first(share: float) -> dict[str, Any]:
    """The share of the steps in which the dense branch learns alone."""
    return {"training.schedule.DENSE_ONLY_SHARE": share}


# Without a dense branch there is nothing to wait for.
AT_ONCE = dense_first(0.0) | {"training.schedule.RAMP_SHARE": 1e-6}

PARTS = {
    "full": Variant(),
    "dense only": Variant(DenseOnly),
    "no dense": Variant(WithoutDense, constants=AT_ONCE),
    "boxes only": Variant(BoxesOnly, constants=AT_ONCE),
}
FEW = {
    "8 scans": Variant(cases=8),
    "8 scans pretrained": Variant(cases=8, pretrained=True),
    "8 scans planted": Variant(cases=8, planting=0.5),
}
SCHEDULE = {
    "full": Variant(),
    "dense first .7": Variant(constants=dense_first(0.7)),
}
TABLES = {"parts": PARTS, "few": FEW, "schedule": SCHEDULE}
VARIANTS = PARTS | FEW | SCHEDULE


def build_variant(variant: Variant, plan: NetworkPlan) -> MaskRCNN:
    """Network of a plan with parts left out, freshly initialised."""
    model = mask_rcnn.build_model(plan)
    # The parts are the same; only what is done with them differs.
    model.__class__ = variant.network
    return model


def whole_boxes(boxes: Tensor) -> Outlines:
    """Outlines that say nothing: the box itself, no source, no score of their own."""
    ones = torch.ones(len(boxes))
    return Outlines(torch.ones(len(boxes), 2, 2, 2), 0.5 * ones, ones, ones)
