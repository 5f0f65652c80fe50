"""Scans the same way up, however their files lie.

A network learns what is up, and a file may store a scan in any order and direction of its axes. So
all that looks at voxels, in training and in prediction, sees them with z running up, y to the back
and x to the left of the patient, or the nearest to it that costs no resampling; lesions are
brought back to the file's own axes.
"""

from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt

from bonemet_auto.geometry import Geometry, Index, Triple
from bonemet_auto.images import Volume

_LPS_OF_AXES = (2, 1, 0)
"""z, y and x run along S, P and L: these numbers in LPS order."""


@dataclass(frozen=True)
class Turn:
    """How the axes of a file are exchanged and flipped to stand upright.

    Attributes:
        order: axis of the file that becomes z, y and x.
        flips: whether z, y and x, once in that order, run the other way.
        shape: upright voxels (z, y, x).
    """

    order: Index
    flips: tuple[bool, bool, bool]
    shape: Index

    def apply(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """An array of the file, upright; the array itself where nothing is to be done."""
        if self.order == (0, 1, 2) and not any(self.flips):
            return array
        axes = tuple(axis for axis, flipped in enumerate(self.flips) if flipped)
        return np.ascontiguousarray(np.flip(array.transpose(self.order), axes))

    def back(self, crop: npt.NDArray[Any], start: Index) -> tuple[npt.NDArray[Any], Index]:
        """A crop of an upright array, and its first voxel, as they lie in the file."""
        axes = tuple(axis for axis, flipped in enumerate(self.flips) if flipped)
        upright = [
            size - begin - length if flipped else begin
            for size, begin, length, flipped in zip(
                self.shape, start, crop.shape, self.flips, strict=True
            )
        ]
        where = [self.order.index(axis) for axis in range(3)]
        first = (upright[where[0]], upright[where[1]], upright[where[2]])
        return np.flip(crop, axes).transpose(where), first


def turn_of(geometry: Geometry) -> Turn:
    """The turn that brings a grid nearest to upright."""
    along = np.asarray(geometry.direction)[:, _LPS_OF_AXES]
    orders = list(permutations(range(3)))
    order = max(orders, key=lambda axes: sum(abs(along[axes[k], k]) for k in range(3)))
    z, y, x = (bool(along[order[k], k] < 0) for k in range(3))
    sizes = [geometry.shape[axis] for axis in order]
    return Turn((order[0], order[1], order[2]), (z, y, x), (sizes[0], sizes[1], sizes[2]))


def upright(volume: Volume) -> Volume:
    """A volume the right way up; the same voxels at the same places in the patient."""
    turn, geometry = turn_of(volume.geometry), volume.geometry
    corner = [0, 0, 0]
    for axis, flipped in zip(turn.order, turn.flips, strict=True):
        corner[axis] = geometry.shape[axis] - 1 if flipped else 0
    signs = np.where(turn.flips, -1.0, 1.0)[:, None]
    z, y, x = (_triple(axis) for axis in np.asarray(geometry.direction)[list(turn.order)] * signs)
    spacing_mm = _triple(np.asarray(geometry.spacing_mm)[list(turn.order)])
    origin = _triple(geometry.index_to_lps(corner))
    return Volume(turn.apply(volume.array), Geometry(turn.shape, spacing_mm, origin, (z, y, x)))


def _triple(values: npt.NDArray[np.float64]) -> Triple:
    first, second, third = (values + 0.0).tolist()  # adding 0 turns -0.0 into 0.0
    return (first, second, third)
