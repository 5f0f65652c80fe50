"""RoIAlign in 3D: read a feature map inside boxes on a grid of fixed size.

Trilinear interpolation on a grid whose axes are those of the map is three small matrix products,
one for each axis, and averaging the samples of a bin is an average of matrix rows. So the cost does
not depend on the number of samples, and the backward pass is the transposed products. The RoI is
read from its window of the map only: as a slice per RoI where a CPU has much to do, and as one
gathered batch where a loop would be mostly overhead, on a GPU always.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ROI_CELLS_PER_EDGE = 7.0
"""A box should span about as many cells as the box head has bins along an edge."""

_GATHERED_VALUES = 1 << 20
"""Up to so many values in all windows a CPU gathers them too (measured in bfloat16)."""

_CHUNK = 64
"""RoIs gathered at once, which bounds the memory of the batched form."""


def roi_align(
    features: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    stride: Sequence[float],
    output_size: Sequence[int],
    samples: int = 2,
) -> Tensor:
    """Average `samples` trilinear readings per axis in every bin of every box.

    Feature cell i is centred at voxel (i + 0.5) * stride; outside the map its edge value counts.
    The gradient reaches the features, not the boxes.

    Args:
        features: (N, C, Z, Y, X), best channels-last in memory.
        boxes: (K, 6) in voxels of the patch.
        image_index: (K,) long, the image of each box.
        stride: voxels per feature cell along z, y, x.
        output_size: bins along z, y, x.
        samples: readings per bin along each axis.

    Returns:
        (K, C, oz, oy, ox), channels-last in memory, in the dtype of the features.
    """
    boxes = boxes.detach().to(torch.promote_types(features.dtype, torch.float32))
    image_index = image_index.to(boxes.device)
    windows, matrices = [image_index], []
    for axis, (step, bins) in enumerate(zip(stride, output_size, strict=True)):
        low, high = boxes[:, axis] / step, boxes[:, axis + 3] / step
        first, length, matrix = _axis_matrices(low, high, bins, samples, features.shape[axis + 2])
        windows += [first, length]
        matrices.append(matrix.to(features.dtype))
    channels_last = features.permute(0, 2, 3, 4, 1).contiguous()
    with torch.autocast(features.device.type, enabled=False):
        pooled = _Pool.apply(channels_last, torch.stack(windows, dim=1), *matrices)
    return pooled.permute(0, 4, 1, 2, 3)


def pyramid_levels(boxes: Tensor, strides: Sequence[Sequence[float]]) -> Tensor:
    """Choose for each box the level on which its edge spans about `ROI_CELLS_PER_EDGE` cells.

    Args:
        boxes: (K, 6) in voxels.
        strides: voxels per cell (z, y, x) of each level, finest first.

    Returns:
        (K,) long: the level whose geometric-mean stride is closest, on a log scale, to the cube
        root of the volume over `ROI_CELLS_PER_EDGE`; the finer of two that are equally close.
    """
    edges = (boxes[:, 3:] - boxes[:, :3]).float().clamp(min=1e-3)
    wanted = edges.log2().mean(dim=1) - math.log2(ROI_CELLS_PER_EDGE)
    offered = torch.tensor([math.log2(math.prod(stride)) / 3 for stride in strides])
    return (wanted[:, None] - offered.to(wanted)[None, :]).abs().argmin(dim=1)


class _Pool(torch.autograd.Function):
    """Pool features (N, Z, Y, X, C) in K windows; saves no activation.

    A window is (image, first z, length z, first y, length y, first x, length x) in cells; the three
    matrices are (K, bins, cells) with zero columns past the window's length.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - PyTorch publishes no type for it
        features: Tensor,
        windows: Tensor,
        mz: Tensor,
        my: Tensor,
        mx: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(windows, mz, my, mx)
        ctx.feature_shape = features.shape
        pooled = features.new_empty(
            len(windows), mz.shape[1], my.shape[1], mx.shape[1], features.shape[-1]
        )
        if _is_looped(features, (mz, my, mx)):
            for roi, where, (rz, ry, rx) in _slices(windows, mz, my, mx):
                pooled[roi] = _interpolate(features[where][None], rz, ry, rx)[0]
        else:
            rows = features.flatten(0, 3)
            for rois, cells in _gathers(windows, features.shape, (mz, my, mx)):
                pooled[rois] = _interpolate(rows[cells], mz[rois], my[rois], mx[rois])
        return pooled

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
    ) -> tuple[Tensor | None, ...]:
        windows, mz, my, mx = ctx.saved_tensors
        # Many RoIs add up in one cell: float32 at least.
        dtype = torch.promote_types(grad.dtype, torch.float32)
        total = grad.new_zeros(ctx.feature_shape, dtype=dtype)
        with torch.autocast(grad.device.type, enabled=False):
            if _is_looped(grad, (mz, my, mx)):
                for roi, where, (rz, ry, rx) in _slices(windows, mz, my, mx):
                    total[where] += _spread(grad[roi][None], rz, ry, rx)[0]
            else:
                rows = total.view(-1, grad.shape[-1])
                for rois, cells in _gathers(windows, total.shape, (mz, my, mx)):
                    spread = _spread(grad[rois], mz[rois], my[rois], mx[rois])
                    rows.index_add_(0, cells.flatten(), spread.flatten(0, 3).to(dtype))
        return total.to(grad.dtype), None, None, None, None


def _is_looped(values: Tensor, matrices: tuple[Tensor, Tensor, Tensor]) -> bool:
    """Whether RoIs are worked one by one."""
    cells = len(matrices[0]) * math.prod(matrix.shape[2] for matrix in matrices)
    return values.device.type == "cpu" and cells * values.shape[-1] > _GATHERED_VALUES


def _slices(
    windows: Tensor, mz: Tensor, my: Tensor, mx: Tensor
) -> Iterator[tuple[int, tuple[int | slice, ...], tuple[Tensor, Tensor, Tensor]]]:
    """RoI by RoI: its number, its window as an index into the map, and its matrices cut to fit."""
    for roi, (image, z, nz, y, ny, x, nx) in enumerate(windows.tolist()):
        where = (image, slice(z, z + nz), slice(y, y + ny), slice(x, x + nx))
        one = slice(roi, roi + 1)
        yield roi, where, (mz[one, :, :nz], my[one, :, :ny], mx[one, :, :nx])


def _gathers(
    windows: Tensor, shape: torch.Size, matrices: tuple[Tensor, Tensor, Tensor]
) -> Iterator[tuple[slice, Tensor]]:
    """Chunk by chunk: the RoIs, and the row of every cell of their windows, (k, Sz, Sy, Sx)."""
    for start in range(0, len(windows), _CHUNK):
        rois = slice(start, start + _CHUNK)
        # Past the map the matrices are zero, so any valid cell does.
        z, y, x = (
            (windows[rois, 1 + 2 * axis, None] + torch.arange(m.shape[2], device=m.device)).clamp(
                max=shape[axis + 1] - 1
            )
            for axis, m in enumerate(matrices)
        )
        rows = windows[rois, 0, None, None, None] * shape[1] + z[:, :, None, None]
        rows = rows * shape[2] + y[:, None, :, None]
        yield rois, rows * shape[3] + x[:, None, None, :]


def _interpolate(window: Tensor, mz: Tensor, my: Tensor, mx: Tensor) -> Tensor:
    """(k, sz, sy, sx, C) cells to (k, oz, oy, ox, C) bins."""
    sizes = window.shape
    out = (mz @ window.reshape(sizes[0], sizes[1], -1)).view(
        sizes[0], -1, sizes[2], sizes[3] * sizes[4]
    )
    out = (my[:, None] @ out).unflatten(3, sizes[3:])
    return mx[:, None, None] @ out


def _spread(grad: Tensor, mz: Tensor, my: Tensor, mx: Tensor) -> Tensor:
    """(k, oz, oy, ox, C) bins to (k, sz, sy, sx, C) cells: the transpose of `_interpolate`."""
    out = mx.mT[:, None, None] @ grad
    sizes = out.shape
    out = my.mT[:, None] @ out.flatten(3)
    return (mz.mT @ out.flatten(2)).view(sizes[0], mz.shape[2], my.shape[2], *sizes[3:])


def _axis_matrices(
    low: Tensor, high: Tensor, bins: int, samples: int, cells: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Interpolation along one axis, from box faces (K,) in cells.

    Returns:
        First cell (K,) and number of cells (K,) that are read, and the matrices (K, bins, S) that
        turn them into bins, S the largest number.
    """
    ticks = (torch.arange(bins * samples, device=low.device) + 0.5) / (bins * samples)
    position = low[:, None] + (high - low)[:, None] * ticks.to(low.dtype) - 0.5
    position = position.clamp(0, cells - 1)
    first = position.amin(dim=1).floor().long()
    length = position.amax(dim=1).ceil().long() - first + 1
    longest = int(length.max()) if len(length) else 1
    cell = first[:, None] + torch.arange(longest, device=low.device)
    weight = (1 - (position[:, :, None] - cell[:, None, :]).abs()).clamp(min=0)
    return first, length, weight.unflatten(1, (bins, samples)).mean(dim=2)
