"""Anchor boxes laid over a feature map."""

from collections.abc import Sequence

import torch
from torch import Tensor


def grid_anchors(feature_shape: Sequence[int], stride: Sequence[float], sizes: Tensor) -> Tensor:
    """Centre every anchor size on every feature cell.

    Cell i along an axis is centred at voxel coordinate (i + 0.5) * stride.

    Args:
        feature_shape: Z, Y, X cells of the feature map.
        stride: voxels per cell along z, y, x.
        sizes: (A, 3) anchor edges along z, y, x in voxels.

    Returns:
        (Z * Y * X * A, 6) boxes, x of the cells running faster than y and z, the sizes fastest.
    """
    axes = [
        (torch.arange(cells, dtype=sizes.dtype, device=sizes.device) + 0.5) * step
        for cells, step in zip(feature_shape, stride, strict=True)
    ]
    centres = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)[..., None, :]
    return torch.cat((centres - sizes / 2, centres + sizes / 2), dim=-1).reshape(-1, 6)
