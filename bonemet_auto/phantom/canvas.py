"""A window into a body: shapes are drawn as signed distances, noise as smooth random fields.

The body's own frame is LPS millimetres (x left, y posterior, z up) with its origin at the centre of
the upper end plate of the sacrum. A shape is evaluated only on the voxels of its bounding box, so a
small window into a whole body costs no more than what it shows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bonemet_auto.geometry import Index, Triple

Array = npt.NDArray[np.float32]
Box = tuple[slice, slice, slice]
Distance = Callable[[Array, Array, Array], Array]

FAR_MM = 50.0


@dataclass(frozen=True)
class Mark:
    """An ellipsoidal spot inside bone that moves its density towards `hu`."""

    centre_mm: Triple
    radii_mm: Triple
    hu: float
    strength: float = 1.0


@dataclass(frozen=True)
class Canvas:
    """Bone of a window while it is being drawn.

    Attributes:
        axes_mm: positions of the voxel centres along x, y and z, shaped to broadcast as (z, y, x).
        bone_mm: (z, y, x) signed distance to the nearest bone surface, negative inside.
        kind: (z, y, x) which kind of bone is nearest.
        marks: spots inside bone, drawn after all bones.
    """

    axes_mm: tuple[Array, Array, Array]
    bone_mm: Array
    kind: npt.NDArray[np.uint8]
    marks: list[Mark] = field(default_factory=list)

    def box(self, low_mm: npt.ArrayLike, high_mm: npt.ArrayLike) -> Box | None:
        """Voxels between two corners (x, y, z), or None where the window does not reach them."""
        slices = []
        for axis, low, high in zip(
            self.axes_mm, np.asarray(low_mm), np.asarray(high_mm), strict=True
        ):
            first, last = np.searchsorted(axis.ravel(), (low, high))
            if first >= last:
                return None
            slices.append(slice(int(first), int(last)))
        return slices[2], slices[1], slices[0]

    def coordinates(self, box: Box) -> tuple[Array, Array, Array]:
        """Positions x, y, z of a box's voxels, each along its own axis."""
        x, y, z = self.axes_mm
        return x[:, :, box[2]], y[:, box[1], :], z[box[0], :, :]

    def add(
        self,
        kind: int,
        corners_mm: tuple[npt.ArrayLike, npt.ArrayLike],
        distance: Distance,
        blend_mm: float = 2.5,
    ) -> None:
        """Unite a shape with the bone drawn so far; `blend_mm` rounds the seam."""
        box = self.box(np.asarray(corners_mm[0]) - 4.0, np.asarray(corners_mm[1]) + 4.0)
        if box is None:
            return
        new = distance(*self.coordinates(box))
        old = self.bone_mm[box]
        self.kind[box] = np.where(new < old, kind, self.kind[box])
        seam = np.maximum(blend_mm - np.abs(new - old), 0)
        self.bone_mm[box] = np.minimum(new, old) - seam * seam / (4 * blend_mm)

    def carve(self, corners_mm: tuple[npt.ArrayLike, npt.ArrayLike], distance: Distance) -> None:
        """Take a shape out of the bone drawn so far."""
        box = self.box(np.asarray(corners_mm[0]) - 4.0, np.asarray(corners_mm[1]) + 4.0)
        if box is not None:
            cut = -distance(*self.coordinates(box))
            self.bone_mm[box] = np.maximum(self.bone_mm[box], cut)

    def add_capsule(
        self,
        kind: int,
        start: npt.ArrayLike,
        end: npt.ArrayLike,
        radii_mm: tuple[float, float],
    ) -> None:
        """Unite a rod between two points (x, y, z mm) whose radius changes along its length."""
        corners = capsule_corners(start, end, max(radii_mm))
        self.add(kind, corners, lambda x, y, z: capsule(x, y, z, start, end, radii_mm))

    def add_ellipsoid(self, kind: int, centre: npt.ArrayLike, radii_mm: Triple) -> None:
        """Unite an axis-parallel ellipsoid."""
        reach = np.asarray(radii_mm)
        corners = (np.asarray(centre) - reach, np.asarray(centre) + reach)
        self.add(kind, corners, lambda x, y, z: ellipsoid(x, y, z, centre, radii_mm))


def blank_canvas(shape: Index, spacing_mm: Triple, low_mm: Triple) -> Canvas:
    """An empty window of `shape` (z, y, x) whose first voxel centre lies at `low_mm` (x, y, z)."""
    x, y, z = (
        (low + step * np.arange(count)).astype(np.float32)
        for low, step, count in zip(low_mm, spacing_mm[::-1], shape[::-1], strict=True)
    )
    return Canvas(
        axes_mm=(x[None, None, :], y[None, :, None], z[:, None, None]),
        bone_mm=np.full(shape, FAR_MM, dtype=np.float32),
        kind=np.zeros(shape, dtype=np.uint8),
    )


def capsule_corners(
    start: npt.ArrayLike, end: npt.ArrayLike, radius_mm: float
) -> tuple[npt.ArrayLike, npt.ArrayLike]:
    """Bounding corners (x, y, z) of a rod."""
    low = np.minimum(start, end) - radius_mm
    return low, np.maximum(start, end) + radius_mm


def capsule(
    x: Array,
    y: Array,
    z: Array,
    start: npt.ArrayLike,
    end: npt.ArrayLike,
    radii_mm: tuple[float, float],
) -> Array:
    """Signed distance to a rod between two points with a radius at each."""
    origin = np.asarray(start, dtype=np.float32)
    axis = np.asarray(end, dtype=np.float32) - origin
    dx, dy, dz = x - origin[0], y - origin[1], z - origin[2]
    along = (dx * axis[0] + dy * axis[1] + dz * axis[2]) / np.float32(axis @ axis)
    along = np.clip(along, 0, 1)
    square = (dx - along * axis[0]) ** 2 + (dy - along * axis[1]) ** 2 + (dz - along * axis[2]) ** 2
    first, second = np.float32(radii_mm[0]), np.float32(radii_mm[1])
    return np.sqrt(square) - (first + (second - first) * along)


def ellipsoid(
    x: Array, y: Array, z: Array, centre: npt.ArrayLike, radii_mm: npt.ArrayLike
) -> Array:
    """Near-signed distance to an axis-parallel ellipsoid (exact on its surface)."""
    c, r = np.asarray(centre, dtype=np.float32), np.asarray(radii_mm, dtype=np.float32)
    px, py, pz = (x - c[0]) / r[0], (y - c[1]) / r[1], (z - c[2]) / r[2]
    length = np.sqrt(px * px + py * py + pz * pz)
    slope = np.sqrt((px / r[0]) ** 2 + (py / r[1]) ** 2 + (pz / r[2]) ** 2)
    return length * (length - 1) / np.maximum(slope, np.float32(1e-4))


def coverage(distance_mm: Array, edge_mm: float = 1.0) -> Array:
    """Share of a voxel that lies inside a surface, from its signed distance."""
    return np.clip(np.float32(0.5) - distance_mm / np.float32(edge_mm), 0, 1)


def smooth_noise(
    rng: np.random.Generator, shape: Index, spacing_mm: Sequence[float], scale_mm: Sequence[float]
) -> Array:
    """Unit-variance random field that varies over about `scale_mm` (per axis z, y, x).

    White noise on a coarse lattice, interpolated by cubic B-splines; no BLAS, so that equal seeds
    give equal bits with any number of threads.
    """
    steps = [max(scale / step, 1.0) for scale, step in zip(scale_mm, spacing_mm, strict=True)]
    lattice = [int(np.ceil(count / step)) + 4 for count, step in zip(shape, steps, strict=True)]
    values: Array = rng.standard_normal(lattice, dtype=np.float32)
    for axis, (count, step) in enumerate(zip(shape, steps, strict=True)):
        values = _interpolate(values, axis, count, step)
    return values


def _interpolate(values: Array, axis: int, count: int, step: float) -> Array:
    """Refine one axis by a cubic B-spline whose weights keep the variance at 1 everywhere."""
    position = np.arange(count) / step
    base = position.astype(int)
    t = position - base
    weights = np.stack(
        [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]
    )
    weights /= np.sqrt((weights**2).sum(axis=0))
    along = [1, 1, 1]
    along[axis] = count
    total = np.take(values, base, axis=axis) * weights[0].astype(np.float32).reshape(along)
    for tap in (1, 2, 3):
        taps = weights[tap].astype(np.float32).reshape(along)
        part = np.take(values, base + tap, axis=axis)
        part *= taps
        total += part
    return total
