"""Any fingerprint gives a valid plan or a PlanError, always the same one."""

from functools import partial

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import planners
from bonemet_auto.errors import PlanError
from bonemet_auto.fingerprint import HISTOGRAM_EDGES_HU
from bonemet_auto.plan_schema import Plan, Target
from bonemet_auto.schema import CaseFingerprint, Fingerprint, LesionFingerprint
from planners.anchors import best_ious
from planners.memory import Blueprint, training_bytes

spacings = st.tuples(*[st.floats(0.3, 8.0)] * 3)
shapes = st.tuples(st.integers(1, 600), st.integers(16, 700), st.integers(16, 700))
targets = st.sampled_from(
    [Target(device="cpu", memory_gb=6), *(Target(device="cuda", memory_gb=g) for g in (8, 24, 80))]
)
names = st.sampled_from(sorted(planners.PLANNERS))


def make_case(i: int, shape, spacing, sizes_mm) -> CaseFingerprint:
    random = np.random.default_rng(i)
    bins = len(HISTOGRAM_EDGES_HU) - 1
    lesions = tuple(
        LesionFingerprint(
            instance=k + 1, source=k % 2, volume_mm3=float(np.prod(size) / 2), size_mm=size,
            share_outside_bone=float(random.random() < 0.1), touching=(),
        )
        for k, size in enumerate(sizes_mm)
    )  # fmt: skip
    return CaseFingerprint(
        case=f"c{i}", patient_id=f"p{i}", input_hash=str(i), shape=shape, spacing_mm=spacing,
        lesions=lesions, patient_label=1, orientation="LPS", body_histogram=(),
        bone_histogram=tuple(random.integers(0, 99, bins).tolist()),
        lesion_histogram=tuple(random.integers(0, 9, bins).tolist()),
    )  # fmt: skip


@st.composite
def fingerprints(draw: st.DrawFn) -> Fingerprint:
    shape, spacing = draw(shapes), draw(spacings)
    seed, n_cases = draw(st.integers(0, 999)), draw(st.integers(1, 6))
    random = np.random.default_rng(seed)
    cases = []
    for i in range(n_cases):
        factor = random.uniform(0.8, 1.25, 3) if draw(st.booleans()) else np.ones(3)
        extent = np.multiply(shape, spacing)
        sizes = [
            tuple(np.minimum(random.uniform(2, 60, 3), extent).tolist())
            for _ in range(random.integers(0, 4))
        ]
        cases.append(make_case(i, shape, tuple((factor * spacing).tolist()), sizes))
    return Fingerprint(dataset="Dataset001_X", cases=tuple(cases))


@given(fingerprints(), targets, names)
@settings(max_examples=35, deadline=None)
def test_a_plan_is_valid_fits_and_is_reproducible(fingerprint, target, planner):
    make = planners.PLANNERS[planner]
    try:
        plan = make(fingerprint, target, "p")
    except PlanError as error:
        assert "no lesion" in str(error)
        return
    text = plan.model_dump_json()
    assert text == make(fingerprint, target, "p").model_dump_json()
    assert Plan.model_validate_json(text) == plan
    assert plan.memory_bytes <= 0.9e9 * target.memory_gb

    net = plan.network
    spacing = np.asarray(plan.spacing_mm)
    reached = [net.total_stride(s) for s in range(len(net.strides))]
    deepest = np.asarray(plan.patch_size) // reached[-1]
    assert (deepest >= (4 if planner == "default" else 2)).all()
    assert net.rpn_stages and all(len(level) >= 2 for level in net.anchor_sizes)
    assert min(size for level in net.anchor_sizes for anchor in level for size in anchor) >= 1
    volumes = [np.prod(anchor) for level in net.anchor_sizes for anchor in level]
    assert (np.diff(volumes) >= -0.02 * np.asarray(volumes[1:])).all()
    biggest = np.percentile(
        [np.multiply(c.shape, c.spacing_mm) / spacing for c in fingerprint.cases], 95, 0
    )
    assert (np.asarray(plan.patch_size) <= np.ceil(biggest) + np.maximum(reached[-1], 4)).all()
    markdown = planners.explain_plan(plan, fingerprint)
    assert "recall at IoU 0.5" in markdown and "nan" not in markdown


@given(fingerprints(), st.tuples(*[st.integers(1, 300)] * 3), names)
@settings(max_examples=20, deadline=None)
def test_an_impossible_patch_is_answered_with_one_that_is_possible(fingerprint, wanted, planner):
    target = Target(device="cuda", memory_gb=16)
    try:
        planners.PLANNERS[planner](fingerprint, target, "p")
    except PlanError:
        return
    plan_for = partial(planners.PLANNERS[planner], fingerprint, target, "p", None)
    for _ in range(3):
        wanted = answer(plan_for, wanted)
    assert plan_for(wanted).patch_size == wanted


def answer(plan_for, wanted):
    """The patch itself where it is possible, else the one that the message names."""
    try:
        return plan_for(wanted).patch_size
    except PlanError as error:
        nearest = str(error).split("Nearest possible: (")[1].split(")")[0]
        return tuple(int(part) for part in nearest.split(","))


@given(st.tuples(*[st.integers(1, 12)] * 3), st.integers(0, 2), st.sampled_from(["cpu", "cuda"]))
@settings(max_examples=40, deadline=None)
def test_memory_rises_with_the_patch(cells, axis, device):
    strides = ((1, 2, 2), (2, 2, 2), (2, 2, 2))
    kernels = ((3, 3, 3),) * 3
    blueprint = Blueprint(strides, kernels, (24, 48, 96), (1, 2, 1), 8, 32, (1, 2), 2)
    target = Target(device=device, memory_gb=8, bfloat16=device == "cuda")
    patch = tuple(4 * n if a == 0 else 8 * n for a, n in enumerate(cells))
    larger = tuple(n + (8 if a == axis else 0) for a, n in enumerate(patch))
    assert training_bytes(blueprint, larger, 2, target) > training_bytes(
        blueprint, patch, 2, target
    )


@given(st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_best_iou_equals_a_loop_over_boxes(seed):
    random = np.random.default_rng(seed)
    lesions, anchors = random.uniform(1, 30, (5, 3)), random.uniform(1, 30, (4, 3))

    def iou(a, b):
        shared = np.prod(np.minimum(a, b))
        return shared / (np.prod(a) + np.prod(b) - shared)

    expected = [max(iou(a, b) for b in anchors) for a in lesions]
    np.testing.assert_allclose(best_ious(lesions, anchors), expected)
