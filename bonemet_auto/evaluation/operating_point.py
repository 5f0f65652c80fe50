"""Thresholds for the end of a training fold, from its own validation cases."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from bonemet_auto.model.patient import noisy_or, share_of_lung
from bonemet_auto.result_schema import OperatingPoint

FloatArray = npt.NDArray[np.float64]

MAX_FP_PER_SCAN = 0.5
FALLBACK_THRESHOLD = 0.5
MIN_PATIENTS_PER_CLASS = 5


@dataclass(frozen=True)
class ScoredCase:
    """All candidates of one validation case, below every threshold too.

    Attributes:
        scores: (n,) detection scores.
        matched: (n,) id of the annotated lesion that each candidate found, 0 for none; no id twice.
        n_reference: annotated lesions.
        p_lung: (n,) source estimates.
        patient_label: 1 lung-cancer metastasis, 0 not, None unknown.
    """

    scores: npt.NDArray[np.floating]
    matched: npt.NDArray[np.integer]
    n_reference: int
    p_lung: npt.NDArray[np.floating]
    patient_label: Literal[0, 1] | None


def choose_operating_point(
    cases: Sequence[ScoredCase], max_fp_per_scan: float = MAX_FP_PER_SCAN
) -> OperatingPoint:
    """Choose score and patient thresholds, and the estimate for patients in whom nothing is found.

    A fold has few cases, so the figures that come with the thresholds are noisy. Each case counts
    as a patient of its own.

    Args:
        cases: the fold's validation cases.
        max_fp_per_scan: false positives allowed per scan, on average.
    """
    scores = np.concatenate([np.empty(0), *(case.scores for case in cases)])
    hits = np.concatenate([np.empty(0, bool), *(case.matched > 0 for case in cases)])
    n_reference = sum(case.n_reference for case in cases)
    threshold, score_rule = _score_threshold(scores, hits, n_reference, max_fp_per_scan, len(cases))
    kept = scores >= threshold
    probabilities = [_probability(case, threshold) for case in cases]
    labels = [case.patient_label for case in cases]
    patient_threshold, patient_rule = choose_patient_threshold(labels, probabilities)
    empty = [case.patient_label for case in cases if not (case.scores >= threshold).any()]
    return OperatingPoint(
        score_threshold=threshold,
        patient_threshold=patient_threshold,
        no_lesion_probability=share_of_lung([label for label in empty if label is not None]),
        rule=f"{score_rule}; {patient_rule}",
        sensitivity=int((hits & kept).sum()) / n_reference if n_reference else None,
        fp_per_scan=int((~hits & kept).sum()) / len(cases) if cases else None,
    )


def _score_threshold(
    scores: FloatArray,
    hits: npt.NDArray[np.bool_],
    n_reference: int,
    max_fp_per_scan: float,
    n_scans: int,
) -> tuple[float, str]:
    """The lowest threshold within the false positives allowed, and its rule.

    No threshold within them finds more on these cases, and a lower one can only find more on
    others; false positives are many more than lesions, so their rate is known better.
    """
    goal = f"lowest with <= {max_fp_per_scan:g} FP per scan"
    levels = np.unique(scores)[::-1]
    found = np.array([np.sum(hits & (scores >= level)) for level in levels])
    false = np.array([np.sum(~hits & (scores >= level)) for level in levels])
    allowed = int((false <= max_fp_per_scan * n_scans).sum())
    if n_reference and found[:allowed].any():
        return float(np.append(levels, 0.0)[allowed - 1 : allowed + 1].mean()), goal
    if n_reference == 0:
        reason = "no annotated lesions"
    elif not scores.size:
        reason = "no candidates"
    else:
        reason = "no candidate finds a lesion within them"
    return FALLBACK_THRESHOLD, f"{FALLBACK_THRESHOLD:g} instead of {goal}: {reason}"


def _probability(case: ScoredCase, threshold: float) -> float:
    kept = case.scores >= threshold
    return noisy_or(case.scores[kept], case.p_lung[kept])


def choose_patient_threshold(
    labels: Sequence[Literal[0, 1] | None], probabilities: Sequence[float]
) -> tuple[float, str]:
    """Threshold of the highest Youden index (nearest to the fallback among equals), and its rule.

    Args:
        labels: of the patients; those unknown are left out.
        probabilities: of the same patients; 0 for those in whom nothing is found, because they are
            always called 0.
    """
    pairs = zip(labels, probabilities, strict=True)
    known = [(p, label) for label, p in pairs if label is not None]
    values = np.array([p for p, _ in known])
    positive = np.array([label == 1 for _, label in known], dtype=bool)
    if min(positive.sum(), (~positive).sum()) < MIN_PATIENTS_PER_CLASS:
        few = f"fewer than {MIN_PATIENTS_PER_CLASS} patients of a class"
        return FALLBACK_THRESHOLD, f"patient threshold {FALLBACK_THRESHOLD:g}: {few}"
    levels = np.unique(values)
    between = (levels[1:] + levels[:-1]) / 2
    youden = [np.mean(values[positive] >= t) - np.mean(values[~positive] >= t) for t in between]
    if max(youden, default=0.0) <= 0:
        useless = "no threshold tells the classes apart"
        return FALLBACK_THRESHOLD, f"patient threshold {FALLBACK_THRESHOLD:g}: {useless}"
    best = between[np.isclose(youden, max(youden))]
    nearest = np.abs(best - FALLBACK_THRESHOLD).argmin()
    return float(best[nearest]), "patient threshold: highest Youden index"
