"""Which cases validate which fold: patients never part, classes are spread evenly."""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable

import numpy as np

from bonemet_auto.errors import DataError
from bonemet_auto.raw_dataset import PatientLabel
from bonemet_auto.schema import CaseFingerprint, Fingerprint, Splits

N_FOLDS = 5

logger = logging.getLogger(__name__)


def patient_labels(cases: Iterable[CaseFingerprint]) -> dict[str, PatientLabel | None]:
    """Label of each patient: 1 if any of its cases is positive, else None if any is unknown."""
    found: dict[str, set[PatientLabel | None]] = defaultdict(set)
    for case in cases:
        found[case.patient_id].add(case.patient_label)
    return {
        patient: 1 if 1 in labels else None if None in labels else 0
        for patient, labels in found.items()
    }


def make_splits(fingerprint: Fingerprint, n_folds: int = N_FOLDS, seed: int = 0) -> Splits:
    """Deal the patients to folds; the same cohort and seed give the same folds.

    A patient goes with all its cases to the fold that has the fewest patients of its kind (label of
    the patient, and whether any of its cases has a lesion), then the fewest cases. With fewer
    patients than `n_folds` there are as many folds as patients; a single patient gives one fold
    without validation cases, because training and validation on one scan would flatter: only a
    model on all cases can then be trained.
    """
    labels = patient_labels(fingerprint.cases)
    if len(labels) < 2:
        logger.warning("one patient only: a single fold without validation cases")
        return Splits(seed=seed, validation=((),))
    cases: dict[str, list[str]] = defaultdict(list)
    with_lesions = {case.patient_id for case in fingerprint.cases if case.lesions}
    for case in fingerprint.cases:
        cases[case.patient_id].append(case.case)
    strata = {patient: (str(labels[patient]), patient in with_lesions) for patient in cases}
    patients = sorted(cases)
    np.random.default_rng(seed).shuffle(patients)
    patients.sort(key=strata.__getitem__)  # stable: keeps the shuffled order within a stratum
    folds: list[list[str]] = [[] for _ in range(min(n_folds, len(patients)))]
    dealt: list[Counter[tuple[str, bool]]] = [Counter() for _ in folds]
    for patient in patients:
        stratum = strata[patient]
        target = min(
            range(len(folds)),
            key=lambda k: (dealt[k][stratum], dealt[k].total(), len(folds[k]), k),
        )
        dealt[target][stratum] += 1
        folds[target] += cases[patient]
    return Splits(seed=seed, validation=tuple(tuple(sorted(fold)) for fold in folds))


def check_splits(splits: Splits, fingerprint: Fingerprint) -> None:
    """Refuse splits that do not fit the cohort.

    Raises:
        DataError: a case that the cohort lacks, a case in two folds, or a patient on both sides of
            a fold. A case in no fold is fine: it always trains.
    """
    owner = {case.case: case.patient_id for case in fingerprint.cases}
    listed = Counter(case for fold in splits.validation for case in fold)
    parted: set[str] = set()
    for fold in splits.validation:
        validating = {owner[case] for case in fold if case in owner}
        parted |= validating & {owner[case] for case in owner.keys() - set(fold)}
    problems = {
        "cases that the dataset lacks": sorted(listed.keys() - owner.keys()),
        "cases listed twice": sorted(case for case, count in listed.items() if count > 1),
        "patients with cases in training and in validation": sorted(parted),
    }
    found = [f"{problem}: {', '.join(names)}" for problem, names in problems.items() if names]
    if found:
        raise DataError(
            f"splits.json of {fingerprint.dataset} cannot be used: {'; '.join(found)}. Mend it, or "
            "delete it to have new folds made."
        )


def fold_cases(
    splits: Splits, fingerprint: Fingerprint, fold: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Training and validation cases of a fold, both in the order of the fingerprint.

    Raises:
        DataError: no such fold, or nothing to train or to validate on; or as `check_splits`.
    """
    check_splits(splits, fingerprint)
    if fold not in range(len(splits.validation)):
        raise DataError(
            f"{fingerprint.dataset} has folds 0 to {len(splits.validation) - 1}, not {fold} "
            "(fewer than 5 patients make fewer folds)."
        )
    held_out = set(splits.validation[fold])
    names = [case.case for case in fingerprint.cases]
    training = tuple(name for name in names if name not in held_out)
    validation = tuple(name for name in names if name in held_out)
    if not (training and validation):
        raise DataError(
            f"fold {fold} of {fingerprint.dataset} has {len(training)} training and "
            f"{len(validation)} validation cases; both need one at least. Add patients, or mend "
            "splits.json."
        )
    return training, validation
