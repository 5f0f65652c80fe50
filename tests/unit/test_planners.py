"""The rules of planning, each on a small fingerprint made for it."""

import numpy as np
import pytest

import planners
from bonemet_auto.errors import PlanError, UsageError
from bonemet_auto.fingerprint import HISTOGRAM_EDGES_HU
from bonemet_auto.plan_schema import Target
from bonemet_auto.schema import CaseFingerprint, Fingerprint, LesionFingerprint
from planners.anchors import anchor_fit, choose_stages, search_anchors
from planners.patch import topology
from planners.spacing import intensities, target_spacing

CPU = Target(device="cpu", memory_gb=6)
GPU = Target(device="cuda", memory_gb=8)
BINS = len(HISTOGRAM_EDGES_HU) - 1


def histogram(**counts_at_hu: int) -> tuple[int, ...]:
    bins = [0] * BINS
    for hu, count in counts_at_hu.items():
        value = int(hu.replace("m", "-").strip("hu"))
        bins[int(np.searchsorted(HISTOGRAM_EDGES_HU, value, side="right")) - 1] = count
    return tuple(bins)


def cohort(
    spacings=((1.0, 1.0, 1.0),), shape=(200, 200, 200), sizes=((15.0, 15.0, 15.0),), outside=0.0,
    bone=None, lesion=None,
) -> Fingerprint:  # fmt: skip
    lesions = tuple(
        LesionFingerprint(
            instance=i,
            source=1,
            volume_mm3=100.0,
            size_mm=size,
            share_outside_bone=outside,
            touching=(),
        )
        for i, size in enumerate(sizes, 1)
    )
    return Fingerprint(
        dataset="Dataset001_X",
        cases=tuple(
            CaseFingerprint(
                case=f"c{i}", patient_id=f"c{i}", input_hash="0", shape=shape, spacing_mm=spacing,
                lesions=lesions, patient_label=1, orientation="LPS", body_histogram=(),
                bone_histogram=bone or histogram(hu300=5),
                lesion_histogram=lesion or histogram(hu500=5),
            )
            for i, spacing in enumerate(spacings)
        ),
    )  # fmt: skip


def test_spacing_is_the_median_and_the_10th_percentile_on_a_much_coarser_axis():
    mixed = [(z, 0.8, 0.8) for z in (2.0, 5.0, 5.0, 5.0, 6.0)]
    assert target_spacing(cohort(mixed[:1] * 3), None) == (2.0, 0.8, 0.8)
    expected = np.percentile([2.0, 5.0, 5.0, 5.0, 6.0], 10)
    assert target_spacing(cohort(mixed, (60, 512, 512)), None)[0] == pytest.approx(expected)
    assert target_spacing(cohort(mixed, (300, 512, 512)), None)[0] == 5.0


def test_small_budgets_coarsen_until_a_small_lesion_spans_few_voxels():
    lesions = ((10.0, 10.0, 10.0),) * 20
    assert target_spacing(cohort([(2.5, 0.8, 0.8)], sizes=lesions), 5.0) == (2.5, 2.0, 2.0)
    assert target_spacing(cohort([(2.5, 0.8, 0.8)], sizes=lesions), 20.0) == (2.5, 0.8, 0.8)
    giant = ((100.0, 100.0, 100.0),) * 20
    assert target_spacing(cohort([(5.0, 0.8, 0.8)], sizes=giant), 5.0) == (5.0, 3.0, 3.0)


def test_exactly_three_to_one_is_not_coarse():
    spacings = [(z, 1.0, 1.0) for z in (1.0, 3.0, 3.0)]
    assert target_spacing(cohort(spacings, (40, 512, 512)), None)[0] == 3.0


def test_the_window_keeps_its_floor_and_ceiling():
    narrow = intensities(cohort(bone=histogram(hu200=9), lesion=histogram(hu250=9)))
    assert narrow.window_hu == (-100.0, 800.0)
    wide = intensities(cohort(bone=histogram(hum900=9, hu3000=9), lesion=histogram(hu300=9)))
    assert wide.window_hu == (-250.0, 1800.0)
    assert narrow.mean_hu == pytest.approx(225, abs=10)
    empty = intensities(cohort(bone=histogram(hu1=0), lesion=histogram(hu1=0)))
    assert empty.sd_hu > 0


def test_a_coarse_axis_waits_for_the_others():
    found = topology((5.0, 0.8, 0.8), (32, 192, 192), 5, 4)
    assert found.strides == ((1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert found.kernels == ((1, 3, 3), *[(3, 3, 3)] * 4)
    assert found.total_stride(1) == (1, 4, 4)


def test_a_single_slice_is_halved_in_plane_only():
    found = topology((1.0, 1.0, 1.0), (2, 64, 64), 4, 2)
    assert found.strides == ((1, 2, 2),) * 4
    assert found.kernels == ((3, 3, 3),) * 4


def test_the_fast_plan_of_the_usual_phantom():
    lesions = ((7.5, 7.5, 7.5),)
    plan = planners.plan_fast(cohort([(2.0, 0.95, 0.95)], (60, 96, 96), lesions), CPU, "default")
    assert plan.spacing_mm == (2.0, 1.5, 1.5)
    assert plan.patch_size == (32, 48, 48)
    assert plan.inference.mirror_axes == (2,)
    assert plan.planner == "fast" and plan.name == "default"


def test_more_memory_gives_more():
    fingerprint = cohort([(1.0, 1.0, 1.0)] * 60, (400, 400, 400))
    plans = [
        planners.plan_default(fingerprint, Target(device="cuda", memory_gb=gb), "p")
        for gb in (8, 16, 24, 40, 80)
    ]
    assert plans[0].network.widths[0] < plans[-1].network.widths[0] or len(fingerprint.cases) < 100
    used = [plan.memory_bytes for plan in plans]
    assert used == sorted(used) and used[-1] > 3 * used[0]


def test_few_lesions_keep_the_network_small():
    large = Target(device="cuda", memory_gb=80)
    few = planners.plan_default(cohort(sizes=((9.0, 9.0, 9.0),) * 5), large, "p")
    many = planners.plan_default(cohort(sizes=((9.0, 9.0, 9.0),) * 1200), large, "p")
    assert few.network.widths[0] == 40 and many.network.widths[0] == 80


def test_small_lesions_add_the_finest_level():
    strides = [(2, 2, 2), (4, 4, 4), (8, 8, 8), (16, 16, 16), (32, 32, 32)]
    assert choose_stages(strides, np.full((3, 3), 5.0), (1, 1, 1), 4.0) == [1, 2, 3]
    assert choose_stages(strides, np.full((3, 3), 3.0), (1, 1, 1), 4.0) == [0, 1, 2, 3]
    assert choose_stages([(1, 1, 1)], np.full((3, 3), 9.0), (1, 1, 1), 4.0) == [0]


def test_one_lesion_is_met_by_its_anchor():
    lesions = np.array([[6.0, 12.0, 11.0]])
    sizes = search_anchors(lesions, [(2, 4, 4), (4, 8, 8)], 2, seed=0)
    assert [len(level) for level in sizes] == [2, 2]
    assert anchor_fit(lesions, sizes).mean_best_iou > 0.99


def test_the_search_beats_its_start():
    random = np.random.default_rng(1)
    lesions = np.exp(random.normal(2.7, 0.6, (200, 3)))
    sizes = search_anchors(lesions, [(2, 2, 2), (4, 4, 4), (8, 8, 8)], 3, seed=0)
    start = np.exp(np.quantile(np.log(lesions).mean(1), (np.arange(9) + 0.5) / 9))
    cubes = [[(s, s, s) for s in start]]
    assert (
        anchor_fit(lesions, sizes).mean_best_iou > anchor_fit(lesions, cubes).mean_best_iou + 0.03
    )


@pytest.mark.parametrize(("outside", "skip"), [(0.0, True), (0.9, False)])
def test_windows_are_skipped_only_where_lesions_lie_in_bone(outside, skip):
    plan = planners.plan_fast(cohort(outside=outside), CPU, "p")
    assert plan.inference.skip_windows_without_bone is skip


def test_impossible_requests_name_what_is_possible():
    fingerprint = cohort()
    with pytest.raises(PlanError, match=r"Nearest possible: \(32, 32, 48\)"):
        planners.plan_fast(fingerprint, CPU, "p", None, (32, 32, 50))
    with pytest.raises(PlanError, match="Nearest possible"):
        planners.plan_fast(fingerprint, CPU, "p", (0.0, 1.0, 1.0), None)
    with pytest.raises(PlanError, match=r"needs .* GB.*Nearest possible: \(48, 48, 48\)"):
        planners.plan_fast(fingerprint, CPU, "p", None, (192, 192, 192))
    with pytest.raises(PlanError, match="no lesion"):
        planners.plan_fast(cohort(sizes=()), CPU, "p")
    with pytest.raises(PlanError, match="no usable training case"):
        planners.plan_fast(Fingerprint(dataset="D", cases=()), CPU, "p")
    with pytest.raises(PlanError, match="--gpu-memory"):
        planners.plan_default(fingerprint, Target(device="cuda", memory_gb=1), "p")


def test_what_a_person_asks_for_derives_the_rest_anew():
    fingerprint = cohort()
    plan = planners.plan_fast(fingerprint, CPU, "p", (3, 1, 1))
    assert plan.spacing_mm == (3, 1, 1)
    assert plan.network.strides[0] == (1, 2, 2)
    assert "asked for (derived: (3, 3, 3))" in planners.explain_plan(plan, fingerprint)


def test_the_target_follows_the_flag():
    assert planners.detect_target(24.0) == Target(device="cuda", memory_gb=24)
    with pytest.raises(UsageError, match="above 0"):
        planners.detect_target(0.0)
    assert planners.default_planner(GPU) == "default" and planners.default_planner(CPU) == "fast"


def test_planning_300_cases_takes_seconds():
    import time

    sizes = tuple((float(n), 12.0, 14.0) for n in range(4, 24))
    start = time.perf_counter()
    planners.plan_default(cohort([(1.0, 0.8, 0.8)] * 300, sizes=sizes), GPU, "p")
    assert time.perf_counter() - start < 5
