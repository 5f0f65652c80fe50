"""Augmentation of one window with batchgenerators' transforms.

They draw from numpy's global random state, so the caller seeds it per sample; that makes a sample
independent of the worker that makes it. Instance maps are warped with nearest neighbour:
interpolating one-hot maps costs one pass per lesion.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from batchgenerators.augmentations.spatial_transformations import augment_spatial
from batchgenerators.transforms.color_transforms import (
    BrightnessMultiplicativeTransform,
    ContrastAugmentationTransform,
    GammaTransform,
)
from batchgenerators.transforms.noise_transforms import (
    GaussianBlurTransform,
    GaussianNoiseTransform,
)

from bonemet_auto.geometry import Index, Triple

SPATIAL_SHARE = 0.8
REACH = 1.4
"""A window to be warped is read this much larger, so that few voxels come from outside."""

_SCALE = (0.7, 1.4)
_FULL_ANGLE = np.pi / 3.5
_ISOTROPIC_RATIO = 1.5

Float = npt.NDArray[np.float32]
Int = npt.NDArray[np.uint16]

_INTENSITY = (
    GaussianNoiseTransform(noise_variance=(0, 0.05), p_per_sample=0.15),
    GaussianBlurTransform(blur_sigma=(0.5, 1.0), p_per_sample=0.1),
    BrightnessMultiplicativeTransform(multiplier_range=(0.8, 1.25), p_per_sample=0.15),
    ContrastAugmentationTransform(contrast_range=(0.8, 1.25), p_per_sample=0.15),
    GammaTransform(gamma_range=(0.8, 1.25), retain_stats=True, p_per_sample=0.15),
)


def warp(image: Float, instances: Int, patch_size: Index, spacing_mm: Triple) -> tuple[Float, Int]:
    """Rotate and scale about the centre, and cut to `patch_size`.

    There is no rotation in a plane whose voxels are far from squares: it would shear the anatomy.
    """

    def most(angle: float, *plane: int) -> tuple[float, float]:
        edges = [spacing_mm[axis] for axis in plane]
        allowed = angle if max(edges) / min(edges) < _ISOTROPIC_RATIO else 0.0
        return -allowed, allowed

    warped, ids = augment_spatial(
        image[None, None],
        instances[None, None].astype(np.float32),
        patch_size,
        do_elastic_deform=False,
        angle_x=most(_FULL_ANGLE, 1, 2),
        angle_y=most(_FULL_ANGLE / 2, 0, 2),
        angle_z=most(_FULL_ANGLE / 2, 0, 1),
        scale=_SCALE,
        border_mode_data="nearest",
        order_data=1,
        order_seg=0,
        random_crop=False,
    )
    return warped[0, 0].astype(np.float32), ids[0, 0].astype(np.uint16)


def mirror(
    image: Float, instances: Int, axes: Sequence[int], rng: np.random.Generator
) -> tuple[Float, Int]:
    """Flip each of some axes with probability one half."""
    flipped = tuple(axis for axis in axes if rng.random() < 0.5)
    return np.flip(image, flipped), np.flip(instances, flipped)


def change_intensity(image: Float) -> Float:
    """Noise, blur, brightness, contrast and gamma, each on a few of all windows."""
    batch = {"data": image[None, None].copy()}
    for transform in _INTENSITY:
        batch = transform(**batch)
    changed: Float = batch["data"][0, 0].astype(np.float32)
    return changed
