from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bonemet_auto.data.sampling import PatchSampler
from tests.unit.training_fakes import stored_case

PATCH = (8, 10, 12)


def draws(sampler, n, first=0, seed=0):
    return [sampler.draw(k, np.random.default_rng([seed, k])) for k in range(first, first + n)]


def holds(start, box, patch=PATCH):
    """Whether a window holds a box wholly."""
    low, high = np.subtract(box[:3], start), np.subtract(box[3:], start)
    return bool((low >= 0).all() and (high <= patch).all())


FAR_LESION, FAR_BONE = (2, 2, 2, 4, 5, 6), (40, 40, 40)


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 1), st.integers(0, 10**6), st.integers(1, 60))
def test_the_share_of_lesion_windows_is_exact_over_any_run(share, first, n):
    case = stored_case("a", (48, 48, 48), [(FAR_LESION, True)], [FAR_BONE])
    found = draws(PatchSampler([case], PATCH, share), n, first)
    around = sum(holds(start, FAR_LESION) for _, start in found)
    assert around == int((first + n) * share) - int(first * share)
    assert abs(around - n * share) <= 1


def test_every_batch_of_two_has_one_lesion_window_at_one_half():
    case = stored_case("a", (48, 48, 48), [(FAR_LESION, True)], [FAR_BONE])
    found = draws(PatchSampler([case], PATCH, 0.5), 40)
    around = [holds(start, FAR_LESION) for _, start in found]
    assert all(sum(around[k : k + 2]) == 1 for k in range(0, 40, 2))


def lesion_counts(cases, n=3000):
    """How often each lesion, one per place, is drawn."""
    boxes = {
        (number, lesion.instance): lesion.box_voxel_zyx
        for number, case in enumerate(cases)
        for lesion in case.lesions
    }
    counts = Counter()
    for number, start in draws(PatchSampler(cases, PATCH, 1.0), n):
        (hit,) = [key for key, box in boxes.items() if key[0] == number and holds(start, box)]
        counts[hit] += 1
    return {key: counts[key] / n for key in boxes}


def spots(n, is_lung):
    """Lesions of rising size, too far apart for one window."""
    return [((16 * k, 0, 0, 16 * k + 1 + k, 2, 2), is_lung) for k in range(n)]


def test_lesions_count_alike_within_a_source_whatever_their_case_and_size():
    crowded = stored_case("a", (80, 30, 30), spots(4, True))
    single = stored_case("b", (80, 30, 30), spots(1, True))
    shares = lesion_counts([crowded, single])
    assert list(shares.values()) == pytest.approx([0.2] * 5, abs=0.03)


def test_sources_count_alike_however_rare_one_is():
    many = stored_case("a", (80, 30, 30), spots(4, False))
    rare = stored_case("b", (80, 30, 30), spots(1, True))
    shares = lesion_counts([many, rare])
    assert shares[1, 1] == pytest.approx(0.5, abs=0.04)
    assert [shares[0, k] for k in (1, 2, 3, 4)] == pytest.approx([0.125] * 4, abs=0.03)


def test_a_few_lesions_of_unknown_source_do_not_crowd_out_the_others():
    known = stored_case("a", (80, 30, 30), [*spots(2, False), *spots(5, True)[2:]])
    unknown = stored_case("b", (80, 30, 30), spots(1, None))
    shares = lesion_counts([known, unknown])
    assert shares[1, 1] == pytest.approx(1 / 6, abs=0.03)
    assert [shares[0, k] for k in (1, 2)] == pytest.approx([5 / 24] * 2, abs=0.03)
    assert [shares[0, k] for k in (3, 4, 5)] == pytest.approx([5 / 36] * 3, abs=0.03)


def test_a_cohort_of_unknown_sources_alone_is_sampled_evenly():
    shares = lesion_counts([stored_case("a", (80, 30, 30), spots(4, None))])
    assert list(shares.values()) == pytest.approx([0.25] * 4, abs=0.03)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_a_lesion_that_fits_is_wholly_inside_its_window_and_the_window_in_the_case(seed):
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, 40, 3)
    size = np.minimum(rng.integers(1, np.array(PATCH) + 1), shape)
    low = rng.integers(0, shape - size + 1)
    box = (*low.tolist(), *(low + size).tolist())
    case = stored_case("a", shape.tolist(), [(box, None)])
    for _, start in draws(PatchSampler([case], PATCH, 1.0), 10, seed=seed):
        assert holds(start, box)
        for axis in range(3):
            spare = int(shape[axis]) - PATCH[axis]
            if spare >= 0:
                assert 0 <= start[axis] <= spare
            else:
                assert start[axis] == spare // 2


def test_a_lesion_lies_anywhere_in_its_windows():
    case = stored_case("a", (60, 60, 60), [((30, 30, 30, 32, 32, 32), True)])
    starts = np.array([start for _, start in draws(PatchSampler([case], PATCH, 1.0), 400)])
    assert starts.min(0).tolist() == [32 - n for n in PATCH]
    assert starts.max(0).tolist() == [30, 30, 30]


def test_of_a_larger_lesion_every_part_is_seen_in_the_middle():
    box = (10, 10, 10, 50, 50, 50)
    case = stored_case("a", (60, 60, 60), [(box, True)])
    starts = np.array([start for _, start in draws(PatchSampler([case], PATCH, 1.0), 400)])
    middles = starts + np.array(PATCH) / 2
    assert (middles >= 9.5).all() and (middles <= 50.5).all()
    assert (middles.min(0) < 12).all() and (middles.max(0) > 48).all()


def test_windows_without_lesion_are_around_bone_of_all_cases():
    bone = [(5, 30, 30), (50, 10, 40)]
    cases = [stored_case(name, (60, 60, 60), (), bone) for name in "abc"]
    found = draws(PatchSampler(cases, PATCH, 0.5), 300)
    assert {number for number, _ in found} == {0, 1, 2}
    for _, start in found:
        assert any(
            np.allclose(np.add(start, np.array(PATCH) // 2), voxel, atol=5) for voxel in bone
        )


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_cohort_without_lesions_and_bone_still_gives_windows(share):
    case = stored_case("a", (20, 9, 40))
    starts = np.array([start for _, start in draws(PatchSampler([case], PATCH, share), 200)])
    assert (starts[:, 1] == -1).all()
    assert starts[:, 0].min() == 0 and starts[:, 0].max() == 12 and len(set(starts[:, 2])) > 10


def test_one_slice_is_centred():
    case = stored_case("a", (1, 40, 40), [((0, 5, 5, 1, 8, 8), True)])
    starts = {start[0] for _, start in draws(PatchSampler([case], PATCH, 0.5), 20)}
    assert starts == {-4}


def test_a_window_depends_on_its_number_and_generator_alone():
    case = stored_case("a", (60, 60, 60), spots(3, True), [FAR_BONE])
    sampler = PatchSampler([case], PATCH, 0.5)
    forward = draws(sampler, 20)
    backward = [sampler.draw(k, np.random.default_rng([0, k])) for k in reversed(range(20))]
    assert forward == backward[::-1]
