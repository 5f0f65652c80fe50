"""Thresholds, smallest lesion, source temperature and patient rule, from held-out cases.

Everything is found on cases that the network in question was not trained on. Figures of a whole
model come from settings that left a fold out (`settings_without`), so that no case helps to choose
what is then measured on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

from bonemet_auto.consolidation.gather import HeldOutCase
from bonemet_auto.evaluation.bootstrap import patient_weights
from bonemet_auto.evaluation.detection import FROC_RATES, Candidates, froc_sensitivity
from bonemet_auto.evaluation.operating_point import (
    choose_operating_point,
    choose_patient_threshold,
)
from bonemet_auto.inference.export import counts, pooled_lesions
from bonemet_auto.model.patient import LabelledPatient, PatientRule, PooledHead
from bonemet_auto.model.patient_choice import FITS, choose_rule, out_of_fold
from bonemet_auto.schema import OperatingPoint, PatientRuleRecord

SMALLEST_MM3 = (0.0, 20.0, 50.0, 100.0, 200.0)
"""Smallest lesions that are tried; 0 stays unless another is better by a standard error."""

TEMPERATURE_SPREAD = 0.5
"""Prior standard deviation of a temperature's logarithm: a fold has few lesions to tell it from."""

_REPLICATES = 500
_LOG_TEMPERATURE = (-1.5, 1.5)

FloatArray = npt.NDArray[np.float64]


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


def find_settings(cases: Sequence[HeldOutCase]) -> Settings:
    """Settings of the folds that these cases come from."""
    folds = sorted({case.fold for case in cases})
    temperatures = {
        fold: fit_temperature([case for case in cases if case.fold == fold]) for fold in folds
    }
    cases = [case.at_temperature(temperatures[case.fold]) for case in cases]
    smallest = choose_smallest(cases)
    point = choose_operating_point([case.scored(smallest) for case in cases])
    point = point.model_copy(update={"min_volume_mm3": smallest})
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


def settings_without(fold: int, cases: Sequence[HeldOutCase]) -> Settings:
    """Settings for the cases of a fold, found on those of the others.

    Its own temperature is the geometric mean of theirs.
    """
    others = find_settings([case for case in cases if case.fold != fold])
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


def choose_smallest(cases: Sequence[HeldOutCase]) -> float:
    """Smallest volume in mm3 of what is reported as a lesion.

    That of the highest CPM among those better than none by more than one standard error of the
    paired difference, over resampled cases.
    """
    if not any(case.n_reference for case in cases):
        return 0.0
    weights = patient_weights(len(cases), _REPLICATES, np.random.default_rng(0))
    weights = np.vstack([np.ones(len(cases)), weights])
    base, *others = (cpm(cases, smallest, weights) for smallest in SMALLEST_MM3)
    gains = {0.0: 0.0}
    for smallest, values in zip(SMALLEST_MM3[1:], others, strict=True):
        gain = values - base
        if gain[0] - np.nanstd(gain[1:]) > 0:
            gains[smallest] = float(gain[0])
    return max(gains, key=gains.__getitem__)


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
    return LabelledPatient(pooled_lesions(reported), case.patient_label, case.fold)


def record_of(rule: PatientRule, name: str) -> PatientRuleRecord:
    """A rule on file."""
    head = rule if isinstance(rule, PooledHead) else None
    return PatientRuleRecord(
        name=name, weights=head.weights if head else (), intercept=head.intercept if head else 0.0
    )
