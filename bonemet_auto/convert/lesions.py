"""From outlined voxels to a map of lesions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bonemet_auto.convert.annotations import IndexArray
from bonemet_auto.convert.write import MOST_INSTANCES, TOUCHING, UInt16Array
from bonemet_auto.errors import DataError
from bonemet_auto.geometry import Index

MOST_SHARED = 0.5
"""Share of a lesion that may lie in larger ones; beyond it the same thing is drawn twice."""


@dataclass(frozen=True)
class Lesion:
    """Voxels of a lesion, its class (None: unknown), and where it is drawn, for messages."""

    voxels: IndexArray
    source: int | None
    where: str


def components_of(voxels: IndexArray) -> list[IndexArray]:
    """Connected pieces of a set of voxels, 26 neighbours touching."""
    low = voxels.min(axis=0)
    inside = np.zeros(voxels.max(axis=0) - low + 1, dtype=bool)
    inside[tuple((voxels - low).T)] = True
    numbered, count = ndimage.label(inside, TOUCHING)
    of_voxel = numbered[tuple((voxels - low).T)]
    sizes = np.bincount(of_voxel, minlength=count + 1)[1:]
    return np.split(voxels[np.argsort(of_voxel, kind="stable")], np.cumsum(sizes)[:-1])


def draw(lesions: Sequence[Lesion], shape: Index) -> tuple[UInt16Array, int]:
    """Instance map of lesions, numbered from 1 in their order.

    A voxel of several lesions goes to the smallest.

    Returns:
        The map, and how many voxels were of several lesions.

    Raises:
        DataError: more lesions than ids, or one that lies mostly within larger ones.
    """
    if len(lesions) > MOST_INSTANCES:
        raise DataError(f"more than {MOST_INSTANCES} separate lesions: is this a mask?")
    drawn = np.zeros(shape, dtype=np.uint16)
    shared = 0
    for number in sorted(range(len(lesions)), key=lambda n: -len(lesions[n].voxels)):
        lesion = lesions[number]
        place = tuple(lesion.voxels.T)
        below = drawn[place]
        covered = int((below > 0).sum())
        if covered > MOST_SHARED * len(below):
            other = lesions[int(np.bincount(below[below > 0]).argmax()) - 1]
            raise DataError(
                f"{lesion.where} lies {covered / len(below):.0%} within other lesions, mostly "
                f"{other.where}: the same lesion twice? Leave one of them out (--exclude)."
            )
        shared += covered
        drawn[place] = number + 1
    return drawn, shared
