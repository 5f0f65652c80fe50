"""What the training scans of a model were like, and whether values can be Hounsfield units at all.

A `Scope` is small enough to stand in the plan, so that it goes wherever a network goes, and it
names no case: a fingerprint does, and stays with the data.
"""

from collections import Counter
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from bonemet_auto.fingerprint import HISTOGRAM_EDGES_HU
from bonemet_auto.plan_schema import Range, Scope
from bonemet_auto.schema import Fingerprint

SOFT_HU = (0, 144)
"""Muscle, blood and organs with or without contrast medium; fat lies below, bone above."""

_AIR_HU = -900
_NARROWEST_CT_HU = 150
_CLIPPED_SHARE = 0.01


def scope_of(fingerprint: Fingerprint) -> Scope | None:
    """The scope of a dataset; None of one without cases."""
    cases = fingerprint.cases
    if not cases:
        return None
    lesions = Counter(lesion.source for case in cases for lesion in case.lesions)
    spacings = np.array([case.spacing_mm for case in cases])
    z, y, x = zip(spacings.min(axis=0).tolist(), spacings.max(axis=0).tolist(), strict=True)
    extents = spacings * np.array([case.shape for case in cases])
    least = extents.min(axis=0).tolist()
    return Scope(
        cases=len(cases),
        patients=len({case.patient_id for case in cases}),
        lesions={source: n for source, n in sorted(lesions.items(), key=str) if source is not None},
        lesions_of_unknown_source=lesions[None],
        spacing_mm=(z, y, x),
        least_extent_mm=(least[0], least[1], least[2]),
        bone_hu=_range(median_hu(case.bone_histogram) for case in cases),
        soft_tissue_hu=_range(median_hu(case.body_histogram, SOFT_HU) for case in cases),
    )


def median_hu(
    histogram: npt.ArrayLike, within_hu: tuple[float, float] = (-np.inf, np.inf)
) -> float | None:
    """Median of counts in `HISTOGRAM_EDGES_HU` bins; None where nothing was counted.

    Args:
        histogram: (bins,) counts.
        within_hu: count only the bins that lie between these values.
    """
    first, last = np.searchsorted(HISTOGRAM_EDGES_HU, within_hu)
    counts = np.asarray(histogram, dtype=np.float64)[first:last]
    if not counts.any():
        return None
    edges = HISTOGRAM_EDGES_HU[first:][: len(counts) + 1]
    share = np.concatenate([[0.0], np.cumsum(counts)]) / counts.sum()
    return float(np.interp(0.5, share, edges))


def unlike_hu(hu: npt.NDArray[np.int16]) -> str | None:
    """Why values can hardly be Hounsfield units, in words that go after a scan's name; or None."""
    low, high = int(hu.min()), int(hu.max())
    clipped = low > _AIR_HU and float((hu == low).mean()) > _CLIPPED_SHARE
    if low < 0 and high - low >= _NARROWEST_CT_HU and not clipped:
        return None
    return (
        f"values from {low} to {high} do not look like Hounsfield units (8-bit, windowed, MR, or "
        "stored without their offset?); check how it was exported"
    )


def _range(medians: Iterable[float | None]) -> Range | None:
    known = [median for median in medians if median is not None]
    return (min(known), max(known)) if known else None
