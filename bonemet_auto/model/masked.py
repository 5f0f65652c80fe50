"""Masked autoencoding: learn what bones look like from scans without labels.

Most blocks of a window are hidden, and the network has to guess them from the rest. As in FCMAE
(Woo et al. 2023, "ConvNeXt V2") hidden cells stay hidden in every stage of the trunk: their values
are put back to zero after each stage, which is what a sparse convolution would give. Ours decodes
through the neck's way down and the dense branch to voxels, so that these are trained too (Wald et
al. 2024, "Revisiting MAE pre-training for 3D medical image segmentation"). Parameters are named as
in `MaskRCNN`, so `transfer_weights` takes them by name.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bonemet_auto.geometry import Index
from bonemet_auto.model.convnext import ConvNextTrunk
from bonemet_auto.model.fpn import DenseBranch, FeaturePyramid, FusionNeck
from bonemet_auto.model.mask_rcnn import assemble_model
from bonemet_auto.model.roi_sampling import Targets
from bonemet_auto.plan_schema import NetworkPlan

HIDDEN_SHARE = 0.6
BLOCK_VOXELS = 8
"""Edge of a hidden block along the finest axes, at most: about a small lesion."""


class MaskedAutoencoder(nn.Module):
    """Trunk, neck and dense branch of a network, with a linear layer for the hidden HU."""

    def __init__(
        self,
        trunk: ConvNextTrunk,
        neck: FusionNeck | FeaturePyramid,
        dense: DenseBranch,
        strides: Sequence[Index],
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.neck = neck
        self.dense = dense
        self.hidden_value = nn.Linear(dense.logit.in_features, 1)
        self.strides = list(strides)
        self.block = max(
            (stride for stride in strides if max(stride) <= BLOCK_VOXELS), default=strides[0]
        )

    def forward(
        self,
        images: Tensor,
        targets: list[Targets],
        generator: torch.Generator,
        dense_only: bool = True,
    ) -> dict[str, Tensor]:
        """Mean squared error of the hidden voxels, as `reconstruction`.

        Args:
            images: (N, 1, Z, Y, X) normalised HU, their own targets.
            targets: not looked at.
            generator: draws hidden blocks and dropped paths; a CPU generator.
            dense_only: not looked at; `Trainer` passes it.
        """
        hidden = self.draw_hidden(images, generator)
        guess = self.reconstruct(images, hidden, generator)
        error = (guess - images.float()).square() * hidden
        return {"reconstruction": error.sum() / hidden.sum().clamp_min(1)}

    def draw_hidden(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """(N, 1, Z, Y, X) float, 1 where a voxel is hidden: `HIDDEN_SHARE` of the blocks."""
        n, _, *size = images.shape
        blocks = [max(1, edge // step) for edge, step in zip(size, self.block, strict=True)]
        order = torch.rand(n, blocks[0] * blocks[1] * blocks[2], generator=generator)
        rank = order.argsort(dim=1).argsort(dim=1)
        hidden = (rank < HIDDEN_SHARE * rank.shape[1]).float().view(n, 1, *blocks)
        return F.interpolate(hidden.to(images.device), size=size, mode="nearest")

    def reconstruct(
        self, images: Tensor, hidden: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Guess all voxels (N, 1, Z, Y, X) from those that are not hidden; float32."""
        seen = 1 - hidden
        x = skip = self.trunk.skip(images * seen) * seen
        maps = []
        for stride, downsample, stage, norm in zip(
            self.strides, self.trunk.downsamples, self.trunk.stages, self.trunk.norms, strict=True
        ):
            # A coarse cell that holds anything seen knows something.
            known = F.max_pool3d(seen, stride).to(x.dtype)
            x = downsample(x) * known
            for block in cast(nn.ModuleList, stage):
                x = block(x, generator) * known
            maps.append(norm(x) * known)
        features = self.dense.features(skip, self.neck(maps)[0])
        return self.hidden_value(features.permute(0, 2, 3, 4, 1)).movedim(-1, 1).float()


def build_autoencoder(plan: NetworkPlan) -> MaskedAutoencoder:
    """Autoencoder of a planned network, freshly initialised from torch's global random state."""
    parts = assemble_model(plan)
    model = MaskedAutoencoder(parts.trunk, parts.neck, parts.dense, parts.strides)
    model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    return model
