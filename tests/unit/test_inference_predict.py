"""Whole scans through a network whose answers are known."""

import numpy as np
import pytest
import torch

from bonemet_auto.geometry import Geometry
from bonemet_auto.images import Volume, write_volume
from bonemet_auto.inference.predict import Prediction, predict_cases, predict_volume
from bonemet_auto.schema import FailedCase
from tests.unit.inference_fakes import (
    BRIGHT_HU,
    LESION_HU,
    BlobNetwork,
    add_ball,
    make_plan,
    tissue,
)

CPU = torch.device("cpu")
AXES = {
    "plain": np.eye(3)[::-1],
    "flipped": np.diag([1.0, -1.0, 1.0])[::-1],
    "permuted": np.eye(3)[[1, 0, 2]],
    "oblique": np.linalg.qr(np.array([[1.0, 0.3, 0.1], [-0.2, 1.0, 0.4], [0.1, -0.3, 1.0]]))[0],
}


def _geometry(shape, spacing_mm, axes, middle_mm=(30.0, -120.0, 500.0)):
    steps = axes * np.asarray(spacing_mm)[:, None]
    origin = np.asarray(middle_mm) - (np.asarray(shape) - 1) / 2 @ steps
    return Geometry(tuple(shape), spacing_mm, tuple(origin), tuple(map(tuple, axes)))


@pytest.mark.parametrize("axes", AXES.values(), ids=AXES)
@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (3.0, 0.8, 1.1)], ids=str)
def test_a_lesion_is_found_at_its_place_in_the_patient(axes, spacing_mm):
    shape = tuple(round(38 / edge) for edge in spacing_mm)
    scan = tissue(shape, _geometry(shape, spacing_mm, axes))
    centre_mm = np.array([34.0, -115.0, 496.0])
    truth = add_ball(scan, centre_mm, 7.0).array == LESION_HU
    scan.array[0, 0, 0] = -1000
    result = predict_volume(scan, [BlobNetwork()], make_plan(spacing_mm=(1.5, 1.2, 1.2)), CPU)
    (lesion,) = result.lesions
    mask = np.zeros(shape, bool)
    mask[lesion.region] = lesion.mask
    assert np.linalg.norm(np.subtract(lesion.centroid_lps_mm, centre_mm)) < 0.8
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.85
    assert lesion.volume_mm3 == pytest.approx(mask.sum() * np.prod(spacing_mm))
    assert lesion.mask.any(axis=(1, 2))[[0, -1]].all()
    assert result.warnings == []


def test_a_lesion_larger_than_every_window_comes_out_as_one():
    scan = tissue((24, 24, 70))
    scan.array[8:16, 8:16, 6:62] = LESION_HU
    (lesion,) = predict_volume(scan, [BlobNetwork()], make_plan(), CPU).lesions
    assert lesion.box == (8, 8, 6, 16, 16, 62)
    assert lesion.score > 0.8


def test_touching_lesions_stay_two():
    scan = tissue((32, 32, 40))
    scan.array[12:20, 12:20, 10:18] = LESION_HU
    scan.array[12:20, 12:20, 18:25] = BRIGHT_HU
    lesions = predict_volume(
        scan, [BlobNetwork(separates=True)], make_plan((24, 24, 24)), CPU
    ).lesions
    boxes = sorted(lesion.box for lesion in lesions)
    assert boxes == [(12, 12, 10, 20, 20, 18), (12, 12, 18, 20, 20, 25)]


def test_masks_never_overlap():
    scan = tissue((32, 32, 40))
    rng = np.random.default_rng(3)
    for centre in rng.uniform(6, 26, (12, 3)):
        add_ball(scan, centre, rng.uniform(2, 6), int(rng.choice([LESION_HU, BRIGHT_HU])))
    lesions = predict_volume(scan, [BlobNetwork(separates=True)], make_plan(), CPU).lesions
    times = np.zeros(scan.array.shape, int)
    for lesion in lesions:
        assert lesion.mask.any()
        times[lesion.region] += lesion.mask
    assert len(lesions) > 1
    assert times.max() == 1


def test_where_more_lesions_are_than_are_outlined_a_warning_says_so(monkeypatch):
    scan = tissue((32, 32, 40))
    for centre in [(8, 8, 8), (8, 24, 8), (24, 8, 30), (24, 24, 30)]:
        add_ball(scan, centre, 3)
    told = {}
    for most, score in [(3, 0.9), (5, 0.9), (3, 0.3)]:
        monkeypatch.setattr("bonemet_auto.inference.predict.MAX_LESIONS", most)
        found = predict_volume(scan, [BlobNetwork(score=score)], make_plan(), CPU)
        assert len(found.lesions) == 4, "a dense component of its own, where a box is left out"
        told[most, score] = any("there may be more" in text for text in found.warnings)
    assert told == {(3, 0.9): True, (5, 0.9): False, (3, 0.3): False}


def test_a_scan_without_lesions_gives_none_and_says_that_no_bone_is_in_view():
    result = predict_volume(tissue((20, 20, 20)), [BlobNetwork()], make_plan(), CPU)
    assert result.lesions == []
    assert any("no bone" in warning for warning in result.warnings)


@pytest.mark.parametrize("shape", [(1, 30, 30), (6, 9, 30), (5, 5, 5)], ids=str)
def test_scans_smaller_than_a_window_are_searched(shape):
    scan = tissue(shape)
    place = tuple(slice(n // 4, n // 4 + max(1, n // 2)) for n in shape)
    scan.array[place] = LESION_HU
    (lesion,) = predict_volume(scan, [BlobNetwork()], make_plan(), CPU).lesions
    assert lesion.region == place


def test_a_lesion_thinner_than_the_scan_grid_keeps_a_voxel():
    scan = tissue((4, 24, 24), Geometry((4, 24, 24), (10.0, 2.0, 2.0)))
    scan.array[2, 12, 12] = 1400
    plan = make_plan(spacing_mm=(2.0, 1.0, 1.0))
    lesions = predict_volume(scan, [BlobNetwork()], plan, CPU).lesions
    assert [lesion.region for lesion in lesions] == [(slice(2, 3), slice(12, 13), slice(12, 13))]


def test_an_ensemble_averages_scores_and_source_logits():
    scan = add_ball(tissue((20, 20, 20)), (10, 10, 10), 4)
    both = [BlobNetwork(p_lung=0.9, score=0.8), BlobNetwork(p_lung=0.5, score=0.6)]
    (lesion,) = predict_volume(scan, both, make_plan((24, 24, 24)), CPU).lesions
    assert lesion.p_lung == pytest.approx(0.75)
    assert lesion.score == pytest.approx((0.7 + 0.7 + 1.0) / 3, abs=0.01)


def test_a_lesion_that_one_network_misses_keeps_half_its_box_scores():
    scan = add_ball(tissue((20, 20, 20)), (10, 10, 10), 4)
    both = [BlobNetwork(score=0.8), BlobNetwork(blind=True)]
    (lesion,) = predict_volume(scan, both, make_plan((24, 24, 24)), CPU).lesions
    assert lesion.score == pytest.approx((0.4 + 0.4 + 1.0) / 3, abs=0.01)


def test_what_only_the_dense_branch_sees_becomes_a_low_score_candidate():
    scan = add_ball(tissue((20, 20, 20)), (10, 10, 10), 4)
    scan.array[2, 2, 2] = LESION_HU
    blind = BlobNetwork(blind=True, p_lung=0.3)
    (lesion,) = predict_volume(scan, [blind], make_plan((24, 24, 24)), CPU).lesions
    assert lesion.score < 0.5
    assert lesion.p_lung == pytest.approx(0.3)
    assert np.allclose(lesion.centroid_lps_mm, 10, atol=0.1)


def test_mirroring_changes_nothing_for_a_symmetric_network():
    scan = add_ball(add_ball(tissue((30, 34, 38)), (12, 9, 20), 5), (27, 22, 8), 3)
    plain = predict_volume(scan, [BlobNetwork()], make_plan(), CPU).lesions
    mirrored = predict_volume(scan, [BlobNetwork()], make_plan(mirror_axes=(0, 1, 2)), CPU).lesions
    both = [sorted((item.box, item.score) for item in items) for items in (plain, mirrored)]
    for (box, score), (mirrored_box, mirrored_score) in zip(*both, strict=True):
        assert box == mirrored_box
        assert score == pytest.approx(mirrored_score)


def test_the_second_stage_costs_one_forward_per_network_for_lesions_near_each_other():
    scan = tissue((40, 40, 40))
    for centre in [(18, 20, 20), (26, 20, 20), (20, 27, 20)]:
        add_ball(scan, centre, 2)
    network = BlobNetwork()
    assert len(predict_volume(scan, [network], make_plan((40, 40, 40)), CPU).lesions) == 3
    assert network.outlined_windows == 1


def test_windows_without_bone_are_skipped_only_when_the_plan_says_so():
    scan = add_ball(tissue((20, 20, 160)), (10, 10, 10), 4)
    skipping, thorough = BlobNetwork(), BlobNetwork()
    predict_volume(scan, [skipping], make_plan(), CPU)
    predict_volume(scan, [thorough], make_plan(skip=False), CPU)
    assert skipping.detected_windows < thorough.detected_windows / 2


def test_doubtful_scans_are_predicted_with_a_warning():
    array = np.zeros((8, 20, 20), np.uint8).astype(np.int16)
    scan = Volume(array, Geometry(array.shape, (9.0, 1.0, 1.0)))
    warnings = predict_volume(scan, [BlobNetwork()], make_plan(), CPU).warnings
    assert [
        next(word for word in ("bone", "spacing", "Hounsfield") if word in warning)
        for warning in warnings
    ] == ["bone", "spacing", "Hounsfield"]


def test_a_broken_case_does_not_stop_the_others(tmp_path):
    (tmp_path / "broken.nii.gz").write_bytes(b"no image")
    write_volume(tmp_path / "sound.nii.gz", add_ball(tissue((20, 20, 20)), (10, 10, 10), 4))
    images = {case: tmp_path / f"{case}.nii.gz" for case in ("broken", "sound")}
    broken, sound = predict_cases(images, [BlobNetwork()], make_plan(), CPU)
    assert isinstance(broken, FailedCase)
    assert "broken.nii.gz" in broken.reason
    assert isinstance(sound, Prediction)
    assert len(sound.result.lesions) == 1


def test_a_fault_of_the_network_fails_its_case_only(tmp_path):
    write_volume(tmp_path / "a.nii.gz", tissue((20, 20, 20)))
    broken = BlobNetwork()
    broken.detect = lambda images: 1 / 0
    (failure,) = predict_cases({"a": tmp_path / "a.nii.gz"}, [broken], make_plan(), CPU)
    assert isinstance(failure, FailedCase)
    assert "ZeroDivisionError" in failure.reason
