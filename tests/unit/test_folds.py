from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bonemet_auto.errors import DataError
from bonemet_auto.folds import check_splits, fold_cases, make_splits, patient_labels
from bonemet_auto.schema import CaseFingerprint, Fingerprint, LesionFingerprint, Splits

LESION = LesionFingerprint(
    instance=1,
    source=0,
    volume_mm3=9.0,
    size_mm=(1.0, 1.0, 1.0),
    share_outside_bone=0.0,
    touching=(),
)


def cohort(*patients):
    """Cases c0, c1 ... from (patient id, patient label, number of lesions)."""
    return Fingerprint(
        dataset="Dataset001_Tiny",
        cases=tuple(
            CaseFingerprint(
                case=f"c{number}", patient_id=patient, input_hash="", shape=(1, 1, 1),
                spacing_mm=(1.0, 1.0, 1.0), lesions=(LESION,) * lesions, patient_label=label,
                orientation="LPS", body_histogram=(), bone_histogram=(), lesion_histogram=(),
            )
            for number, (patient, label, lesions) in enumerate(patients)
        ),
    )  # fmt: skip


def kind_of_patients(fingerprint):
    labels = patient_labels(fingerprint.cases)
    with_lesions = {case.patient_id for case in fingerprint.cases if case.lesions}
    return {patient: (label, patient in with_lesions) for patient, label in labels.items()}


PATIENT = st.tuples(
    st.integers(0, 25).map("P{}".format), st.sampled_from([0, 1, None]), st.integers(0, 2)
)


@given(st.lists(PATIENT, min_size=1, max_size=60), st.integers(0, 3))
def test_folds_never_part_a_patient_and_hold_every_case_once(patients, seed):
    fingerprint = cohort(*patients)
    splits = make_splits(fingerprint, seed=seed)
    check_splits(splits, fingerprint)
    n_patients = len({patient for patient, _, _ in patients})
    validated = Counter(case for fold in splits.validation for case in fold)
    assert len(splits.validation) == min(5, n_patients)
    if n_patients == 1:
        assert splits.validation == ((),)
    else:
        assert validated == Counter(case.case for case in fingerprint.cases)
        assert all(splits.validation)
        kinds = kind_of_patients(fingerprint)
        owner = {case.case: case.patient_id for case in fingerprint.cases}
        dealt = [Counter(kinds[p] for p in {owner[c] for c in f}) for f in splits.validation]
        assert all(max(n[k] for n in dealt) - min(n[k] for n in dealt) <= 1 for k in kinds.values())


def test_each_kind_of_patient_is_spread_evenly():
    kinds = [(1, 1)] * 11 + [(0, 1)] * 7 + [(0, 0)] * 5
    fingerprint = cohort(*((f"P{n}", *kind) for n, kind in enumerate(kinds)))
    kind_of = {case.case: kind for case, kind in zip(fingerprint.cases, kinds, strict=True)}
    folds = [
        Counter(kind_of[case] for case in fold) for fold in make_splits(fingerprint).validation
    ]
    for kind in set(kinds):
        counts = [fold[kind] for fold in folds]
        assert max(counts) - min(counts) <= 1
    assert sorted(fold.total() for fold in folds) == [4, 4, 5, 5, 5]


def test_seeds_and_only_seeds_change_the_folds():
    fingerprint = cohort(*((f"P{n}", n % 2, 1) for n in range(20)))
    assert make_splits(fingerprint, seed=1) == make_splits(fingerprint, seed=1)
    assert (
        make_splits(fingerprint, seed=1).validation != make_splits(fingerprint, seed=2).validation
    )


def test_a_patient_is_positive_if_any_case_is():
    fingerprint = cohort(("A", 0, 1), ("A", 1, 1), ("B", 0, 1), ("B", None, 1), ("C", 0, 0))
    assert patient_labels(fingerprint.cases) == {"A": 1, "B": None, "C": 0}


FOUR = cohort(("A", 0, 1), ("A", 0, 1), ("B", 1, 1), ("C", 1, 1))


@pytest.mark.parametrize(
    ("validation", "said"),
    [
        ((("c0", "c1"), ("c2", "zz")), "cases that the dataset lacks: zz"),
        ((("c0", "c1"), ("c2", "c0", "c1")), "cases listed twice: c0, c1"),
        ((("c0",), ("c2",)), "patients with cases in training and in validation: A"),
        ((("c0", "c2"), ("c1",)), "patients with cases in training and in validation: A"),
    ],
)
def test_splits_that_leak_or_do_not_fit_are_refused(validation, said):
    with pytest.raises(DataError, match=said):
        check_splits(Splits(seed=0, validation=validation), FOUR)


def test_a_case_in_no_fold_always_trains():
    splits = Splits(seed=0, validation=(("c3",), ("c2",)))
    assert fold_cases(splits, FOUR, 1) == (("c0", "c1", "c3"), ("c2",))


def test_folds_that_cannot_be_trained_are_refused():
    with pytest.raises(DataError, match="folds 0 to 2, not 4"):
        fold_cases(make_splits(FOUR), FOUR, 4)
    alone = cohort(("A", 0, 1), ("A", 0, 1))
    with pytest.raises(DataError, match="2 training and 0 validation"):
        fold_cases(make_splits(alone), alone, 0)
