"""Layers that trunk, neck and heads are made of. Maps are channels_last_3d all the way."""

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bonemet_auto.geometry import Index
from bonemet_auto.model.precision import Conv3x3x3

_NORM_EPS = 1e-5


def instance_norm(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Normalise each channel of (N, V, C) over the V voxels of its window, then scale and shift.

    ConvNeXt norms each voxel over its channels instead. That takes away how a voxel differs from
    its surroundings, which is all that marks a lesion in CT, and training from scratch stalls
    (docs/adr/0007-instance-norm.md). Statistics are float32.
    """
    if torch.compiler.is_compiling():
        # A compiler fuses what is written out, and cannot look into the kernels.
        centred = h - h.mean(dim=1, keepdim=True, dtype=torch.float32).to(h.dtype)
        variance = (centred * centred).mean(dim=1, keepdim=True, dtype=torch.float32)
        scale = ((variance + _NORM_EPS).rsqrt() * weight).to(h.dtype)
        return torch.addcmul(bias.to(h.dtype), centred, scale)
    return _InstanceNorm.apply(h, weight, bias)


class _InstanceNorm(torch.autograd.Function):
    """PyTorch's batch norm, window by window, on maps whose channels come last.

    `F.instance_norm` would copy such maps to channels first and back; written out in PyTorch, the
    norm reads and writes each map twice as often.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - PyTorch publishes no type for it
        h: Tensor,
        weight: Tensor,
        bias: Tensor,
    ) -> Tensor:
        h = h.contiguous()
        normed = torch.empty_like(h)
        mean = weight.new_empty(len(h), len(weight))
        inverse_sd = torch.empty_like(mean)
        for window, out, *statistics in zip(h, normed, mean, inverse_sd, strict=True):
            torch.native_batch_norm(
                _as_image(window), weight, bias, None, None, True, 0.0, _NORM_EPS,
                out=(_as_image(out), *statistics),
            )  # fmt: skip
        ctx.save_for_backward(h, weight, mean, inverse_sd)
        return normed

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        h, weight, mean, inverse_sd = ctx.saved_tensors
        # In another layout than the map's own, PyTorch's kernel reads the gradient wrongly.
        grad = grad.contiguous()
        grad_h = torch.empty_like(h)
        grad_weight, grad_bias = torch.empty_like(mean), torch.empty_like(mean)
        outs = zip(grad_h, grad_weight, grad_bias, strict=True)
        for up, window, own_mean, own_inverse_sd, (out, *totals) in zip(
            grad, h, mean, inverse_sd, outs, strict=True
        ):
            torch.ops.aten.native_batch_norm_backward.out(
                _as_image(up), _as_image(window), weight, None, None, own_mean, own_inverse_sd,
                True, _NORM_EPS, [True, True, True],
                out0=_as_image(out), out1=totals[0], out2=totals[1],
            )  # fmt: skip
        return grad_h, grad_weight.sum(dim=0), grad_bias.sum(dim=0)


def _as_image(window: Tensor) -> Tensor:
    """(V, C) as one image (1, C, V, 1) whose channels come last."""
    return window.T[None, :, :, None]


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


class Expand(nn.ConvTranspose3d):
    """Transposed convolution whose kernel is its stride: each cell becomes a block of voxels.

    Then it is a linear layer on each cell and a change of order, which takes a CPU a third of the
    time.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: Index) -> None:
        super().__init__(channels_in, channels_out, stride, stride)

    def forward(self, x: Tensor, output_size: None = None) -> Tensor:  # type: ignore[override]
        """(N, C_in, Z, Y, X) to (N, C_out, Z, Y, X) times the stride, channels_last_3d."""
        channels_in, channels_out, *stride = self.weight.shape
        weight = self.weight.permute(2, 3, 4, 1, 0).reshape(-1, channels_in)
        bias = cast(Tensor, self.bias).repeat(math.prod(stride))
        blocks = F.linear(x.permute(0, 2, 3, 4, 1), weight, bias)
        n, *cells, _ = blocks.shape
        ordered = blocks.view(n, *cells, *stride, channels_out).permute(0, 1, 4, 2, 5, 3, 6, 7)
        size = [count * step for count, step in zip(cells, stride, strict=True)]
        return ordered.reshape(n, *size, channels_out).permute(0, 4, 1, 2, 3)


def join_channels(*maps: Tensor) -> Tensor:
    """Maps (N, C_i, Z, Y, X) as one of all channels, channels_last_3d and in the type of the first.

    `torch.cat` falls back to channels-first where one of them has a single channel.
    """
    rows = [item.permute(0, 2, 3, 4, 1).to(maps[0].dtype) for item in maps]
    return torch.cat(rows, dim=-1).permute(0, 4, 1, 2, 3)
