"""What training cases are like: bone, lesions and their HU, measured on the scans' own grids."""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from bonemet_auto.geometry import Triple
from bonemet_auto.images import HU_RANGE, Volume
from bonemet_auto.raw_dataset import RawCase, patient_label
from bonemet_auto.schema import CaseFingerprint, CaseLabels, DatasetInfo, LesionFingerprint
from bonemet_auto.upright import upright

BIN_HU = 16
HISTOGRAM_EDGES_HU = np.arange(HU_RANGE[0], HU_RANGE[1] + BIN_HU, BIN_HU)
BONE_THRESHOLD_HU = 150
BODY_THRESHOLD_HU = -500
BONE_MARGIN_MM = 20.0
"""Lesions are looked for this far around bone: lysis and soft-tissue parts reach that far."""

_TOUCHING = np.ones((3, 3, 3), dtype=bool)
_SMALLEST_BONE_MM3 = 100.0
_SMOOTHED_SPACING_MM = 2.0
_SLAB = 16

HuArray = npt.NDArray[np.int16]
Mask = npt.NDArray[np.bool_]


def bone_mask(hu: HuArray, spacing_mm: Triple) -> Mask:
    """Cheap mask of bone (and of whatever else is as dense), (z, y, x).

    Voxels above `BONE_THRESHOLD_HU` after a 3-voxel mean along the finely sampled axes, which takes
    the noise of soft tissue away, without pieces too small to be bone.
    """
    window = [3 if step <= _SMOOTHED_SPACING_MM else 1 for step in spacing_mm]
    dense = ndimage.uniform_filter(hu, window, mode="nearest") > BONE_THRESHOLD_HU
    pieces, count = ndimage.label(dense, _TOUCHING)
    voxels = np.zeros(count + 1, dtype=np.int64)
    for slab in range(0, len(pieces), _SLAB):  # All at once it would become 8 bytes a voxel.
        voxels += np.bincount(pieces[slab : slab + _SLAB].ravel(), minlength=count + 1)
    large = voxels * np.prod(spacing_mm) >= _SMALLEST_BONE_MM3
    large[0] = False
    return large[pieces]


def fingerprint_case(
    case: RawCase,
    image: Volume,
    label: Volume,
    labels: CaseLabels,
    info: DatasetInfo,
    input_hash: str,
) -> CaseFingerprint:
    """Measure a case without faults: both volumes on one grid, a class for every id.

    Shape and spacing are those of the upright scan, the orientation is the file's.
    """
    orientation = image.geometry.orientation
    image, label = upright(image), upright(label)
    spacing_mm = image.geometry.spacing_mm
    bone = bone_mask(image.array, spacing_mm)
    lesions = tuple(
        _lesion(instance, place, label.array, bone, spacing_mm, labels.instances[instance])
        for instance, place in enumerate(ndimage.find_objects(label.array), start=1)
        if place is not None
    )
    return CaseFingerprint(
        case=case.case,
        patient_id=labels.patient_id or case.case,
        input_hash=input_hash,
        shape=image.geometry.shape,
        spacing_mm=spacing_mm,
        orientation=orientation,
        lesions=lesions,
        patient_label=patient_label(labels, info.positive_class),
        body_histogram=hu_histogram(image.array[image.array > BODY_THRESHOLD_HU]),
        bone_histogram=hu_histogram(image.array[bone]),
        lesion_histogram=hu_histogram(image.array[label.array > 0]),
    )


def _lesion(
    instance: int,
    place: tuple[slice, slice, slice],
    label: npt.NDArray[np.uint16],
    bone: Mask,
    spacing_mm: Triple,
    source: int | None,
) -> LesionFingerprint:
    """Measure one lesion on a crop that has room for the margin of bone around it."""
    margins = [int(np.ceil(BONE_MARGIN_MM / step)) for step in spacing_mm]
    crop = tuple(
        slice(max(0, axis.start - margin), axis.stop + margin)
        for axis, margin in zip(place, margins, strict=True)
    )
    lesion, bone_near = label[crop] == instance, bone[crop]
    outside = lesion
    if bone_near.any():
        from_bone_mm = ndimage.distance_transform_edt(~bone_near, sampling=spacing_mm)
        outside = lesion & (from_bone_mm > BONE_MARGIN_MM)
    sizes = [(axis.stop - axis.start) * step for axis, step in zip(place, spacing_mm, strict=True)]
    voxels = int(lesion.sum())
    return LesionFingerprint(
        instance=instance,
        source=source,
        volume_mm3=voxels * float(np.prod(spacing_mm)),
        size_mm=(sizes[0], sizes[1], sizes[2]),
        share_outside_bone=float(outside.sum()) / voxels,
        touching=_neighbours(instance, place, label),
    )


def _neighbours(
    instance: int, place: tuple[slice, slice, slice], label: npt.NDArray[np.uint16]
) -> tuple[int, ...]:
    """Ids of the lesions that share a face, edge or corner with this one."""
    near = label[tuple(slice(max(0, axis.start - 1), axis.stop + 1) for axis in place)]
    reached = ndimage.binary_dilation(near == instance, _TOUCHING)
    ids = set(np.unique(near[reached]).tolist()) - {0, instance}
    return tuple(sorted(ids))


def hu_histogram(hu: HuArray) -> tuple[int, ...]:
    """Count (N,) values in `HISTOGRAM_EDGES_HU` bins; those beyond go into the outermost."""
    bins = (np.clip(hu, *HU_RANGE).astype(np.int32) - HU_RANGE[0]) // BIN_HU
    return tuple(np.bincount(bins, minlength=len(HISTOGRAM_EDGES_HU) - 1).tolist())
