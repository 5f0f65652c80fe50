"""FROC and average precision over the candidates of a cohort, as functions of patient weights."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bonemet_auto.evaluation.bootstrap import FloatArray, IdArray, Statistic, ratio

FROC_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives per scan at which LUNA16 reads the curve; their mean is the CPM."""


@dataclass(frozen=True)
class Candidates:
    """All predictions of a cohort, and what there was to find.

    Attributes:
        scores: (n,) scores.
        hits: (n,) whether the prediction found a lesion that no better one had found.
        patients: (n,) patient number of each prediction.
        references: (patients,) annotated lesions of each patient.
        scans: (patients,) scans of each patient.
    """

    scores: FloatArray
    hits: npt.NDArray[np.bool_]
    patients: IdArray
    references: FloatArray
    scans: FloatArray
    _last: list[tuple[FloatArray, tuple[FloatArray, FloatArray]]] = field(
        default_factory=list, init=False, repr=False, compare=False
    )

    def counts(self, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        """True and false positives at each distinct score, highest first.

        The last answer is kept, because figures of one curve are read at the same weights one after
        the other.

        Args:
            weights: (replicates, patients); not to be changed in place.

        Returns:
            Two (replicates, distinct scores) arrays that count all predictions down to each score.
        """
        if not self._last or self._last[0][0] is not weights:
            self._last[:] = [(weights, self._count(weights))]
        return self._last[0][1]

    def _count(self, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        order = np.argsort(-self.scores, kind="stable")
        ranked = self.scores[order]
        # A threshold cannot fall between equal scores, so counts are read at the last of each.
        last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)[: ranked.size])
        drawn = weights[:, self.patients[order]]
        found = np.cumsum(drawn * self.hits[order], axis=1)[:, last]
        return found, np.cumsum(drawn, axis=1)[:, last] - found


def froc_sensitivity(candidates: Candidates, rates: Sequence[float]) -> Statistic:
    """Lesion sensitivity at given false positives per scan, averaged over `rates`.

    For each rate the highest sensitivity of any threshold with at most that many false positives
    per scan; no interpolation, so that every point can be reached. With `FROC_RATES` it is the CPM.
    """

    def statistic(weights: FloatArray) -> FloatArray:
        found, false = candidates.counts(weights)
        scans = (weights @ candidates.scans)[:, None]
        best = [np.max(found * (false <= rate * scans), axis=1, initial=0.0) for rate in rates]
        return ratio(np.mean(best, axis=0), weights @ candidates.references)

    return statistic


def average_precision(candidates: Candidates) -> Statistic:
    """Area under the precision-recall steps: sum of precision times gain in recall.

    Recall counts all annotated lesions, those without any candidate too; precision is taken as it
    is, without interpolation or envelope.
    """

    def statistic(weights: FloatArray) -> FloatArray:
        found, false = candidates.counts(weights)
        gains = np.diff(found, axis=1, prepend=0.0)
        precision = found / np.maximum(found + false, 1.0)
        return ratio(np.sum(gains * precision, axis=1), weights @ candidates.references)

    return statistic
