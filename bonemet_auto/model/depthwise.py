"""Depthwise 3D convolution with a fast backward pass.

PyTorch runs a depthwise convolution forward near the peak of a CPU, and backward at a few per cent
of it. So the backward pass is written with forward convolutions: the input gradient is the output
gradient under the flipped kernel, and the weight gradient is the input under the output gradient
taken as one large kernel. Values equal those of autograd; gradients of gradients are not offered.

On a GPU either backward pass may be the faster one, depending on shape, type and library: both are
timed once for each shape that training meets.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_weight

Kernel = tuple[int, int, int]

_SLAB_VOXELS = 4096
"""Largest gradient used as one kernel: fits the cache, and keeps float32 sums accurate."""

_STACK_VOXELS = 32768
"""Largest stack of planes summed at once, for accurate float32 sums."""

_PLANES_FROM_VOXELS = 1024
"""From here on, 2D weight gradients of 3 x 3 kernels outrun the gradient as a kernel."""


class DepthwiseConv3d(nn.Module):
    """One kernel per channel, stride 1, zero padding that keeps the size.

    Args:
        channels: C.
        kernel: odd edge along z, y, x.
        bias: add a learned constant per channel.
    """

    def __init__(self, channels: int, kernel: Kernel, bias: bool = True) -> None:
        if any(edge % 2 == 0 for edge in kernel):
            raise ValueError(f"kernel edges must be odd, found {kernel}")
        super().__init__()
        self.kernel = kernel
        self.weight = nn.Parameter(torch.empty(channels, 1, *kernel))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Filter (N, C, Z, Y, X), best channels-last in memory; the result is so on a CPU."""
        device = x.device.type
        if device in ("cpu", "cuda") and torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        if device == "cpu":
            x = x.contiguous(memory_format=torch.channels_last_3d)
            return _SplitDepthwise.apply(x, self.weight, self.bias)
        if device == "cuda" and torch.is_grad_enabled() and split_is_faster(x, self.weight):
            return _SplitDepthwise.apply(x, self.weight, self.bias)
        return _native(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Channels and kernel, for printing."""
        return f"{len(self.weight)}, kernel={self.kernel}, bias={self.bias is not None}"


class _SplitDepthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - PyTorch publishes no type for it
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _native(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last_3d)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = _convolve(grad, weight.to(grad.dtype).flip(2, 3, 4), None)
        # Sums over all voxels: float32 at least, also when the caller runs this under autocast.
        with torch.autocast(x.device.type, enabled=False):
            if ctx.needs_input_grad[1]:
                grad_weight = _weight_gradient(_precise(x), _precise(grad), weight.shape[2:])
                grad_weight = grad_weight.to(weight.dtype)
            if ctx.needs_input_grad[2]:
                grad_bias = _precise(grad).sum((0, 2, 3, 4)).to(weight.dtype)
        return grad_x, grad_weight, grad_bias


_faster: dict[tuple[object, ...], bool] = {}


def split_is_faster(x: Tensor, weight: Tensor) -> bool:
    """Whether the split backward pass outruns autograd's own for such an input, by timing both.

    Timed at the first input of its shape, type, layout and device; the answer is kept.
    """
    key = (x.device, x.dtype, x.shape, x.stride(), weight.shape)
    if key not in _faster:
        native_s, split_s = (_time(run, x, weight) for run in (_native, _SplitDepthwise.apply))
        _faster[key] = split_s < native_s
    return _faster[key]


def _time(run: Callable[..., Tensor], x: Tensor, weight: Tensor, repeats: int = 3) -> float:
    """Seconds of `repeats` forward and backward passes, after one that does not count."""
    x = torch.zeros_like(x).requires_grad_()
    weight = weight.detach().clone().requires_grad_()
    started = 0.0
    # Hooks of its own: a checkpointed block would count what is saved here as saved by itself.
    with torch.autograd.graph.saved_tensors_hooks(_same, _same):
        for number in range(repeats + 1):
            if number == 1:
                _wait(x.device)
                started = time.perf_counter()
            run(x, weight, None).sum().backward()
        _wait(x.device)
    return time.perf_counter() - started


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _native(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _convolve(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    padding = [edge // 2 for edge in weight.shape[2:]]
    return F.conv3d(x, weight, bias, padding=padding, groups=len(weight))


def _precise(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _weight_gradient(x: Tensor, grad: Tensor, kernel: torch.Size) -> Tensor:
    small_kernel = max(kernel[1:]) <= 3
    if small_kernel and (kernel[0] == 1 or x[0, 0].numel() >= _PLANES_FROM_VOXELS):
        return _weight_gradient_by_planes(x, grad, kernel)
    return _weight_gradient_by_slabs(x, grad, kernel)


def _weight_gradient_by_slabs(x: Tensor, grad: Tensor, kernel: torch.Size) -> Tensor:
    """Filter the input with the output gradient as kernel, a slab of whole planes at a time."""
    pad_z, pad_y, pad_x = (edge // 2 for edge in kernel)
    channels, depth, rows, columns = x.shape[1:]
    step = max(1, _SLAB_VOXELS // (rows * columns))
    total = x.new_zeros(1, channels, *kernel)
    for image, image_grad in zip(x.split(1), grad.unbind(), strict=True):
        for start in range(0, depth, step):
            slab = image_grad[:, None, start : start + step]
            low, high = start - pad_z, start + slab.shape[2] + pad_z
            window = image[:, :, max(low, 0) : high]
            if step < depth:
                missing = (0, 0, 0, 0, max(-low, 0), max(high - depth, 0))
                window = F.pad(window, missing)
            padding = (pad_z if step >= depth else 0, pad_y, pad_x)
            total += F.conv3d(window, slab, padding=padding, groups=channels)
    return total.transpose(0, 1)


def _weight_gradient_by_planes(x: Tensor, grad: Tensor, kernel: torch.Size) -> Tensor:
    """Sum 2D weight gradients, for each kernel plane over the image planes that it pairs."""
    pad_z, pad_y, pad_x = (edge // 2 for edge in kernel)
    x, grad = x.transpose(1, 2), grad.transpose(1, 2)
    if kernel[0] == 1:
        x, grad = x.flatten(0, 1)[None], grad.flatten(0, 1)[None]
    depth, channels, rows, columns = x.shape[1:]
    step = max(1, _STACK_VOXELS // (rows * columns))
    size = (channels, 1, kernel[1], kernel[2])
    total = x.new_zeros(channels, 1, *kernel)
    for plane, shift in enumerate(range(-pad_z, pad_z + 1)):
        first, last = max(0, -shift), min(depth, depth - shift)
        for start in range(first, last, step):
            stop = min(start + step, last)
            for image, image_grad in zip(x, grad, strict=True):
                total[:, :, plane] += conv2d_weight(
                    image[start + shift : stop + shift],
                    size,
                    image_grad[start:stop],
                    padding=(pad_y, pad_x),
                    groups=channels,
                )
    return total
