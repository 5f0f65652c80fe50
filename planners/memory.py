"""Memory of one training step, as a closed formula.

Nothing is built or run: the sums below count what autograd keeps of each part of the network in
`bonemet_auto.model`, S being the channels of the skip, C of a stage, F of the neck, and a value e
bytes (2 in bfloat16, 4 in float32).

| part | values kept per voxel of its map |
| --- | --- |
| full resolution (image, skip, dense branch) | 1 + 7 S, and 12 bytes for the loss |
| stem | 5 C |
| each block of a stage | 11 C; checkpointed C |
| a stage besides its blocks (norm, and the way to the next) | 2 C, and C unless it is the last |
| neck: first, middle, last level | 6 F, 11 F, 6 F, and 12 bytes for the loss |
| RPN, each level | 3 F + 2 |

To it come each RoI's values, one folded GRN weight of 4 C^2 values per block and window, and in
bfloat16 a copy of the parameters. At the height of the backward pass the gradients of a few maps
exist beside all that. The formula serves the search for a patch; it is held against the
network itself on fake tensors (`bonemet_auto.model.footprint`), which `measured_plan` then asks.
"""

import math
from dataclasses import dataclass

from bonemet_auto.geometry import Index
from bonemet_auto.model.footprint import HEADROOM, measure_footprint
from bonemet_auto.model.heads import BOX_BINS, MASK_BINS, SOURCE_BINS
from bonemet_auto.model.mask_rcnn import MASK_ROIS, ROIS_PER_IMAGE
from bonemet_auto.plan_schema import NetworkPlan, Plan, Target
from bonemet_auto.processor import WINDOWS_PER_PART

BYTES_PER_PARAMETER = 16
"""Weight, moving average, and one moment and one gradient; Muon has no second moment."""
BYTES_PER_GRADIENT = 4
LOSS_BYTES = 12
CONTEXT_BYTES = {"cuda": 800_000_000, "cpu": 400_000_000}
"""What libraries take once they work: compiled kernels and, on a GPU, its context."""


@dataclass(frozen=True)
class Blueprint:
    """What of a network decides how much memory it takes; as in `NetworkPlan`."""

    strides: tuple[Index, ...]
    kernels: tuple[Index, ...]
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    skip_width: int
    neck_width: int
    rpn_stages: tuple[int, ...]
    anchors_per_level: int
    checkpointed: bool = False

    @classmethod
    def of(cls, network: NetworkPlan) -> "Blueprint":
        """The blueprint of a planned network."""
        return cls(
            strides=network.strides,
            kernels=network.kernels,
            widths=network.widths,
            depths=network.depths,
            skip_width=network.skip_width,
            neck_width=network.neck_width,
            rpn_stages=network.rpn_stages,
            anchors_per_level=len(network.anchor_sizes[0]),
            checkpointed=network.checkpointed,
        )


def training_bytes(blueprint: Blueprint, patch: Index, batch: int, target: Target) -> int:
    """Peak bytes of one training step; rises with the patch, the batch, widths and depths.

    Args:
        blueprint: the network.
        patch: voxels (z, y, x), a multiple of the total stride.
        batch: patches per step.
        target: device and precision.
    """
    together = windows_together(batch, target)
    element = 2 if target.bfloat16 else 4
    passed = saved_bytes(blueprint, patch, together, element)
    passed += gradient_bytes(blueprint, patch, together, element)
    return step_bytes(passed, parameters(blueprint), batch, target)


def measured_plan(plan: Plan) -> Plan:
    """The plan with its memory taken from the network itself, on fake tensors (about a second)."""
    together = windows_together(plan.batch_size, plan.target)
    found = measure_footprint(plan.network, plan.patch_size, together, plan.target.bfloat16)
    needed = step_bytes(found.peak, found.parameters, plan.batch_size, plan.target)
    return plan.model_copy(update={"memory_bytes": needed})


def step_bytes(pass_bytes: int, n_parameters: int, batch: int, target: Target) -> int:
    """Peak of a step, from that of one forward and backward pass of the windows that go together.

    A CPU has as many passes under way as the batch has parts, each with gradients of its own.
    """
    lanes = math.ceil(batch / windows_together(batch, target))
    fixed = n_parameters * (BYTES_PER_PARAMETER + BYTES_PER_GRADIENT * (lanes - 1))
    return (
        int(HEADROOM[target.device] * (lanes * pass_bytes + fixed)) + CONTEXT_BYTES[target.device]
    )


def windows_together(batch: int, target: Target) -> int:
    """Windows that go through the network together: all on a GPU, one part of them on a CPU."""
    return batch if target.device == "cuda" else min(batch, WINDOWS_PER_PART)


def saved_bytes(blueprint: Blueprint, patch: Index, windows: int, element: int) -> int:
    """What autograd keeps between forward and backward pass, by the table above."""
    skip, neck = blueprint.skip_width, blueprint.neck_width
    last = len(blueprint.strides) - 1
    voxels = windows * math.prod(patch)
    kept = voxels * ((1 + 7 * skip) * element + LOSS_BYTES)
    for stage, (stride, width, depth) in enumerate(
        zip(blueprint.strides, blueprint.widths, blueprint.depths, strict=True)
    ):
        voxels //= math.prod(stride)
        values = (1 if blueprint.checkpointed else 11) * depth * width + 2 * width
        values += 5 * width if stage == 0 else 5 * neck
        values += neck if stage == last else 6 * neck + width
        values += 3 * neck + 2 if stage in blueprint.rpn_stages else 0
        kept += voxels * (values * element + LOSS_BYTES)
        if not blueprint.checkpointed:
            kept += windows * depth * 4 * width**2 * element
    kept += _head_bytes(neck, windows, element)
    return kept + (element * parameters(blueprint) if element == 2 else 0)


def gradient_bytes(blueprint: Blueprint, patch: Index, windows: int, element: int) -> int:
    """What the backward pass adds at its height.

    That is where the largest maps are: two at full resolution, four of the finest neck level or of
    the stem, two of a block's wide ones, or two of the mask head's. A checkpointed block adds what
    it computes again; by then the neck, whose turn came before, has freed its own.
    """
    neck = blueprint.neck_width
    voxels = windows * math.prod(patch)
    values = [2 * voxels * blueprint.skip_width, 2 * MASK_ROIS * MASK_BINS**3 * (neck + 1)]
    for stage, (stride, width, depth) in enumerate(
        zip(blueprint.strides, blueprint.widths, blueprint.depths, strict=True)
    ):
        voxels //= math.prod(stride)
        block = 20 * width - 8 * neck if blueprint.checkpointed else 8 * width
        finest = 4 * max(neck, width)
        values += [block * voxels if depth else 0, finest * voxels if stage == 0 else 0]
    return max(values) * element


def parameters(blueprint: Blueprint) -> int:
    """How many parameters the network has."""
    skip, neck, widths = blueprint.skip_width, blueprint.neck_width, blueprint.widths
    stem = math.prod(blueprint.strides[0])
    count = _normed(1, skip) + _normed(skip, widths[0]) + _normed(widths[0], widths[0])
    count += stem * skip * widths[0] + widths[0]
    for width, depth, kernel in zip(widths, blueprint.depths, blueprint.kernels, strict=True):
        block = math.prod(kernel) * width + 8 * width**2 + 16 * width
        count += depth * block + 2 * width + width * neck + neck + neck + 1
    for narrow, wide, stride in zip(widths[:-1], widths[1:], blueprint.strides[1:], strict=True):
        count += 2 * narrow + math.prod(stride) * (narrow * wide + neck**2) + wide + neck
        count += 2 * _normed(neck, neck) + 5
    count += stem * neck * skip + skip + _normed(skip, skip) + skip + 1
    return count + _head_parameters(neck, blueprint.anchors_per_level)


def _head_bytes(neck: int, windows: int, element: int) -> int:
    """RoI heads with as many boxes as training takes."""
    narrow, reduced = neck // 2, (BOX_BINS + 1) // 2
    box = BOX_BINS**3 * (3 * neck + 1) + reduced**3 * 2 * neck
    mask = MASK_BINS**3 * ((neck + 1 + 4 * narrow) * element + LOSS_BYTES)
    precise = 4 * neck if element == 2 else 0
    source = SOURCE_BINS**3 * ((5 * neck + 2) * element + precise + 4 * 4)
    return windows * ROIS_PER_IMAGE * box * element + MASK_ROIS * (mask + source)


def _head_parameters(neck: int, anchors: int) -> int:
    narrow, hidden = neck // 2, 128
    rpn = _convolved(neck + 2, neck) + 7 * anchors * (neck + 1)
    reduced = neck * ((BOX_BINS + 1) // 2) ** 3
    box = _convolved(neck + 1, neck) + _convolved(neck, neck) + (reduced + 1) * hidden
    box += 7 * (hidden + 1)
    mask = _convolved(neck + 1, narrow) + _convolved(narrow, narrow) + narrow + 1
    mask += (2 * narrow + 3) * 32 + 33
    source = _convolved(neck + 2, neck) + _convolved(neck, neck) + (3 * neck + 7) * 64 + 65
    return rpn + box + mask + source


def _convolved(channels_in: int, channels_out: int) -> int:
    return 27 * channels_in * channels_out + channels_out


def _normed(channels_in: int, channels_out: int) -> int:
    return _convolved(channels_in, channels_out) + 2 * channels_out
