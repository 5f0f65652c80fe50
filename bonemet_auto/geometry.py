"""Where a voxel grid lies in the patient.

Array axes are (z, y, x); points in the patient are LPS millimetres in (x, y, z) order, as DICOM and
ITK give them. Only this module and `images.py` see both orders.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Triple = tuple[float, float, float]
Index = tuple[int, int, int]

GEOMETRY_TOLERANCE = 1e-3
"""Relative to a voxel: NIfTI stores float32, and writers round; a real mismatch is far larger."""

_END_NAMES = tuple(f"end of the {axis} axis (direction)" for axis in "zyx")


@dataclass(frozen=True)
class Geometry:
    """A voxel grid in the patient.

    Attributes:
        shape: voxels along (z, y, x).
        spacing_mm: voxel edge along (z, y, x).
        origin_lps_mm: LPS position of the centre of voxel (0, 0, 0).
        direction: three LPS unit vectors, one for each of the array axes z, y, x.
    """

    shape: Index
    spacing_mm: Triple
    origin_lps_mm: Triple = (0.0, 0.0, 0.0)
    direction: tuple[Triple, Triple, Triple] = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of one voxel."""
        return float(np.prod(self.spacing_mm))

    @property
    def orientation(self) -> str:
        """Where each axis points at, as in file headers: x, y, z, of L/R, P/A and S/I."""
        return "".join(
            "LPS"[axis] if vector[axis] >= 0 else "RAI"[axis]
            for vector in self.direction[::-1]
            for axis in [int(np.abs(vector).argmax())]
        )

    def index_to_lps(self, index: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Map (..., 3) voxel indices z y x (centres at integers) to (..., 3) LPS mm."""
        steps = np.asarray(self.direction) * np.asarray(self.spacing_mm)[:, None]
        return np.asarray(index, dtype=np.float64) @ steps + np.asarray(self.origin_lps_mm)

    def lps_to_index(self, points_mm: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Map (..., 3) LPS mm to (..., 3) voxel indices z y x; inverse of `index_to_lps`."""
        offsets = np.asarray(points_mm, dtype=np.float64) - np.asarray(self.origin_lps_mm)
        steps = np.asarray(self.direction) * np.asarray(self.spacing_mm)[:, None]
        return offsets @ np.linalg.inv(steps)

    def box_corners_lps(self, box: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """(8, 3) LPS corners of a half-open box z0 y0 x0 z1 y1 x1; voxel i spans [i, i + 1)."""
        low, high = np.asarray(box, dtype=np.float64).reshape(2, 3)
        picks = np.indices((2, 2, 2)).reshape(3, 8).T
        return self.index_to_lps(np.where(picks == 0, low, high) - 0.5)

    def mismatch(self, other: "Geometry") -> str | None:
        """Say how `other` differs from this grid; None where it does so by float noise at most."""
        if self.shape != other.shape:
            return f"shape {other.shape} against {self.shape} (z, y, x voxels)"
        if not np.allclose(self.spacing_mm, other.spacing_mm, rtol=GEOMETRY_TOLERANCE, atol=0):
            return (
                f"spacing {_short(other.spacing_mm)} against {_short(self.spacing_mm)} mm (z, y, x)"
            )
        # The origin and the last voxel along each axis: the far corner alone stays where it is when
        # axes of equal length are exchanged.
        ends = np.vstack([np.zeros(3), np.diag(np.asarray(self.shape) - 1.0)])
        allowed_mm = max(0.01, 0.05 * min(self.spacing_mm))
        for name, index in zip(("origin", *_END_NAMES), ends, strict=True):
            ours, theirs = self.index_to_lps(index), other.index_to_lps(index)
            if np.abs(ours - theirs).max() > allowed_mm:
                return f"{name} at {_short(theirs)} against {_short(ours)} mm (LPS)"
        return None


def _short(values: npt.ArrayLike) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in np.asarray(values, dtype=float)) + ")"
