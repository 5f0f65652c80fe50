"""How far apart the surfaces of two masks lie: normalised surface Dice (NSD) and HD95.

The surface runs between voxels, as in Nikolov et al. (J Med Internet Res 2021;23:e26151) and the
program `surface-distance` that goes with that paper: each corner point at which voxels inside and
outside meet carries the area of the marching-cubes surface in the cube of its eight voxels. Every
element counts by its area, so figures do not depend on how finely an axis is cut into voxels.
Space beyond the scan is outside: a mask that the scan's border cuts off has a surface there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.spatial import KDTree

from bonemet_auto.evaluation.pairing import InstanceMap
from bonemet_auto.evaluation.regions import Region, objects
from bonemet_auto.geometry import Index, Triple

FloatArray = npt.NDArray[np.float64]

HAUSDORFF_SHARE = 0.95

_ROUNDING_MM = 1e-6
"""Headers hold spacings in single precision: five voxels of 0.2 mm are 1.00000001 mm there."""


@dataclass(frozen=True)
class Surface:
    """Surface elements: (n, 3) index z y x of the voxel behind each corner point, (n,) areas."""

    corners: npt.NDArray[np.int64]
    areas_mm2: FloatArray


@dataclass(frozen=True)
class SurfaceDistances:
    """Of every element of one surface to the nearest of the other; infinite if that is empty."""

    of_reference_mm: FloatArray
    of_predicted_mm: FloatArray
    reference_mm2: FloatArray
    predicted_mm2: FloatArray

    def nsd(self, tolerance_mm: float) -> float:
        """Share of both surfaces within a tolerance; 1 where both are empty, 0 where one is."""
        total = self.reference_mm2.sum() + self.predicted_mm2.sum()
        if total == 0:
            return 1.0
        bound = tolerance_mm + _ROUNDING_MM
        within = self.reference_mm2[self.of_reference_mm <= bound].sum()
        return float((within + self.predicted_mm2[self.of_predicted_mm <= bound].sum()) / total)

    def hausdorff_mm(self, share: float = HAUSDORFF_SHARE) -> float | None:
        """Distance within which `share` of each surface lies, the larger of the two.

        None where a mask is empty: there is no distance to nothing.
        """
        if not (self.of_reference_mm.size and self.of_predicted_mm.size):
            return None
        return max(
            _weighted_quantile(self.of_reference_mm, self.reference_mm2, share),
            _weighted_quantile(self.of_predicted_mm, self.predicted_mm2, share),
        )


@dataclass(frozen=True)
class Outline:
    """How well two outlines agree; `hd95_mm` is None where one of the masks is empty."""

    nsd_1mm: float
    nsd_2mm: float
    hd95_mm: float | None


def case_outline(regions: Sequence[Region], spacing_mm: Triple) -> Outline:
    """Agreement of all annotated with all predicted voxels of a case."""
    reference = [surface_of(each.reference > 0, spacing_mm, each.start) for each in regions]
    predicted = [surface_of(each.predicted > 0, spacing_mm, each.start) for each in regions]
    return _outline(joined(reference), joined(predicted), spacing_mm)


def lesion_outlines(
    regions: Sequence[Region], found_by: Mapping[int, int], spacing_mm: Triple
) -> dict[int, Outline]:
    """Agreement of single lesions with the predictions that found them.

    Args:
        regions: of the case.
        found_by: predicted id by annotated id; the two share a voxel.
        spacing_mm: voxel edges along z, y, x.

    Returns:
        By annotated id.
    """
    outlines = {}
    for region in regions:
        predicted_boxes = dict(objects(region.predicted))
        for lesion, box in objects(region.reference):
            if lesion in found_by:
                found = found_by[lesion]
                outlines[lesion] = _outline(
                    _surface_in(region.reference, lesion, box, spacing_mm),
                    _surface_in(region.predicted, found, predicted_boxes[found], spacing_mm),
                    spacing_mm,
                )
    return outlines


def surface_of(
    mask: npt.NDArray[np.bool_], spacing_mm: Triple, start: Index = (0, 0, 0)
) -> Surface:
    """Surface of a mask (z, y, x) that is False beyond the array.

    Args:
        mask: the mask, or the part of it that holds all its voxels.
        spacing_mm: voxel edges along z, y, x.
        start: index of the array's first voxel in the scan.
    """
    padded = np.pad(mask, 1).astype(np.uint8)
    codes = np.zeros(np.subtract(padded.shape, 1), dtype=np.uint8)
    for bit, corner in enumerate(np.ndindex(2, 2, 2)):
        shifted = tuple(slice(c, c + n) for c, n in zip(corner, codes.shape, strict=True))
        codes |= padded[shifted] << bit
    corners = np.argwhere((codes > 0) & (codes < 255))
    areas = _areas_mm2(spacing_mm)[codes[tuple(corners.T)]]
    return Surface(corners + np.asarray(start), areas)


def joined(surfaces: list[Surface]) -> Surface:
    """One surface of the surfaces of parts that do not touch each other."""
    return Surface(
        np.concatenate([np.empty((0, 3), np.int64), *(each.corners for each in surfaces)]),
        np.concatenate([np.empty(0), *(each.areas_mm2 for each in surfaces)]),
    )


def surface_distances(
    reference: Surface, predicted: Surface, spacing_mm: Triple
) -> SurfaceDistances:
    """Distances of two surfaces of one scan, exact however far apart they lie."""
    return SurfaceDistances(
        _nearest_mm(reference, predicted, spacing_mm),
        _nearest_mm(predicted, reference, spacing_mm),
        reference.areas_mm2,
        predicted.areas_mm2,
    )


def _outline(reference: Surface, predicted: Surface, spacing_mm: Triple) -> Outline:
    distances = surface_distances(reference, predicted, spacing_mm)
    return Outline(distances.nsd(1), distances.nsd(2), distances.hausdorff_mm())


def _surface_in(
    instances: InstanceMap, lesion: int, box: tuple[slice, slice, slice], spacing_mm: Triple
) -> Surface:
    start: Index = (box[0].start, box[1].start, box[2].start)
    return surface_of(instances[box] == lesion, spacing_mm, start)


def _nearest_mm(of: Surface, to: Surface, spacing_mm: Triple) -> FloatArray:
    if not (len(of.corners) and len(to.corners)):
        return np.full(len(of.corners), np.inf)
    tree = KDTree(to.corners * spacing_mm, balanced_tree=False, compact_nodes=False)
    nearest = tree.query(of.corners * spacing_mm)[1]
    # Anew from whole numbers: positions in mm are rounded, and a tolerance may lie on a multiple.
    return np.linalg.norm((of.corners - to.corners[nearest]) * spacing_mm, axis=1)


def _weighted_quantile(values: FloatArray, weights: FloatArray, share: float) -> float:
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order]) / weights.sum()
    at = min(int(np.searchsorted(reached, share)), values.size - 1)
    return float(values[order][at])


@lru_cache
def _areas_mm2(spacing_mm: Triple) -> FloatArray:
    """(256,) area of the surface in a cube of eight voxels, by which of them are inside.

    Bit 4 z + 2 y + x of the index stands for the voxel (z, y, x) of the cube.
    """
    sides = np.prod(spacing_mm) / np.asarray(spacing_mm)
    return np.linalg.norm(_triangles() * sides, axis=2).sum(axis=1)


@lru_cache
def _triangles() -> FloatArray:
    """(256, 5, 3) area vectors of the triangles in a cube of unit voxels, padded with zeros.

    The fifteen cubes of Lorensen and Cline (SIGGRAPH 1987;21:163): where more than four voxels are
    inside, the surface is that of the complement.
    """
    from skimage.measure import marching_cubes

    triangles = np.zeros((256, 5, 3))
    for code in range(1, 255):
        inside = np.array([code >> bit & 1 for bit in range(8)], dtype=np.float64)
        fewer = inside if inside.sum() <= 4 else 1 - inside
        vertices, faces, _, _ = marching_cubes(fewer.reshape(2, 2, 2), 0.5, method="lorensen")
        a, b, c = vertices[faces].astype(np.float64).transpose(1, 0, 2)
        triangles[code, : len(faces)] = np.cross(b - a, c - a) / 2
    return triangles
