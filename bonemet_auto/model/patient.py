"""One probability per patient from the lesions found in the scan.

Three rules share one interface, `PatientRule`: noisy-or, the maximum, and a small fitted head;
`patient_choice` picks among them out of fold. The head reads scalars that mean the same in every
fold, never embeddings: five networks share no space.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from bonemet_auto.errors import DataError
from bonemet_auto.result_schema import OperatingPoint

FloatArray = npt.NDArray[np.float64]

MIN_PATIENTS = 20
MIN_PATIENTS_PER_CLASS = 5
HEAD_C = 1.0
"""Inverse L2 penalty of the head, on standardised scalars: each weight has a unit normal prior."""

POOLED_SCALARS = (
    "logit_noisy_or",
    "mean_logit_p_lung",
    "logit_p_lung_of_strongest",
    "log_volume_mm3",
    "mean_hu",
    "log1p_expected_count",
)
"""What `PooledHead.weights` multiply, in this order."""

# Neither the source head nor a cohort of some hundred patients can tell 0.001 from 0. The limit
# keeps logits finite and bounds what one patient can add to a log loss.
SURE = 1e-3
_VOLUME_MM3 = (1.0, 1e7)  # one voxel; ten litres, more than any bone
_HU = (-1024.0, 3071.0)  # as cases are stored
_CONSTANT = 1e-3  # a scalar that varies less over patients is not stretched to unit variance


@dataclass(frozen=True, eq=False)
class PatientLesions:
    """What was found in one patient at or above the operating threshold, in any order.

    Attributes:
        scores: (n,) detection scores in [0, 1]; n may be 0.
        p_lung: (n,) probabilities in [0, 1] of a lung origin.
        volume_mm3: (n,) volumes.
        mean_hu: (n,) mean HU inside each lesion.

    Raises:
        ValueError: arrays that are not 1D, differ in length or hold NaN.
    """

    scores: npt.NDArray[np.floating]
    p_lung: npt.NDArray[np.floating]
    volume_mm3: npt.NDArray[np.floating]
    mean_hu: npt.NDArray[np.floating]

    def __post_init__(self) -> None:
        arrays = (self.scores, self.p_lung, self.volume_mm3, self.mean_hu)
        shapes = [array.shape for array in arrays]
        if self.scores.ndim != 1 or len(set(shapes)) > 1:
            raise ValueError(f"lesions need four arrays of one shape (n,), found {shapes}")
        if any(np.isnan(array).any() for array in arrays):
            raise ValueError("lesions with NaN")

    @property
    def found(self) -> bool:
        """Whether there is a lesion at all; a candidate with score 0 is none."""
        return bool((self.scores > 0).any())


@dataclass(frozen=True)
class LabelledPatient:
    """One patient, or one scan of a patient, to fit on.

    Attributes:
        lesions: found by a network that never trained on this patient.
        label: 1 lung-cancer metastasis, 0 not, None unknown (left out of every fit).
        fold: the fold that this patient validated; None where there are no folds.
        patient_id: scans of one patient share it; None where there are no others.
    """

    lesions: PatientLesions
    label: Literal[0, 1] | None
    fold: int | None = None
    patient_id: str | None = None


class PatientRule(Protocol):
    """A way from a patient's lesions to P(the patient has a lung-cancer metastasis)."""

    @property
    def no_lesion_probability(self) -> float:
        """The answer for patients in whom nothing is found."""
        ...

    def probability(self, lesions: PatientLesions) -> float:
        """Return the estimate, in [0, 1], whatever the order of the lesions."""
        ...


def noisy_or(scores: Iterable[float], p_lung: Iterable[float]) -> float:
    """Estimate the probability that at least one lesion is real and of lung origin.

    `1 - prod(1 - score * p)`: lesions count as independent causes, each by the
    trust in its detection.

    Args:
        scores: detection score in [0, 1] of each lesion; a sequence or a 1D tensor.
        p_lung: probability in [0, 1] of a lung origin of each lesion, in the same order.

    Returns:
        A probability; 0.0 without lesions, for which the caller has its own rule.
    """
    pairs = zip(scores, p_lung, strict=True)
    return 1.0 - math.prod(1.0 - float(score) * float(p) for score, p in pairs)


@dataclass(frozen=True)
class NoisyOr:
    """Lesions as independent causes: see `noisy_or`."""

    no_lesion_probability: float

    def probability(self, lesions: PatientLesions) -> float:
        """As `PatientRule.probability`."""
        if not lesions.found:
            return self.no_lesion_probability
        return noisy_or(lesions.scores, lesions.p_lung)


@dataclass(frozen=True)
class Maximum:
    """The lesion that is most surely real and of lung origin speaks for all: `max(score * p)`."""

    no_lesion_probability: float

    def probability(self, lesions: PatientLesions) -> float:
        """As `PatientRule.probability`."""
        if not lesions.found:
            return self.no_lesion_probability
        return float(np.max(np.multiply(lesions.scores, lesions.p_lung, dtype=np.float64)))


@dataclass(frozen=True)
class PooledHead:
    """Logistic regression on the pooled scalars of a patient; 8 numbers.

    Attributes:
        weights: one per entry of `POOLED_SCALARS`, for scalars as they are (not standardised).
        intercept: logit where all scalars are 0.
        no_lesion_probability: as `PatientRule.no_lesion_probability`.
    """

    weights: tuple[float, ...]
    intercept: float
    no_lesion_probability: float

    def probability(self, lesions: PatientLesions) -> float:
        """As `PatientRule.probability`."""
        if not lesions.found:
            return self.no_lesion_probability
        logit = self.intercept + float(pool(lesions) @ np.array(self.weights))
        return 0.5 + 0.5 * math.tanh(logit / 2)  # the logistic function, without overflow


def rule_of(point: OperatingPoint) -> PatientRule:
    """The rule of an operating point."""
    record, empty = point.patient_rule, point.no_lesion_probability
    if record.name == "head":
        return PooledHead(record.weights, record.intercept, empty)
    return Maximum(empty) if record.name == "maximum" else NoisyOr(empty)


def pool(lesions: PatientLesions) -> FloatArray:
    """Reduce the lesions of a patient to the (6,) finite `POOLED_SCALARS`.

    Means, volume and count weigh each lesion by its squared score, so that many weak candidates do
    not outvote one sure lesion, and one with score 0 counts for nothing.

    Args:
        lesions: at least one of them with a score above 0.
    """
    scores, p_lung, volumes, hu = (
        np.asarray(array, dtype=np.float64)
        for array in (lesions.scores, lesions.p_lung, lesions.volume_mm3, lesions.mean_hu)
    )
    logits = _logit(p_lung)
    trust = (scores / scores.max()) ** 2  # relative: tiny scores do not all underflow to 0
    share = trust / trust.sum()
    _, strongest = max(zip(scores, logits, strict=True))  # among equal scores the higher p
    volume = scores**2 @ np.minimum(volumes, _VOLUME_MM3[1])
    return np.array(
        [
            _logit(np.array(noisy_or(scores, p_lung))),
            share @ logits,
            strongest,
            np.log(np.clip(volume, *_VOLUME_MM3)),
            share @ np.clip(hu, *_HU),
            np.log1p((scores**2).sum()),
        ]
    )


def _logit(probability: FloatArray) -> FloatArray:
    inside = np.clip(probability, SURE, 1 - SURE)
    return np.log(inside / (1 - inside))


def fit_noisy_or(patients: Sequence[LabelledPatient]) -> NoisyOr:
    """Noisy-or with the estimate for patients in whom nothing is found."""
    return NoisyOr(_no_lesion_probability(patients))


def fit_maximum(patients: Sequence[LabelledPatient]) -> Maximum:
    """Maximum with the estimate for patients in whom nothing is found."""
    return Maximum(_no_lesion_probability(patients))


def fit_head(patients: Sequence[LabelledPatient]) -> PooledHead:
    """L2-penalised logistic regression on the pooled scalars of patients with label and lesions.

    Raises:
        DataError: fewer than `MIN_PATIENTS` of them, or than `MIN_PATIENTS_PER_CLASS` of a class.
    """
    from sklearn.linear_model import LogisticRegression

    used = [item for item in patients if item.label is not None and item.lesions.found]
    labels = np.array([item.label == 1 for item in used], dtype=bool)
    n_lung, n_other = int(labels.sum()), int((~labels).sum())
    if len(used) < MIN_PATIENTS or min(n_lung, n_other) < MIN_PATIENTS_PER_CLASS:
        raise DataError(
            f"too few patients for a patient head: {n_lung} with and {n_other} without lung-cancer "
            f"metastasis have lesions found and a label; it needs {MIN_PATIENTS}, and "
            f"{MIN_PATIENTS_PER_CLASS} of each. Add patients, or keep noisy-or."
        )
    pooled = np.stack([pool(item.lesions) for item in used])
    centre, spread = pooled.mean(axis=0), pooled.std(axis=0)
    scale = np.where(spread > _CONSTANT, spread, 1.0)
    model = LogisticRegression(C=HEAD_C, tol=1e-8, max_iter=1000)
    model.fit((pooled - centre) / scale, labels)
    weights = model.coef_[0] / scale
    return PooledHead(
        weights=tuple(weights.tolist()),
        intercept=float(model.intercept_[0] - centre @ weights),
        no_lesion_probability=_no_lesion_probability(patients),
    )


def _no_lesion_probability(patients: Sequence[LabelledPatient]) -> float:
    empty = [item for item in patients if not item.lesions.found]
    return share_of_lung([item.label for item in empty if item.label is not None])


def share_of_lung(labels: Sequence[int]) -> float:
    """Share of 1 among the labels of patients, with one pseudo-count on each side."""
    return (sum(labels) + 1) / (len(labels) + 2)
