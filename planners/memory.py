"""Memory of one training step, as a closed formula.

Nothing is built or run: the sums below count what autograd keeps of each part of the network in
`bonemet_auto.model`, in elements of the training type unless bytes are said.

| part | kept per voxel of its map |
| --- | --- |
| full resolution (image, skip, dense branch), S channels | 2 + 7 S |
| stem, C channels | 6 C |
| stage of C channels, each block | 11 C, and 8 bytes of norm statistics |
| stage, besides its blocks (norms, strided convolution) | 2 C |
| neck and RPN of F channels, each level | 11 F |

RoI heads keep a constant number for each RoI. The RPN is counted on every level, though the first
often has none, and all RoIs count as positive: what autograd keeps is over-counted by a quarter
to a half, which leaves room for the temporaries of the backward pass. It serves the search for a
patch; it is no promise: it has not been measured on a GPU, and a CPU run with two lanes of windows
has been seen to hold 3.5 GB where it says 1.0.
A parameter costs 16 bytes (weight, gradient, two moments of AdamW; Muon has one), 4 more for its
moving average and 2 for its half-precision copy. On top come 15 % for the allocator and workspaces,
and a constant for libraries and the GPU's context.
"""

import math
from collections.abc import Sequence

from bonemet_auto.geometry import Index

BYTES_PER_PARAMETER = 22
BOX_ROIS, BOX_ELEMENTS = 24, 2000
MASK_ROIS, MASK_ELEMENTS = 16, 26_000
"""RoIs of one image, and elements per neck channel that each keeps (mask and source together)."""
HEADROOM = 1.15
CONTEXT_BYTES = {"cuda": 800_000_000, "cpu": 400_000_000}
ELEMENT_BYTES = {"cuda": 2, "cpu": 4}


def training_bytes(
    patch: Index,
    batch: int,
    strides: Sequence[Index],
    widths: Sequence[int],
    depths: Sequence[int],
    skip_width: int,
    neck_width: int,
    device: str,
) -> int:
    """Peak bytes of one training step; rises with the patch, the batch, widths and depths.

    Args:
        patch: voxels (z, y, x), a multiple of the total stride.
        batch: patches per step.
        strides: (z, y, x) into each stage.
        widths: channels of each stage.
        depths: blocks of each stage.
        skip_width: channels at full resolution.
        neck_width: channels of neck and heads.
        device: "cuda" (16-bit values) or "cpu" (32-bit values).
    """
    element = ELEMENT_BYTES[device]
    voxels = math.prod(patch)
    kept = voxels * (2 + 7 * skip_width) * element
    kept += voxels // math.prod(strides[0]) * 6 * widths[0] * element
    for stride, width, depth in zip(strides, widths, depths, strict=True):
        voxels //= math.prod(stride)
        kept += voxels * depth * (11 * width * element + 8)
        kept += voxels * (2 * width + 11 * neck_width) * element
    rois = BOX_ROIS * BOX_ELEMENTS + MASK_ROIS * MASK_ELEMENTS
    kept += rois * neck_width * element
    fixed = parameters(strides, widths, depths, skip_width, neck_width) * BYTES_PER_PARAMETER
    return int(HEADROOM * (batch * kept + fixed) + CONTEXT_BYTES[device])


def parameters(
    strides: Sequence[Index],
    widths: Sequence[int],
    depths: Sequence[int],
    skip_width: int,
    neck_width: int,
) -> int:
    """About how many parameters the network has (all kernels counted as 3^3)."""
    three = 27 * neck_width**2
    count, previous = 27 * skip_width * (1 + skip_width), skip_width
    count += 27 * widths[0] * (skip_width + widths[0])
    for stride, width, depth in zip(strides, widths, depths, strict=True):
        count += math.prod(stride) * (previous * width + neck_width**2)
        count += depth * (8 * width**2 + 40 * width) + width * neck_width + 2 * three
        previous = width
    return count + 7 * three + 4**3 * neck_width * 128
