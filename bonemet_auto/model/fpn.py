"""The fusion neck and the dense branch.

The paper's "Fusion" wiring is not public; ours is a reading of it: a top-down pass as in FPN (Lin
et al. 2017), whose sums have learned weights (Tan et al. 2020, fast normalised fusion), and one
bottom-up pass as in PANet (Liu et al. 2018), so that small and large lesions both see fine edges
and wide context.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bonemet_auto.geometry import Index
from bonemet_auto.model.layers import ConvNormAct, Expand

LESION_PRIOR_LOGIT = -3.0
"""About 5 % at the start; otherwise the first steps only learn that lesions are rare."""


class WeightedSum(nn.Module):
    """Sum of maps with positive learned weights whose mean is one."""

    def __init__(self, n_inputs: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(n_inputs))

    def weights(self) -> Tensor:
        """(n_inputs,) positive, mean 1."""
        return self.logits.softmax(0) * len(self.logits)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Sum maps of one shape, scaled so that equal weights give the plain sum."""
        weights = self.weights()
        total = maps[0] * weights[0]
        for weight, item in zip(weights[1:], maps[1:], strict=True):
            total = total + item * weight
        return total


class FeaturePyramid(nn.Module):
    """The plain top-down pyramid (Lin et al. 2017) that `FusionNeck` is compared with."""

    def __init__(self, widths: Sequence[int], neck_width: int) -> None:
        """Take the trunk's widths."""
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv3d(width, neck_width, 1) for width in widths)
        self.convs = nn.ModuleList(ConvNormAct(neck_width, neck_width) for _ in widths[:-1])

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Map the trunk's stages to maps of `neck_width` channels, finest first."""
        lateral = [project(x) for project, x in zip(self.lateral, maps, strict=True)]
        pyramid = [lateral[-1]]
        for i in reversed(range(len(lateral) - 1)):
            coarse = upsample_to(pyramid[0], lateral[i].shape[2:])
            pyramid.insert(0, self.convs[i](lateral[i] + coarse))
        return pyramid


class FusionNeck(nn.Module):
    """Bring all stages to one width and let them exchange context, down and up again."""

    def __init__(self, widths: Sequence[int], strides: Sequence[Index], neck_width: int) -> None:
        """Take the trunk's widths and the stride into each stage."""
        super().__init__()
        n = len(widths)
        self.lateral = nn.ModuleList(nn.Conv3d(width, neck_width, 1) for width in widths)
        self.down_sums = nn.ModuleList(WeightedSum(2) for _ in range(n - 1))
        self.down_convs = nn.ModuleList(ConvNormAct(neck_width, neck_width) for _ in range(n - 1))
        self.strided = nn.ModuleList(
            nn.Conv3d(neck_width, neck_width, stride, stride) for stride in strides[1:]
        )
        self.up_sums = nn.ModuleList(WeightedSum(3) for _ in range(n - 1))
        self.up_convs = nn.ModuleList(ConvNormAct(neck_width, neck_width) for _ in range(n - 1))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Map the trunk's stages to fused maps of `neck_width` channels, finest first."""
        lateral = [project(x) for project, x in zip(self.lateral, maps, strict=True)]
        downward = [lateral[-1]]
        for i in reversed(range(len(lateral) - 1)):
            coarse = upsample_to(downward[0], lateral[i].shape[2:])
            downward.insert(0, self.down_convs[i](self.down_sums[i]([lateral[i], coarse])))
        fused = [downward[0]]
        for i in range(1, len(lateral)):
            finer = self.strided[i - 1](fused[-1])
            merged = self.up_sums[i - 1]([lateral[i], downward[i], finer])
            fused.append(self.up_convs[i - 1](merged))
        return fused

    @torch.no_grad()
    def weights(self) -> dict[str, float]:
        """How much each input of each sum counts; those of one sum have mean 1."""
        named = {}
        for level, summed in enumerate(self.down_sums):
            named.update(_named(f"down{level}", ("lateral", "coarser"), summed))
        for level, summed in enumerate(self.up_sums, start=1):
            named.update(_named(f"up{level}", ("lateral", "downward", "finer"), summed))
        return named


def _named(where: str, inputs: Sequence[str], summed: nn.Module) -> dict[str, float]:
    weights = cast(WeightedSum, summed).weights().tolist()
    return {f"{where}_{name}": value for name, value in zip(inputs, weights, strict=True)}


def fusion_weights(model: nn.Module) -> dict[str, float]:
    """`FusionNeck.weights` of the neck in a network; empty where it has none."""
    necks = (module for module in model.modules() if isinstance(module, FusionNeck))
    return next((neck.weights() for neck in necks), {})


class DenseBranch(nn.Module):
    """Lesion logit of every voxel, from the finest fused map and the full-resolution skip.

    Full resolution is where a step spends most, so it has few channels and one convolution.
    """

    def __init__(self, neck_width: int, skip_width: int, stride: Index) -> None:
        super().__init__()
        self.expand = Expand(neck_width, skip_width, stride)
        self.merge = ConvNormAct(skip_width, skip_width)
        self.logit = nn.Linear(skip_width, 1)
        nn.init.constant_(self.logit.bias, LESION_PRIOR_LOGIT)

    def forward(self, skip: Tensor, finest: Tensor) -> Tensor:
        """Map (N, S, Z, Y, X) and the finest fused map to float32 logits (N, Z, Y, X)."""
        h = self.features(skip, finest)
        return self.logit(h.permute(0, 2, 3, 4, 1))[..., 0].float()

    def features(self, skip: Tensor, finest: Tensor) -> Tensor:
        """What the logits are read from, (N, S, Z, Y, X)."""
        return self.merge(self.expand(finest) + skip)


class CoarseLogit(nn.Module):
    """Lesion logit of every cell of one fused map."""

    def __init__(self, neck_width: int) -> None:
        super().__init__()
        self.logit = nn.Linear(neck_width, 1)
        nn.init.constant_(self.logit.bias, LESION_PRIOR_LOGIT)

    def forward(self, feature: Tensor) -> Tensor:
        """Map (N, C, z, y, x) to float32 logits (N, z, y, x)."""
        return self.logit(feature.permute(0, 2, 3, 4, 1))[..., 0].float()


def upsample_to(x: Tensor, size: Sequence[int]) -> Tensor:
    """Nearest upsampling by whole factors; stays channels_last_3d."""
    return F.interpolate(x, size=tuple(size), mode="nearest")
