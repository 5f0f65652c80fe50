"""ConvNeXt-V2 in three dimensions: the trunk that turns a CT window into feature maps.

Source: Woo et al. 2023, "ConvNeXt V2" (block and GRN); the third axis, per-axis strides and the
convolutional stem are ours. At the paper's stem stride of 4 a lesion of 5-10 mm is one cell, so
ours keeps full resolution for the skip and strides by 2; and it convolves before it strides (Xiao
et al. 2021, "Early convolutions"), see docs/adr/0008-convolutions-where-lesions-are-small.md.
Maps are channels_last_3d all the way, so that norms and linears see contiguous channel vectors.
"""

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bonemet_auto.geometry import Index
from bonemet_auto.model.depthwise import DepthwiseConv3d
from bonemet_auto.model.layers import ConvNormAct, InstanceNorm, ResidualConv, instance_norm
from bonemet_auto.plan_schema import NetworkPlan

_GRN_EPS = 1e-6


class GrnLinear(nn.Module):
    """Global response normalisation followed by a linear layer, as one weight per sample.

    GRN scales channel c by s_c = gamma_c * g_c / mean(g) + 1, g_c the channel's L2 norm over space,
    and adds beta. A scale per sample and channel commutes with the linear layer, so it is folded
    into its weight: the wide activation is read once instead of being rewritten.
    """

    def __init__(self, wide: int, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(wide))
        self.beta = nn.Parameter(torch.zeros(wide))
        self.linear = nn.Linear(wide, channels)

    def forward(self, h: Tensor) -> Tensor:
        """Map (N, V, wide) to (N, V, channels); V runs over all voxels of the window."""
        norm = (h * h).sum(dim=1, dtype=torch.float32).clamp_min(1e-12).sqrt()
        scale = self.gamma * norm / (norm.mean(dim=1, keepdim=True) + _GRN_EPS) + 1
        weight = self.linear.weight[None] * scale[:, None]
        bias = self.linear.bias + self.linear.weight @ self.beta
        return torch.baddbmm(bias.to(h.dtype), h, weight.to(h.dtype).transpose(1, 2))


class ConvNextBlock(nn.Module):
    """Depthwise convolution, norm, fourfold MLP with GRN, and the residual with drop path.

    Args:
        channels: C.
        kernel: of the depthwise convolution.
        drop_path: share of windows whose branch is left out while training.
        checkpointed: keep only the input for the backward pass, which then runs the branch again.
    """

    def __init__(
        self, channels: int, kernel: Index, drop_path: float, checkpointed: bool = False
    ) -> None:
        super().__init__()
        self.depthwise = DepthwiseConv3d(channels, kernel)
        self.norm = InstanceNorm(channels)
        self.expand = nn.Linear(channels, 4 * channels)
        self.project = GrnLinear(4 * channels, channels)
        self.drop_path = drop_path
        self.checkpointed = checkpointed

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(N, C, Z, Y, X) to the same shape; `generator` (on the CPU) draws the dropped paths."""
        n, channels, *size = x.shape
        if self.checkpointed and torch.is_grad_enabled():
            # Nothing in the branch is random, so there is no random state to bring back.
            h = checkpoint(self._branch, x, use_reentrant=False, preserve_rng_state=False)
        else:
            h = self._branch(x)
        if self.training and self.drop_path:
            kept = torch.rand(n, 1, 1, generator=generator).to(x.device) >= self.drop_path
            h = h * (kept / (1 - self.drop_path)).to(h.dtype)
        return x + h.reshape(n, *size, channels).permute(0, 4, 1, 2, 3)

    def _branch(self, x: Tensor) -> Tensor:
        """(N, C, Z, Y, X) to (N, V, C)."""
        n, channels = x.shape[:2]
        return self.pointwise(self.depthwise(x).permute(0, 2, 3, 4, 1).reshape(n, -1, channels))

    def pointwise(self, h: Tensor) -> Tensor:
        """All of the branch that sees one voxel at a time, statistics aside: (N, V, C) to same."""
        h = instance_norm(h, self.norm.weight, self.norm.bias)
        return self.project(F.gelu(self.expand(h)))


def compile_pointwise(model: nn.Module, backend: str = "inductor") -> None:
    """Fuse norm, linears, GELU and GRN of every block; their traffic is what a GPU waits for.

    One block is compiled for each stage, which takes seconds, not minutes, and depthwise
    convolutions stay what they are. Copies of the network made later would share the compiled
    function of this one: make them before.
    """
    for block in model.modules():
        if isinstance(block, ConvNextBlock):
            # Not a parameter or submodule: names in checkpoints stay as they are.
            block.__dict__["pointwise"] = torch.compile(
                block.pointwise, backend=backend, fullgraph=True, dynamic=False
            )


class Downsample(nn.Module):
    """Norm and a strided convolution whose kernel is the stride, as between ConvNeXt's stages."""

    def __init__(self, channels_in: int, channels_out: int, stride: Index) -> None:
        super().__init__()
        self.norm = InstanceNorm(channels_in)
        self.conv = nn.Conv3d(channels_in, channels_out, stride, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Divide (Z, Y, X) by the stride."""
        return self.conv(self.norm(x))


class ConvNextTrunk(nn.Module):
    """Full-resolution skip, convolutional stem and stages.

    Args:
        widths: channels per stage.
        depths: ConvNeXt blocks per stage; the first may be 0, for the stem alone.
        strides: (z, y, x) stride into each stage; the first is the stem's.
        kernels: depthwise kernel of each stage.
        skip_width: channels of the full-resolution skip.
        drop_path: rate at the last block, rising linearly from 0.
        checkpointed: blocks keep their input only, see `ConvNextBlock`.
    """

    def __init__(
        self,
        widths: Sequence[int],
        depths: Sequence[int],
        strides: Sequence[Index],
        kernels: Sequence[Index],
        skip_width: int,
        drop_path: float,
        checkpointed: bool = False,
    ) -> None:
        super().__init__()
        self.skip = ConvNormAct(1, skip_width)
        rates = np.linspace(0, drop_path, sum(depths)).tolist()
        stem = ResidualConv(skip_width, widths[0], strides[0])
        self.downsamples = nn.ModuleList(
            (
                stem,
                *(
                    Downsample(*step)
                    for step in zip(widths[:-1], widths[1:], strides[1:], strict=True)
                ),
            )
        )
        self.stages = nn.ModuleList(
            nn.ModuleList(
                ConvNextBlock(width, kernel, rates.pop(0), checkpointed) for _ in range(depth)
            )
            for width, depth, kernel in zip(widths, depths, kernels, strict=True)
        )
        self.norms = nn.ModuleList(InstanceNorm(width) for width in widths)

    def forward(
        self, images: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Map (N, 1, Z, Y, X) to the skip (N, S, Z, Y, X) and one normed map per stage."""
        skip = self.skip(images.contiguous(memory_format=torch.channels_last_3d))
        x, maps = skip, []
        for downsample, stage, norm in zip(self.downsamples, self.stages, self.norms, strict=True):
            x = downsample(x)
            for block in cast(nn.ModuleList, stage):
                x = block(x, generator)
            maps.append(norm(x))
        return skip, maps


def build_trunk(plan: NetworkPlan) -> ConvNextTrunk:
    """Trunk of a planned network, freshly initialised."""
    return ConvNextTrunk(
        plan.widths,
        plan.depths,
        plan.strides,
        plan.kernels,
        plan.skip_width,
        plan.drop_path,
        plan.checkpointed,
    )
