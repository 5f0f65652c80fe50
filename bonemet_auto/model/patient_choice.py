"""Which rule gives a patient's probability, chosen on patients that it was not fitted on."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bonemet_auto.errors import DataError
from bonemet_auto.model.patient import (
    MIN_PATIENTS,
    SURE,
    FloatArray,
    LabelledPatient,
    PatientRule,
    fit_head,
    fit_maximum,
    fit_noisy_or,
)

DEALT_FOLDS = 5
RuleName = Literal["noisy_or", "maximum", "head"]
Fit = Callable[[Sequence[LabelledPatient]], PatientRule]
FITS: dict[RuleName, Fit] = {"noisy_or": fit_noisy_or, "maximum": fit_maximum, "head": fit_head}

_ROUNDING = 1e-9  # one patient that differs gives a gain of just one standard error: not above it


@dataclass(frozen=True)
class ComparedRule:
    """A rule's error on patients that its fit had not seen.

    Attributes:
        name: key of `FITS`.
        log_loss: mean over scans, probabilities limited to [0.001, 0.999].
        gain: mean over scans of noisy-or's loss minus this rule's; above 0 it is better.
        gain_standard_error: of that mean of paired differences; scans of a patient count together.
    """

    name: RuleName
    log_loss: float
    gain: float
    gain_standard_error: float


@dataclass(frozen=True)
class RuleChoice:
    """The rule to ship, fitted on all patients, with what it was compared to.

    Attributes:
        name: key of `FITS`.
        rule: fitted on all patients.
        compared: noisy-or first; empty where the patients are too few to compare on.
        reason: why this rule, in one sentence.
    """

    name: RuleName
    rule: PatientRule
    compared: tuple[ComparedRule, ...]
    reason: str


def out_of_fold(fit: Fit, patients: Sequence[LabelledPatient]) -> FloatArray:
    """Each patient's probability by the rule that was fitted on the other folds.

    Where not all patients have a fold, or all the same, they are dealt by label to `DEALT_FOLDS`
    groups, in their order.

    Args:
        fit: from patients to a rule: one of `FITS`, or a whole choice among them.
        patients: each scan once.

    Returns:
        (n,) probabilities, of unlabelled patients too.

    Raises:
        DataError: as `fit` does on the patients of the other folds.
    """
    folds = _folds(patients)
    probabilities = np.empty(len(patients))
    for fold in set(folds):
        rule = fit([item for item, own in zip(patients, folds, strict=True) if own != fold])
        for row, (item, own) in enumerate(zip(patients, folds, strict=True)):
            if own == fold:
                probabilities[row] = rule.probability(item.lesions)
    return probabilities


def _folds(patients: Sequence[LabelledPatient]) -> list[int]:
    folds = [item.fold for item in patients if item.fold is not None]
    if len(folds) == len(patients) and len(set(folds)) > 1:
        return folds
    labels = [item.label for item in patients]
    return [labels[:row].count(label) % DEALT_FOLDS for row, label in enumerate(labels)]


def choose_rule(patients: Sequence[LabelledPatient]) -> RuleChoice:
    """Choose by out-of-fold log loss; noisy-or stays unless another is clearly better.

    Clearly: by more than one standard error of the paired difference over patients (Breiman et al.,
    Classification and Regression Trees, 1984, section 3.4.3, with differences in place of levels);
    the best of those. With fewer than `MIN_PATIENTS` labelled patients noisy-or stays uncompared,
    and where `fit_head` refuses a fold's patients the head is left out; the reason says so.

    Args:
        patients: each scan once; those without label are left out.
    """
    known = [item for item in patients if item.label is not None]
    owners = _owners(known)
    n_patients = len(set(owners))
    if n_patients < MIN_PATIENTS:
        few = f"{n_patients} patients with a label, fewer than {MIN_PATIENTS}"
        return RuleChoice("noisy_or", fit_noisy_or(known), (), f"noisy_or kept: {few}")
    baseline = _log_losses("noisy_or", known)
    compared = [_compared("noisy_or", baseline, baseline, owners)]
    compared.append(_compared("maximum", baseline, _log_losses("maximum", known), owners))
    remark = ""
    try:
        compared.append(_compared("head", baseline, _log_losses("head", known), owners))
    except DataError as error:
        remark = f"; head left out: {error}"
    better = [c for c in compared if c.gain - c.gain_standard_error > _ROUNDING]
    best = max(better, key=lambda item: item.gain, default=compared[0])
    why = "out of fold by more than one standard error" + remark
    reason = f"{best.name} beats noisy_or {why}" if better else f"noisy_or kept: none better {why}"
    return RuleChoice(best.name, FITS[best.name](known), tuple(compared), reason)


def _log_losses(name: RuleName, known: Sequence[LabelledPatient]) -> FloatArray:
    probabilities = out_of_fold(FITS[name], known)
    lung = np.array([item.label == 1 for item in known])
    return -np.log(np.clip(np.where(lung, probabilities, 1 - probabilities), SURE, 1 - SURE))


def _owners(known: Sequence[LabelledPatient]) -> list[int]:
    """Number of each scan's patient."""
    numbers: dict[str | int, int] = {}
    keys = [row if item.patient_id is None else item.patient_id for row, item in enumerate(known)]
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def _compared(
    name: RuleName, baseline: FloatArray, loss: FloatArray, owners: Sequence[int]
) -> ComparedRule:
    gains = baseline - loss
    # Sums over patients: scans of one are not independent of each other.
    sums = np.bincount(owners, gains - gains.mean())
    error = math.sqrt(len(sums) / (len(sums) - 1) * float(sums @ sums)) / len(gains)
    return ComparedRule(name, float(loss.mean()), float(gains.mean()), error)
