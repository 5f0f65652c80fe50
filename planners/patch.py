"""Strides, kernels and the patch size."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bonemet_auto.errors import PlanError
from bonemet_auto.geometry import Index, Triple

SIMILAR_RATIO = 2.0
"""Axes whose spacings differ by less than this factor are treated alike."""
KERNEL = 3


@dataclass(frozen=True)
class Topology:
    """Stride into each stage and kernel of each stage, (z, y, x), the stem first."""

    strides: tuple[Index, ...]
    kernels: tuple[Index, ...]

    def total_stride(self, stage: int = -1) -> Index:
        """Product of the strides up to a stage; of all by default."""
        stop = len(self.strides) if stage < 0 else stage + 1
        return _index(np.prod(self.strides[:stop], axis=0))


def topology(spacing_mm: Triple, size: Sequence[float], stages: int, min_edge: int) -> Topology:
    """Strides and kernels per axis, for a patch of about `size` voxels.

    A stage halves an axis while its current spacing is below twice the finest one and the map
    keeps at least `min_edge` cells; axes too short to be halved are left out of the comparison. The
    kernel is 1 along an axis until its spacing has been within twice the finest, then 3. Stages
    that would halve nothing are left out; the stem always stays.
    """
    current, total = np.asarray(spacing_mm, dtype=float), np.ones(3, dtype=int)
    wide = current < SIMILAR_RATIO * current.min()
    strides: list[Index] = []
    kernels: list[Index] = []
    for _ in range(stages):
        long_enough = np.asarray(size) >= 2 * total * min_edge
        finest = current[long_enough].min(initial=np.inf)
        halved = long_enough & (current < SIMILAR_RATIO * finest)
        if strides and not halved.any():
            break
        stride = np.where(halved, 2, 1)
        current, total = current * stride, total * stride
        wide |= current < SIMILAR_RATIO * current.min()
        strides.append(_index(stride))
        kernels.append(_index(np.where(wide, KERNEL, 1)))
    return Topology(tuple(strides), tuple(kernels))


def shape_patch(
    edge: int, spacing_mm: Triple, limit: Sequence[float], stages: int, min_edge: int
) -> tuple[Index, Topology]:
    """A cube in mm, `edge` voxels along the finest axis, no larger than the scans.

    Args:
        edge: voxels along the finest axis.
        spacing_mm: planned spacing.
        limit: voxels (z, y, x) beyond which there is nothing to see.
        stages: most stages to build.
        min_edge: fewest cells along an axis of the deepest map.

    Returns:
        The patch, a multiple of the total stride of the topology that comes with it.
    """
    wanted = [edge * min(spacing_mm) / step for step in spacing_mm]
    size = [max(min_edge, min(w, most)) for w, most in zip(wanted, limit, strict=True)]
    found = topology(spacing_mm, size, stages, min_edge)
    z, y, x = (
        max(1, math.ceil(n / t - 0.25)) * t for n, t in zip(size, found.total_stride(), strict=True)
    )
    return (z, y, x), found


def largest_patch(
    edges: Sequence[int],
    shape: Callable[[int], tuple[Index, Topology]],
    memory: Callable[[Index, Topology], int],
    budget_bytes: float,
) -> tuple[Index, Topology]:
    """The largest candidate that fits the memory.

    Raises:
        PlanError: not even the smallest fits; the message says what it would need.
    """
    for edge in sorted(edges, reverse=True):
        patch, found = shape(edge)
        if memory(patch, found) <= budget_bytes:
            return patch, found
    patch, found = shape(min(edges))
    needed_gb = memory(patch, found) / 1e9
    raise PlanError(
        f"the smallest patch {patch} (z, y, x voxels) needs {needed_gb:.1f} GB, the target has "
        f"{budget_bytes / 1e9:.1f} GB. Nearest possible: --gpu-memory {math.ceil(needed_gb)}, or "
        "the fast planner."
    )


def given_patch(
    patch: Index, spacing_mm: Triple, stages: int, min_edge: int
) -> tuple[Index, Topology]:
    """Topology for a patch that a person asked for.

    Raises:
        PlanError: too small, or not a multiple of its strides; the nearest possible one is named.
    """
    found = topology(spacing_mm, patch, stages, min_edge)
    total = found.total_stride()
    nearest = tuple(
        max(math.ceil(min_edge / t), round(n / t)) * t for n, t in zip(patch, total, strict=True)
    )
    if tuple(patch) != nearest:
        raise PlanError(
            f"patch {tuple(patch)} (z, y, x voxels) does not fit the strides {total} at spacing "
            f"{spacing_mm} mm with maps of at least {min_edge} cells. Nearest possible: {nearest}."
        )
    return patch, found


def _index(values: npt.ArrayLike) -> Index:
    z, y, x = np.asarray(values).astype(int).tolist()
    return z, y, x
