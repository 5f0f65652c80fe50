"""Layers that trunk, neck and heads are made of. Maps are channels_last_3d all the way."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bonemet_auto.geometry import Index
from bonemet_auto.model.precision import Conv3x3x3

_NORM_EPS = 1e-5


def instance_norm(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Normalise each channel of (N, V, C) over the V voxels of its window, then scale and shift.

    ConvNeXt norms each voxel over its channels instead. That takes away how a voxel differs from
    its surroundings, which is all that marks a lesion in CT, and training from scratch stalls
    (docs/adr/0007-instance-norm.md). Statistics are float32.
    """
    centred = h - h.mean(dim=1, keepdim=True, dtype=torch.float32).to(h.dtype)
    variance = (centred * centred).mean(dim=1, keepdim=True, dtype=torch.float32)
    scale = (variance + _NORM_EPS).rsqrt() * weight
    return torch.addcmul(bias.to(h.dtype), centred, scale.to(h.dtype))


class InstanceNorm(nn.Module):
    """`instance_norm` of a map (N, C, Z, Y, X)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel over space; the shape stays."""
        n, channels, *size = x.shape
        h = x.permute(0, 2, 3, 4, 1).reshape(n, -1, channels)
        h = instance_norm(h, self.weight, self.bias)
        return h.reshape(n, *size, channels).permute(0, 4, 1, 2, 3)


class ConvNormAct(nn.Module):
    """3^3 convolution, instance norm, leaky ReLU."""

    def __init__(self, channels_in: int, channels_out: int, stride: Index = (1, 1, 1)) -> None:
        super().__init__()
        self.conv = Conv3x3x3(channels_in, channels_out, stride)
        self.norm = InstanceNorm(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, Z, Y, X) to (N, C_out, Z, Y, X) over the stride."""
        return F.leaky_relu(self.norm(self.conv(x)))


class ResidualConv(nn.Module):
    """Two normed 3^3 convolutions around a shortcut (He et al. 2016); the first may stride."""

    def __init__(self, channels_in: int, channels_out: int, stride: Index = (1, 1, 1)) -> None:
        super().__init__()
        self.first = ConvNormAct(channels_in, channels_out, stride)
        self.second = Conv3x3x3(channels_out, channels_out)
        self.norm = InstanceNorm(channels_out)
        same = channels_in == channels_out and stride == (1, 1, 1)
        self.shortcut = (
            nn.Identity() if same else nn.Conv3d(channels_in, channels_out, stride, stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, Z, Y, X) to (N, C_out, Z, Y, X) over the stride, which divides the size."""
        return F.leaky_relu(self.norm(self.second(self.first(x))) + self.shortcut(x))


class ConvAct(nn.Module):
    """3^3 convolution and GELU; without a norm, for heads that must tell much from little."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = Conv3x3x3(channels_in, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, Z, Y, X) to (N, C_out, Z, Y, X)."""
        return F.gelu(self.conv(x))


def join_channels(*maps: Tensor) -> Tensor:
    """Maps (N, C_i, Z, Y, X) as one of all channels, channels_last_3d and in the type of the first.

    `torch.cat` falls back to channels-first where one of them has a single channel.
    """
    rows = [item.permute(0, 2, 3, 4, 1).to(maps[0].dtype) for item in maps]
    return torch.cat(rows, dim=-1).permute(0, 4, 1, 2, 3)
