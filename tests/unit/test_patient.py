import pytest
import torch

from bonemet_auto.model.patient import noisy_or


def test_no_lesion_gives_zero():
    assert noisy_or([], []) == 0.0


def test_one_lesion_counts_by_score_times_probability():
    assert noisy_or([0.5], [0.8]) == pytest.approx(0.4)


def test_lesions_combine_as_independent_causes_in_any_order():
    assert noisy_or([0.5, 1.0], [0.8, 0.5]) == pytest.approx(1 - 0.6 * 0.5)
    assert noisy_or([1.0, 0.5], [0.5, 0.8]) == pytest.approx(1 - 0.6 * 0.5)


def test_a_certain_lesion_settles_the_patient():
    assert noisy_or([1.0, 0.1], [1.0, 0.0]) == 1.0


def test_tensors_are_taken_as_sequences():
    assert noisy_or(torch.tensor([0.5]), torch.tensor([0.5])) == pytest.approx(0.25)


def test_lists_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        noisy_or([0.5, 0.5], [0.5])
