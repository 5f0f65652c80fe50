"""Synthetic lesions planted into the bone of training windows, by the phantom's own code.

For cohorts with very few lesions. What is planted looks as somebody thought that lesions look; on
phantoms, which the same code makes, a gain says nothing. Off unless the plan asks for it.
"""

import numpy as np
from scipy import ndimage

from bonemet_auto.data.augment import Int
from bonemet_auto.geometry import Triple
from bonemet_auto.phantom.background import bone_mask, noise_sd
from bonemet_auto.phantom.lesions import plant_lesions
from bonemet_auto.phantom.scanner import scanner_noise
from bonemet_auto.schema import StoredLesion
from bonemet_auto.store import Int16Array

APART_MM = 4.0
"""Least distance of a planted lesion's seed from an annotated lesion, which it must not reach."""
NOISE_GRAIN_VOXEL = 0.7
_LOWEST_HU, _HIGHEST_HU = -1024, 3071


def plant(
    hu: Int16Array, instances: Int, spacing_mm: Triple, instance: int, rng: np.random.Generator
) -> StoredLesion | None:
    """Plant one lesion into a window, in place; each source as often as the other.

    Args:
        hu: (z, y, x) HU; changed.
        instances: (z, y, x) ids; changed.
        spacing_mm: voxel edges (z, y, x).
        instance: id of the new lesion, not in use.
        rng: source of every choice.

    Returns:
        Its record (the box is that in the window), or None where it found no room.
    """
    bone = bone_mask(hu.astype(np.float32), spacing_mm)
    if (instances > 0).any():
        bone &= ndimage.distance_transform_edt(instances == 0, spacing_mm) > APART_MM
    is_lung = bool(rng.random() < 0.5)
    changed = hu.astype(np.float32)
    noise = scanner_noise(rng, hu.shape, noise_sd(changed), NOISE_GRAIN_VOXEL)
    planted, _ = plant_lesions(changed, bone, spacing_mm, [is_lung], rng, noise)
    new = planted > 0
    touched = ndimage.binary_dilation(new, iterations=3)
    if not new.any() or (instances[touched] > 0).any():
        return None
    hu[touched] = np.clip(np.rint(changed[touched]), _LOWEST_HU, _HIGHEST_HU)
    instances[new] = instance
    z, y, x = ndimage.find_objects(new.astype(np.uint8))[0]
    return StoredLesion(
        instance=instance,
        is_lung=is_lung,
        box_voxel_zyx=(z.start, y.start, x.start, z.stop, y.stop, x.stop),
        volume_voxel=int(new.sum()),
    )
