"""Two instance maps as pairs of small crops: everything is measured there, not on whole scans."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bonemet_auto.evaluation.pairing import IdArray, InstanceMap, Overlaps, join_overlaps, overlaps
from bonemet_auto.geometry import Index
from bonemet_auto.images import LesionCrop


@dataclass(frozen=True)
class Region:
    """The same box of both maps; `start` is the index of its first voxel in the scan."""

    start: Index
    reference: InstanceMap
    predicted: InstanceMap


def paired_regions(reference: LesionCrop, predicted: LesionCrop) -> list[Region]:
    """Cut two maps of one grid into regions that together hold every lesion.

    Each lesion lies in one region as a whole, and regions are at least one voxel apart, so that
    counts and surfaces of a case are the sums over its regions.
    """
    boxes = [*lesion_boxes(reference).values(), *lesion_boxes(predicted).values()]
    return [
        Region(_index(box[0]), _cut(reference, box), _cut(predicted, box)) for box in _merged(boxes)
    ]


def region_overlaps(regions: Sequence[Region]) -> Overlaps:
    """Mask IoU of all overlapping pairs, as `overlaps` finds them in whole maps."""
    return join_overlaps([overlaps(each.reference, each.predicted) for each in regions])


def centre_hits(regions: Sequence[Region]) -> Overlaps:
    """Predicted lesions whose centre of mass lies in an annotated one, each with IoU 1.

    The centre is that of the mask's voxels; it lies in the voxel nearest to it, in the higher one
    where it lies between two.
    """
    hits = []
    for region in regions:
        for predicted, box in objects(region.predicted):
            voxels = np.argwhere(region.predicted[box] == predicted)
            n = len(voxels)
            nearest = (2 * voxels.sum(axis=0) + n) // (2 * n)  # whole numbers round exactly
            if reference := int(region.reference[box][tuple(nearest)]):
                hits.append((reference, predicted))
    return hits_as_overlaps(hits)


def hits_as_overlaps(hits: Sequence[tuple[int, int]]) -> Overlaps:
    """Pairs of an annotated and a predicted lesion that hit or do not: IoU 1."""
    ids = np.array(hits, dtype=np.int64).reshape(-1, 2)
    return Overlaps(ids[:, 0], ids[:, 1], np.ones(len(ids)))


def lesion_boxes(crop: LesionCrop) -> dict[int, IdArray]:
    """(2, 3) box of each instance in the scan, by id: first voxel, and the one behind the last."""
    return {
        number: np.array([[s.start for s in box], [s.stop for s in box]], np.int64) + crop.start
        for number, box in objects(crop.array)
    }


def objects(instances: InstanceMap) -> Iterator[tuple[int, tuple[slice, slice, slice]]]:
    """Id and box of each instance of a map."""
    found = ndimage.find_objects(instances) if instances.size else []
    return ((number, box) for number, box in enumerate(found, start=1) if box is not None)


def _merged(boxes: Sequence[IdArray]) -> list[IdArray]:
    """Boxes that hold all the given ones and do not touch, in the order of their first voxels."""
    apart = np.empty((0, 2, 3), dtype=np.int64)
    for each in boxes:
        box = each
        while (touching := ((apart[:, 0] <= box[1]) & (box[0] <= apart[:, 1])).all(axis=1)).any():
            parts = np.concatenate([apart[touching], box[None]])
            box = np.stack([parts[:, 0].min(axis=0), parts[:, 1].max(axis=0)])
            apart = apart[~touching]
        apart = np.concatenate([apart, box[None]])
    return sorted(apart, key=lambda box: tuple(box[0]))


def _cut(crop: LesionCrop, box: IdArray) -> InstanceMap:
    """A box of the map, which may stick out of the crop."""
    shape = _index(box[1] - box[0])
    low = np.maximum(box[0], crop.start)
    high = np.minimum(box[1], np.add(crop.start, crop.array.shape))
    cut = np.zeros(shape, dtype=np.uint16)
    if (low < high).all():
        inside = tuple(slice(a, b) for a, b in zip(low - box[0], high - box[0], strict=True))
        source = tuple(
            slice(a, b) for a, b in zip(low - crop.start, high - crop.start, strict=True)
        )
        cut[inside] = crop.array[source]
    return cut


def _index(values: IdArray) -> Index:
    z, y, x = values.tolist()
    return (z, y, x)
