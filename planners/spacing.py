"""The planned voxel spacing and the HU window, from a dataset's fingerprint."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bonemet_auto.errors import PlanError
from bonemet_auto.fingerprint import HISTOGRAM_EDGES_HU
from bonemet_auto.geometry import Triple
from bonemet_auto.schema import Fingerprint

COARSE_AXIS_RATIO = 3.0
COARSE_AXIS_PERCENTILE = 10
SMALL_LESION_PERCENTILE = 10
COARSENED_MM = 3.0
"""No axis is coarsened beyond this for the sake of speed: the cortex would be gone."""

LOW_HU = (-250.0, -100.0)
HIGH_HU = (800.0, 1800.0)
WINDOW_PERCENTILES = (0.5, 99.5)
_NO_VOXELS = ((LOW_HU[1], HIGH_HU[0]), 250.0, 250.0)
_SMALLEST_SD_HU = 1.0

Table = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Intensities:
    """What `normalise` needs, all in HU."""

    window_hu: tuple[float, float]
    mean_hu: float
    sd_hu: float


def target_spacing(fingerprint: Fingerprint, coarsest_lesion_voxels: float | None) -> Triple:
    """Median spacing of each axis; the 10th percentile on an axis that is much coarser.

    Coarse is nnU-Net's rule: more than 3 times the other axes, and with less than a third of their
    voxels (both in the median). The result never becomes finer than the other axes.

    Args:
        fingerprint: of the dataset.
        coarsest_lesion_voxels: for small budgets: axes that are finer than a small lesion's edge
            divided by this are coarsened to it, to `COARSENED_MM` at most. None keeps them.

    Raises:
        PlanError: the fingerprint has no case.
    """
    if not fingerprint.cases:
        raise PlanError(
            f"{fingerprint.dataset} has no usable training case; mend its faults first."
        )
    spacings = np.array([case.spacing_mm for case in fingerprint.cases])
    shape = np.median([case.shape for case in fingerprint.cases], axis=0)
    target = np.median(spacings, axis=0)
    coarse = int(target.argmax())
    others = [axis for axis in range(3) if axis != coarse]
    much_coarser = target[coarse] > COARSE_AXIS_RATIO * target[others].max()
    if much_coarser and COARSE_AXIS_RATIO * shape[coarse] < shape[others].min():
        finer = np.percentile(spacings[:, coarse], COARSE_AXIS_PERCENTILE)
        target[coarse] = max(finer, target[others].max())
    if coarsest_lesion_voxels is not None:
        wanted = small_lesion_mm(fingerprint) / coarsest_lesion_voxels
        target = np.maximum(target, min(wanted, COARSENED_MM))
    z, y, x = target.round(4).tolist()
    return z, y, x


def small_lesion_mm(fingerprint: Fingerprint) -> float:
    """10th percentile of the lesions' edge (cube root of the box volume); 0 without lesions."""
    sizes = [lesion.size_mm for case in fingerprint.cases for lesion in case.lesions]
    edges = np.cbrt(np.prod(sizes, axis=1)) if sizes else np.zeros(1)
    return float(np.percentile(edges, SMALL_LESION_PERCENTILE))


def planned_shapes(fingerprint: Fingerprint, spacing_mm: Triple) -> Table:
    """(cases, 3) voxels of each whole scan at the planned spacing."""
    extents = np.array([np.multiply(c.shape, c.spacing_mm) for c in fingerprint.cases])
    return np.maximum(1, np.rint(extents / np.asarray(spacing_mm)))


def lesion_sizes(fingerprint: Fingerprint, spacing_mm: Triple) -> Table:
    """(lesions, 3) box edges in planned voxels, at least 1.

    Raises:
        PlanError: the cohort has no lesion.
    """
    sizes = [lesion.size_mm for case in fingerprint.cases for lesion in case.lesions]
    if not sizes:
        raise PlanError(
            f"{fingerprint.dataset} has no lesion in any of its {len(fingerprint.cases)} cases: "
            "there is nothing to plan anchors for. Add annotated cases."
        )
    return np.maximum(1.0, np.asarray(sizes, dtype=np.float64) / np.asarray(spacing_mm))


def intensities(fingerprint: Fingerprint) -> Intensities:
    """Window, mean and spread of lesion and bone together.

    The window runs from the 0.5 to the 99.5 percentile, its low end held within -250..-100 HU and
    its high end within 800..1800 HU: a window of the lesions alone would hide healthy bone and
    air, and metal must not stretch it. Mean and standard deviation are those of the clipped values.
    """
    edges = HISTOGRAM_EDGES_HU.astype(np.float64)
    counts = np.zeros(len(edges) - 1)
    for case in fingerprint.cases:
        counts += np.asarray(case.bone_histogram) + np.asarray(case.lesion_histogram)
    if counts.sum() == 0:
        return Intensities(*_NO_VOXELS)
    cumulative = np.concatenate([[0.0], counts.cumsum()]) / counts.sum()
    low, high = np.interp(np.asarray(WINDOW_PERCENTILES) / 100, cumulative, edges)
    window = (float(np.clip(low, *LOW_HU).round()), float(np.clip(high, *HIGH_HU).round()))
    values = np.clip((edges[1:] + edges[:-1]) / 2, *window)
    mean = float(np.average(values, weights=counts))
    sd = float(np.sqrt(np.average((values - mean) ** 2, weights=counts)))
    return Intensities(window, round(mean, 1), max(_SMALLEST_SD_HU, round(sd, 1)))
