"""What is said of scans that differ from those of the training, and of those that do not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bonemet_auto.fingerprint import HISTOGRAM_EDGES_HU, bone_mask, hu_histogram
from bonemet_auto.geometry import Geometry
from bonemet_auto.images import Volume
from bonemet_auto.inference.doubts import doubts
from bonemet_auto.schema import Fingerprint
from bonemet_auto.scope import SOFT_HU, median_hu, scope_of
from tests.nominal import nominal
from tests.unit.inference_fakes import make_plan

SPACING_MM = (2.0, 1.0, 1.0)
TRAINED = nominal(4, SPACING_MM, (40, 64, 64))
"""Bone around 350 HU, soft tissue around 40 HU (`nominal`)."""
SCOPE = scope_of(TRAINED)


def plan(scope=SCOPE):
    return make_plan((16, 24, 24), SPACING_MM).model_copy(update={"scope": scope})


def scan(spacing_mm=SPACING_MM, shape=(24, 48, 48), seed=0):
    """Bone in soft tissue in air, as scanned in training."""
    rng = np.random.default_rng(seed)
    hu = np.full(shape, -1000.0)
    hu[:, 4:-4, 4:-4] = 55
    hu[:, 12:-12, 12:-12] = 380
    hu += rng.normal(0, 25, shape)
    return Volume(np.rint(hu).astype(np.int16), Geometry(shape, spacing_mm))


def said(volume, planned=None):
    bone = bone_mask(volume.array, volume.geometry.spacing_mm)
    return list(doubts(volume, volume.array[bone], planned or plan()))


def windowed(volume, low, high):
    return Volume(np.clip(volume.array, low, high), volume.geometry)


def changed(volume, change):
    return Volume(np.rint(change(volume.array.astype(float))).astype(np.int16), volume.geometry)


@pytest.mark.parametrize("seed", range(3))
def test_a_scan_like_those_of_the_training_passes_without_a_word(seed):
    assert said(scan(seed=seed)) == []
    assert said(scan((2.6, 0.8, 0.8), (20, 60, 60), seed)) == []


@pytest.mark.parametrize(
    ("volume", "words"),
    [
        (changed(scan(), lambda hu: np.full(hu.shape, 40) - (hu < -500) * 1000), ["no bone"]),
        (scan((5.0, 1.0, 1.0)), ["5 x 1 x 1 mm", "coarser", "2 x 1 x 1", "finer rec"]),
        (scan((2.0, 1.7, 1.7)), ["2 x 1.7 x 1.7 mm", "coarser"]),
        (scan((0.6, 1.0, 1.0), (80, 48, 48)), ["0.6 x 1 x 1 mm", "finer than"]),
        (scan(shape=(7, 48, 48)), ["only 14 x 48 x 48 mm", "32 x 24 x 24 mm", "whole scan"]),
        (windowed(changed(scan(), lambda hu: hu / 4 + 100), 0, 255), ["0 to", "Hounsfield"]),
        (windowed(scan(), -160, 2000), ["from -160", "Hounsfield"]),
        (changed(scan(), lambda hu: np.maximum(hu + 1024, 0)), ["Hounsfield"]),
        (changed(scan(), lambda hu: hu + (hu > 200) * 500), ["bone has a median of 8", "3"]),
        (changed(scan(), lambda hu: hu + (abs(hu - 55) < 100) * 60), ["soft tissue", "contrast"]),
    ],
    ids=["no bone", "thick slices", "coarse pixels", "thin slices", "a few slices", "8 bit",
         "floor cut", "no offset", "dense bone", "enhanced"],
)  # fmt: skip
def test_each_difference_is_named_with_what_was_expected(volume, words):
    (only,) = said(volume)
    for word in words:
        assert word in only


def test_doubts_about_values_are_not_heaped_on_values_that_are_no_hu():
    (only,) = said(changed(scan(), lambda hu: hu * 2 + 3000))
    assert "Hounsfield" in only


def test_what_the_training_scans_varied_in_may_vary():
    wide = scope_of(Fingerprint(dataset="D", cases=TRAINED.cases + _cases((5.0, 1.5, 1.5))))
    assert said(scan((5.0, 1.4, 1.4)), plan(scope=wide)) == []
    bright = wide.model_copy(update={"soft_tissue_hu": (40.0, 110.0)})
    enhanced = changed(scan(), lambda hu: hu + (abs(hu - 55) < 100) * 60)
    assert said(enhanced, plan(scope=bright)) == []


def test_without_a_scope_the_plan_itself_is_the_measure():
    assert said(scan((4.0, 1.0, 1.0)), plan(scope=None)) == []
    (coarse,) = said(scan((5.5, 1.0, 1.0)), plan(scope=None))
    assert "coarser" in coarse
    (part,) = said(scan(shape=(7, 48, 48)), plan(scope=None))
    assert "only 14" in part


def _cases(spacing_mm):
    return nominal(2, spacing_mm, (40, 64, 64)).cases


def test_a_scope_counts_and_names_nobody():
    scope = scope_of(TRAINED)
    assert (scope.cases, scope.patients) == (4, 4)
    assert scope.lesions == {0: 6, 1: 6} and scope.lesions_of_unknown_source == 0
    assert scope.least_extent_mm == (80, 64, 64)
    assert scope.spacing_mm == ((2, 2), (1, 1), (1, 1))
    text = scope.model_dump_json()
    assert not any(case.case in text or case.patient_id in text for case in TRAINED.cases)
    assert scope_of(Fingerprint(dataset="D", cases=())) is None


@given(st.lists(st.integers(-1024, 3071), max_size=60))
def test_a_median_is_right_to_a_bin(values):
    hu = np.array(values, dtype=np.int16)
    found, soft = median_hu(hu_histogram(hu)), hu[(hu >= SOFT_HU[0]) & (hu < SOFT_HU[1])]
    within = median_hu(hu_histogram(hu), SOFT_HU)
    for median, of in ((found, hu), (within, soft)):
        assert (median is None) == (of.size == 0)
        if median is not None:
            width = HISTOGRAM_EDGES_HU[1] - HISTOGRAM_EDGES_HU[0]
            low, high = (
                np.percentile(of, 50, method="lower"),
                np.percentile(of, 50, method="higher"),
            )
            assert low - width <= median <= high + width
