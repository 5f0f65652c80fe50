"""How a scan differs from those that a model was trained on, for the person who reads the result.

Every doubt says what was found, what was expected, and what to do. It never changes a result.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from bonemet_auto.fingerprint import hu_histogram
from bonemet_auto.geometry import Triple
from bonemet_auto.images import Volume
from bonemet_auto.plan_schema import Plan, Range
from bonemet_auto.scope import SOFT_HU, median_hu, unlike_hu

SPACING_RATIO = 1.5
"""Voxel edges up to this much beyond those of the training scans pass without a word."""
UNKNOWN_SPACING_RATIO = 2.5
"""The same against the planned spacing, where the training scans' own is not known."""
LEAST_EXTENT_SHARE = 0.5
"""Of a window, or of the smallest training scan: less of a patient than this is too little."""
BONE_SLACK_HU, SOFT_SLACK_HU = 50.0, 20.0
"""Least distance from the training scans' medians that counts."""
_SAMPLED = (slice(None, None, 2),) * 3

Int16Array = npt.NDArray[np.int16]


def doubts(volume: Volume, bone_hu: Int16Array, plan: Plan) -> Iterator[str]:
    """Reasons to distrust a result, in words for the person who reads it.

    Args:
        volume: the upright scan, int16 HU.
        bone_hu: values of its bone, in any order.
        plan: what the model was trained with, and on.
    """
    if not bone_hu.size:
        yield (
            "no bone in view: the whole scan was searched, and nothing found there is likely real. "
            "Check that it is a CT of the body, in Hounsfield units"
        )
    yield from _spacing_doubts(volume.geometry.spacing_mm, plan)
    yield from _extent_doubts(volume, plan)
    if unlike := unlike_hu(volume.array):
        yield unlike
    else:
        yield from _value_doubts(volume, bone_hu, plan)


def _spacing_doubts(spacing_mm: Triple, plan: Plan) -> Iterator[str]:
    if plan.scope is None:
        seen, ratio = tuple((edge, edge) for edge in plan.spacing_mm), UNKNOWN_SPACING_RATIO
    else:
        seen, ratio = plan.scope.spacing_mm, SPACING_RATIO
    found, expected = _mm(spacing_mm), " x ".join(_span(edges, "{:.3g}") for edges in seen)
    pairs = list(zip(spacing_mm, seen, strict=True))
    if any(edge > ratio * high for edge, (_, high) in pairs):
        yield (
            f"voxel spacing {found} mm (z, y, x) is coarser than that of the training scans "
            f"({expected} mm): small lesions are lost between voxels, and outlines are rough. "
            "Predict a finer reconstruction, if there is one"
        )
    if any(edge < low / ratio for edge, (low, _) in pairs):
        yield (
            f"voxel spacing {found} mm (z, y, x) is finer than that of the training scans "
            f"({expected} mm): there may be more noise than the networks know. Predict a "
            "reconstruction like theirs, if there is one"
        )


def _extent_doubts(volume: Volume, plan: Plan) -> Iterator[str]:
    extent_mm = np.multiply(volume.geometry.shape, volume.geometry.spacing_mm)
    window_mm = np.multiply(plan.patch_size, plan.spacing_mm)
    expected = window_mm
    if plan.scope is not None:
        expected = np.minimum(window_mm, plan.scope.least_extent_mm)
    if (extent_mm < LEAST_EXTENT_SHARE * expected).any():
        yield (
            f"the scan shows only {_mm(extent_mm)} mm (z, y, x), and the networks look at "
            f"{_mm(expected)} mm at once: what they judge by may be out of view. Predict the "
            "whole scan, not a part of it"
        )


def _value_doubts(volume: Volume, bone_hu: Int16Array, plan: Plan) -> Iterator[str]:
    if plan.scope is None:
        return
    bone = median_hu(hu_histogram(bone_hu))
    if bone is not None and _beyond(bone, plan.scope.bone_hu, BONE_SLACK_HU):
        yield (
            f"bone has a median of {bone:.0f} HU, that of the training scans "
            f"{_span(plan.scope.bone_hu, '{:.0f}')}: another calibration or kernel, contrast "
            "medium or metal taken for bone? Check the export, and trust scores and sources less"
        )
    soft = median_hu(hu_histogram(volume.array[_SAMPLED].ravel()), SOFT_HU)
    if soft is not None and _beyond(soft, plan.scope.soft_tissue_hu, SOFT_SLACK_HU):
        yield (
            f"soft tissue has a median of {soft:.0f} HU, that of the training scans "
            f"{_span(plan.scope.soft_tissue_hu, '{:.0f}')}: contrast medium, another calibration "
            "or another part of the body? Predict a scan like those of the training, if there is "
            "one"
        )


def _beyond(value: float, seen: Range | None, least: float) -> bool:
    """Whether a value lies further outside a range than the range is wide, and than `least`."""
    if seen is None:
        return False
    slack = max(seen[1] - seen[0], least)
    return not seen[0] - slack <= value <= seen[1] + slack


def _span(edges: Range | None, form: str) -> str:
    """A range in words; one value where its ends read alike."""
    low, high = (form.format(edge) for edge in edges or ())
    return low if low == high else f"{low} to {high}"


def _mm(lengths: npt.ArrayLike) -> str:
    return " x ".join(f"{length:.3g}" for length in np.asarray(lengths).tolist())
