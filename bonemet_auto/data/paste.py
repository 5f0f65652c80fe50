"""Copies of the cohort's own lesions, pasted into the bone of other training windows.

A cohort has much bone and few lesions, and a network soon knows each of them by its place and its
patient. A copy in another bone leaves it only the lesion to go by. After Yang et al., TumorCP,
MICCAI 2021 (pasting between patients); finding a place in bone and the faded rim are ours.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from bonemet_auto.data.augment import Float, Int, mirror, warp
from bonemet_auto.fingerprint import BONE_THRESHOLD_HU
from bonemet_auto.geometry import Triple
from bonemet_auto.schema import StoredLesion
from bonemet_auto.store import OpenCase

Bool = npt.NDArray[np.bool_]

RIM_MM = (1.5, 4.5)
"""A copy brings its surroundings up to the first distance and has faded out at the second."""
LEAST_SHARE_IN_BONE = 0.65
_LEAST_VOXELS = 8
_PLACES_TRIED = 8
_BONE_WINDOW = 5


@dataclass(frozen=True)
class Cutout:
    """A lesion and what is around it, on the planned grid.

    Attributes:
        image: (z, y, x) normalised HU.
        mask: (z, y, x) bool, the lesion's voxels.
    """

    image: Float
    mask: Bool


def cut_out(
    case: OpenCase,
    lesion: StoredLesion,
    spacing_mm: Triple,
    to_input: Callable[[npt.NDArray[np.int16]], Float],
) -> Cutout:
    """A lesion with as much around it as `vary` needs to turn it and `paste` for the rim."""
    low, high = np.array(lesion.box_voxel_zyx).reshape(2, 3).astype(np.int64)
    margin = np.maximum(np.ceil(np.divide(RIM_MM[1], spacing_mm)), (high - low) // 3)
    start, size = (
        (low - margin).astype(int).tolist(),
        (high - low + 2 * margin).astype(int).tolist(),
    )
    hu, instances = case.crop((start[0], start[1], start[2]), (size[0], size[1], size[2]))
    return Cutout(to_input(hu), instances == lesion.instance)


def vary(cutout: Cutout, spacing_mm: Triple, rng: np.random.Generator) -> Cutout:
    """The cutout mirrored, rotated and scaled at random."""
    # Unlike a window, a lesion has no upper or front side.
    image, ids = mirror(cutout.image, cutout.mask.astype(np.uint16), (0, 1, 2), rng)
    shape = (image.shape[0], image.shape[1], image.shape[2])
    image, ids = warp(np.ascontiguousarray(image), np.ascontiguousarray(ids), shape, spacing_mm)
    return Cutout(image, ids > 0)


def near_bone(hu: npt.NDArray[np.int16]) -> Bool:
    """Voxels of bone and of marrow close to it: dense in the mean over a few voxels."""
    mean: npt.NDArray[np.float32] = ndimage.uniform_filter(hu.astype(np.float32), _BONE_WINDOW)
    return mean > BONE_THRESHOLD_HU


def paste(
    image: Float,
    instances: Int,
    bone: Bool,
    cutout: Cutout,
    instance: int,
    spacing_mm: Triple,
    rng: np.random.Generator,
) -> bool:
    """Paste a lesion where it lies in bone and apart from all others, in place.

    Args:
        image: (z, y, x) normalised HU of a window; changed.
        instances: (z, y, x) ids; changed.
        bone: (z, y, x) where a lesion may lie, as `near_bone` gives it.
        cutout: the lesion.
        instance: its id in the window, not in use there.
        spacing_mm: voxel edges (z, y, x).
        rng: chooses the place.

    Returns:
        Whether a place was found.
    """
    distance_mm = ndimage.distance_transform_edt(~cutout.mask, sampling=spacing_mm)
    shown = distance_mm < RIM_MM[1]
    if cutout.mask.sum() < _LEAST_VOXELS or (np.greater_equal(shown.shape, image.shape)).any():
        return False
    where = _find_place(bone, instances > 0, cutout.mask, shown, rng)
    if where is None:
        return False
    opacity = np.clip((RIM_MM[1] - distance_mm) / (RIM_MM[1] - RIM_MM[0]), 0, 1)
    image[where] += (opacity * (cutout.image - image[where])).astype(np.float32)
    instances[where][cutout.mask] = instance
    return True


def _find_place(
    bone: Bool, taken: Bool, mask: Bool, shown: Bool, rng: np.random.Generator
) -> tuple[slice, ...] | None:
    """Of some places centred on bone, that with most of the lesion in bone, if that is enough."""
    seeds = np.argwhere(bone)
    if not len(seeds):
        return None
    centre = np.argwhere(mask).mean(axis=0)
    best, most = None, LEAST_SHARE_IN_BONE
    for seed in seeds[rng.integers(len(seeds), size=_PLACES_TRIED)]:
        start = np.clip(np.rint(seed - centre).astype(int), 0, np.subtract(bone.shape, mask.shape))
        where = tuple(slice(s, s + n) for s, n in zip(start, mask.shape, strict=True))
        share = float(bone[where][mask].mean())
        if share >= most and not (taken[where] & shown).any():
            best, most = where, share
    return best
