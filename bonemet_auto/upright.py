"""Scans the same way up, however their files lie.

A network learns what is up, and a file may store a scan in any order and direction of its axes. So
all that looks at voxels, in training and in prediction, sees them with z running up, y to the back
and x to the left of the patient, or the nearest to it that costs no resampling; lesions are
brought back to the file's own axes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from bonemet_auto.geometry import Geometry, Index, Triple
from bonemet_auto.images import Volume
from bonemet_auto.schema import Box

AnyType = TypeVar("AnyType", bound=np.generic)

_LPS_OF_AXES = (2, 1, 0)
"""z, y and x run along S, P and L: these numbers in LPS order."""


@dataclass(frozen=True)
class Turn:
    """How the axes of a file are exchanged and flipped to stand upright.

    Attributes:
        order: axis of the file that becomes z, y and x.
        flips: whether z, y and x, once in that order, run the other way.
        shape: upright voxels (z, y, x).
        spacing_mm: upright voxel edges (z, y, x).
    """

    order: Index
    flips: tuple[bool, bool, bool]
    shape: Index
    spacing_mm: Triple

    def view(self, array: npt.NDArray[AnyType]) -> npt.NDArray[AnyType]:
        """An array of the file, upright; nothing is copied."""
        steps = tuple(slice(None, None, -1 if flipped else 1) for flipped in self.flips)
        return array.transpose(self.order)[steps]

    def apply(self, array: npt.NDArray[AnyType]) -> npt.NDArray[AnyType]:
        """The same in memory of its own; the array itself where nothing is to be done."""
        return np.ascontiguousarray(self.view(array))

    def index(self, index: Sequence[int]) -> npt.NDArray[np.int64]:
        """A voxel of the file, upright."""
        moved = np.asarray(index)[list(self.order)]
        return np.where(self.flips, np.asarray(self.shape) - 1 - moved, moved)

    def box(self, box: Box) -> npt.NDArray[np.float64]:
        """(2, 3) low and high corner of a half-open box of the file, upright."""
        corners = np.asarray(box).reshape(2, 3)[:, self.order]
        return np.where(self.flips, np.asarray(self.shape) - corners[::-1], corners)

    def back(self, crop: npt.NDArray[AnyType], start: Index) -> tuple[npt.NDArray[AnyType], Index]:
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
    z, y, x = order
    return Turn(
        (z, y, x),
        (bool(along[z, 0] < 0), bool(along[y, 1] < 0), bool(along[x, 2] < 0)),
        (geometry.shape[z], geometry.shape[y], geometry.shape[x]),
        (geometry.spacing_mm[z], geometry.spacing_mm[y], geometry.spacing_mm[x]),
    )


def upright(volume: Volume) -> Volume:
    """A volume the right way up; the same voxels at the same places in the patient.

    In memory of its own unless it stood upright, for work on all of it.
    """
    view = upright_view(volume)
    return Volume(np.ascontiguousarray(view.array), view.geometry)


def upright_view(volume: Volume) -> Volume:
    """As `upright`, but nothing is copied: for a look at a few places."""
    turn, geometry = turn_of(volume.geometry), volume.geometry
    corner = [0, 0, 0]
    for axis, flipped in zip(turn.order, turn.flips, strict=True):
        corner[axis] = geometry.shape[axis] - 1 if flipped else 0
    signs = np.where(turn.flips, -1.0, 1.0)[:, None]
    z, y, x = (_triple(axis) for axis in np.asarray(geometry.direction)[list(turn.order)] * signs)
    origin = _triple(geometry.index_to_lps(corner))
    grid = Geometry(turn.shape, turn.spacing_mm, origin, (z, y, x))
    return Volume(turn.view(volume.array), grid)


def _triple(values: npt.NDArray[np.float64]) -> Triple:
    first, second, third = (values + 0.0).tolist()  # adding 0 turns -0.0 into 0.0
    return (first, second, third)
