"""Small folders of references and predictions that evaluate within milliseconds."""

import numpy as np

from tests.unit.test_evaluation_folders import (
    ELSEWHERE,
    LESION,
    SECOND,
    SHIFTED,
    write_prediction,
    write_reference,
)


def write_cohort(ref, n_patients=12):
    """One scan each: two lesions of one source, but every sixth patient has none."""
    for number in range(n_patients):
        lesions = {} if number % 6 == 5 else {1: LESION, 2: SECOND}
        classes = {str(each): number % 2 for each in lesions}
        write_reference(ref, f"case_{number:02}", lesions, classes, patient_id=f"P{number:02}")


def write_found(pred, n_patients=12, seed=0, strength=1.0):
    """The first lesion found loosely, the second if a coin says so, and a false one somewhere."""
    rng = np.random.default_rng(seed)
    for number in range(n_patients):
        places = {1: SHIFTED} if number % 6 != 5 else {}
        if places and rng.random() < 0.7:
            places[2] = SECOND
        if number % 4 == 0:
            places[3] = ELSEWHERE
        noise = rng.normal(size=4)
        p_lung = 1 / (1 + np.exp(-strength * (2 * (number % 2) - 1) - noise))
        estimates = {each: (0.5 + each / 10, float(p_lung[each])) for each in places}
        probability = float(p_lung[0]) if places else 0.3
        patient = (probability, int(bool(places) and probability >= 0.5))
        write_prediction(pred, f"case_{number:02}", places, estimates, patient)


def write_on_reference(pred, n_patients=12):
    """What `bonemet_predict --lesions` writes of the references; lesions are called right at .5."""
    for number in range(n_patients):
        lesions = {} if number % 6 == 5 else {1: LESION, 2: SECOND}
        p_lung = 0.8 if number % 2 else 0.3
        estimates = {each: (1.0, 0.47 + each / 100 + 0.02 * (number % 2)) for each in lesions}
        patient = (p_lung, number % 2) if lesions else (0.4, 0)
        write_prediction(pred, f"case_{number:02}", lesions, estimates, patient)
