"""Outlines, thresholds, smallest lesion, source temperature and patient rule, from held-out cases.

Everything is found on cases that the network in question was not trained on. Figures of a whole
model come from settings that left a fold out (`settings_without`), so that no case helps to choose
what is then measured on it.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

from bonemet_auto.consolidation.gather import HeldOutCase
from bonemet_auto.evaluation.bootstrap import patient_weights, ratio
from bonemet_auto.evaluation.detection import FROC_RATES, Candidates, froc_sensitivity
from bonemet_auto.evaluation.operating_point import (
    choose_operating_point,
    choose_patient_threshold,
)
from bonemet_auto.inference.export import counts, pooled_lesions
from bonemet_auto.inference.fuse import USUAL_OUTLINE, Outline
from bonemet_auto.model.patient import LabelledPatient, PatientRule, PooledHead
from bonemet_auto.model.patient_choice import FITS, choose_rule, out_of_fold
from bonemet_auto.result_schema import OperatingPoint, PatientRuleRecord

OUTLINES = tuple(
    Outline(weight, threshold)
    for weight, threshold in itertools.product((0.5, 0.0, 0.25, 0.75, 1.0), (0.5, 0.4, 0.6))
)
"""Ways to draw masks that are tried, the usual one first; it stays as the smallest lesion does."""

SMALLEST_MM3 = (0.0, 20.0, 50.0, 100.0, 200.0)
"""Smallest lesions that are tried; 0 stays unless another is better by a standard error."""

TEMPERATURE_SPREAD = 0.5
"""Prior standard deviation of a temperature's logarithm: a fold has few lesions to tell it from."""

_REPLICATES = 500
_LOG_TEMPERATURE = (-1.5, 1.5)

FloatArray = npt.NDArray[np.float64]
Choice = TypeVar("Choice", float, Outline)


@dataclass(frozen=True)
class Settings:
    """What consolidation finds.

    Attributes:
        point: thresholds, smallest lesion and patient rule.
        temperatures: of each fold's source logits.
        reason: why this patient rule.
    """

    point: OperatingPoint
    temperatures: dict[int, float]
    reason: str


def find_settings(drawn: Mapping[Outline, Sequence[HeldOutCase]]) -> Settings:
    """Settings of the folds that these cases come from.

    Args:
        drawn: the same cases for each way to draw their masks, the usual one among them.
    """
    outline = choose_outline(drawn)
    cases = drawn[outline]
    folds = sorted({case.fold for case in cases})
    temperatures = {
        fold: fit_temperature([case for case in cases if case.fold == fold]) for fold in folds
    }
    cases = [case.at_temperature(temperatures[case.fold]) for case in cases]
    smallest = choose_smallest(cases)
    point = choose_operating_point([case.scored(smallest) for case in cases])
    drawing = {"mask_weight": outline.mask_weight, "mask_threshold": outline.threshold}
    point = point.model_copy(update={"min_volume_mm3": smallest, **drawing})
    patients = [labelled_patient(case, point) for case in cases]
    choice = choose_rule(patients)
    honest = out_of_fold(FITS[choice.name], patients)
    called = [p if item.lesions.found else 0.0 for p, item in zip(honest, patients, strict=True)]
    labels = [case.patient_label for case in cases]
    threshold, rule = choose_patient_threshold(labels, called)
    score_rule = point.rule.split(";")[0]
    point = point.model_copy(
        update={
            "patient_threshold": threshold,
            "patient_rule": record_of(choice.rule, choice.name),
            "no_lesion_probability": choice.rule.no_lesion_probability,
            "rule": f"{score_rule}, over {len(cases)} cases of {len(folds)} folds; {rule}",
        }
    )
    return Settings(point, temperatures, choice.reason)


def settings_without(fold: int, drawn: Mapping[Outline, Sequence[HeldOutCase]]) -> Settings:
    """Settings for the cases of a fold, found on those of the others.

    Its own temperature is the geometric mean of theirs.
    """
    others = find_settings(
        {outline: [case for case in cases if case.fold != fold] for outline, cases in drawn.items()}
    )
    own = float(np.exp(np.mean(np.log(list(others.temperatures.values())))))
    return Settings(others.point, others.temperatures | {fold: own}, others.reason)


def fit_temperature(cases: Sequence[HeldOutCase]) -> float:
    """Temperature of a fold's source logits: most probable one, given those of its hits.

    1 without a hit of known source. Above 1 the network was too sure.
    """
    known = [
        (lesion.p_lung, source)
        for case in cases
        for lesion, source in zip(case.lesions, case.is_lung.tolist(), strict=True)
        if source >= 0
    ]
    if not known:
        return 1.0
    p_lung, truth = np.array(known).T
    inside = np.clip(p_lung, 1e-6, 1 - 1e-6)
    towards_truth = np.where(truth == 1, 1, -1) * np.log(inside / (1 - inside))

    def surprise(log_temperature: float) -> float:
        loss = np.logaddexp(0, -towards_truth / np.exp(log_temperature)).sum()
        return float(loss + 0.5 * (log_temperature / TEMPERATURE_SPREAD) ** 2)

    best = minimize_scalar(surprise, bounds=_LOG_TEMPERATURE, method="bounded")
    return float(np.exp(best.x))


def choose_outline(drawn: Mapping[Outline, Sequence[HeldOutCase]]) -> Outline:
    """How masks are drawn best: by the mean Dice of the annotated lesions, missed ones 0.

    Only lesions above the score threshold that would be chosen with the usual outline count.
    """
    usual = drawn[USUAL_OUTLINE]
    if not any(case.n_reference for case in usual):
        return USUAL_OUTLINE
    threshold = choose_operating_point([case.scored() for case in usual]).score_threshold
    weights = _replicates(usual)
    references = weights @ np.array([float(case.n_reference) for case in usual])
    values = {}
    for outline, cases in drawn.items():
        dice = np.array([
            sum(d for d, lesion in zip(case.dice, case.lesions, strict=True)
                if lesion.score >= threshold)
            for case in cases
        ], dtype=float)  # fmt: skip
        values[outline] = ratio(weights @ dice, references)
    return best_beyond_noise(USUAL_OUTLINE, values)


def choose_smallest(cases: Sequence[HeldOutCase]) -> float:
    """Smallest volume in mm3 of what is reported as a lesion, by CPM."""
    if not any(case.n_reference for case in cases):
        return 0.0
    weights = _replicates(cases)
    values = {smallest: cpm(cases, smallest, weights) for smallest in SMALLEST_MM3}
    return best_beyond_noise(SMALLEST_MM3[0], values)


def best_beyond_noise(usual: Choice, values: Mapping[Choice, FloatArray]) -> Choice:
    """The highest of those better than the usual one by more than one standard error.

    Args:
        usual: what stays if none is.
        values: (1 + replicates,) of each choice: the figure, then over resampled patients. The
            error is that of the paired difference.
    """
    best, most = usual, 0.0
    for choice, value in values.items():
        gain = value - values[usual]
        if gain[0] > max(most, float(np.nanstd(gain[1:]))):
            best, most = choice, float(gain[0])
    return best


def _replicates(cases: Sequence[HeldOutCase]) -> FloatArray:
    """Weights (1 + replicates, cases): all alike, then patients resampled with all their scans."""
    patients, own = np.unique([case.patient_id for case in cases], return_inverse=True)
    weights = patient_weights(len(patients), _REPLICATES, np.random.default_rng(0))
    return np.vstack([np.ones(len(cases)), weights[:, own]])


def cpm(cases: Sequence[HeldOutCase], smallest: float, weights: FloatArray) -> FloatArray:
    """Mean sensitivity over the FROC rates, for each row of weights (replicates, cases)."""
    scored = [case.scored(smallest) for case in cases]
    candidates = Candidates(
        scores=np.concatenate([np.empty(0), *(item.scores for item in scored)]),
        hits=np.concatenate([np.empty(0, bool), *(item.matched > 0 for item in scored)]),
        patients=np.repeat(np.arange(len(cases)), [len(item.scores) for item in scored]),
        references=np.array([float(case.n_reference) for case in cases]),
        scans=np.ones(len(cases)),
    )
    return froc_sensitivity(candidates, FROC_RATES)(weights)


def labelled_patient(case: HeldOutCase, point: OperatingPoint) -> LabelledPatient:
    """What a patient rule is fitted on: the lesions that would be reported."""
    reported = [lesion for lesion in case.lesions if counts(lesion, point)]
    lesions = pooled_lesions(reported)
    return LabelledPatient(lesions, case.patient_label, case.fold, case.patient_id)


def record_of(rule: PatientRule, name: str) -> PatientRuleRecord:
    """A rule on file."""
    head = rule if isinstance(rule, PooledHead) else None
    return PatientRuleRecord(
        name=name, weights=head.weights if head else (), intercept=head.intercept if head else 0.0
    )
