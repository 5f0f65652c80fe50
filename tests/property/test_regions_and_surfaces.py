"""Figures from crops around lesions are those of whole scans, compared by brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from bonemet_auto.evaluation.pairing import overlaps
from bonemet_auto.evaluation.regions import centre_hits, paired_regions, region_overlaps
from bonemet_auto.evaluation.segmentation import count_voxels
from bonemet_auto.evaluation.surface import (
    case_outline,
    lesion_outlines,
    surface_distances,
    surface_of,
)
from bonemet_auto.geometry import Geometry
from bonemet_auto.images import LesionCrop, Volume, crop_instances, write_volume

SHAPE, SPACING_MM = (9, 11, 12), (2.5, 0.7, 1.0)


@st.composite
def instance_maps(draw):
    """Up to five boxes of random voxels: apart, touching, covering each other, at the border."""
    instances = np.zeros(SHAPE, np.uint16)
    for number in range(1, 1 + draw(st.integers(0, 5))):
        start = [draw(st.integers(0, n - 1)) for n in SHAPE]
        place = tuple(slice(a, a + draw(st.integers(1, 4))) for a in start)
        seed = draw(st.integers(0, 9))
        full = np.random.default_rng(seed).random(instances[place].shape) < 0.2 + seed / 9
        instances[place][full] = number
    return instances


def cropped(instances):
    """The smallest box around all ids, found the slow way."""
    grid = Geometry(instances.shape, SPACING_MM)
    places = np.argwhere(instances)
    if not len(places):
        return LesionCrop(np.zeros((0, 0, 0), np.uint16), (0, 0, 0), grid)
    low, high = places.min(axis=0), places.max(axis=0) + 1
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    return LesionCrop(instances[box], tuple(low.tolist()), grid)


def slow_surface(mask):
    """Corner points (index of the voxel behind each) where voxels differ, and their areas."""
    padded = np.pad(mask, 1)
    corners, areas = [], []
    for at in np.ndindex(*(n - 1 for n in padded.shape)):
        cube = padded[tuple(slice(a, a + 2) for a in at)]
        if cube.any() and not cube.all():
            one = surface_of(cube, SPACING_MM)
            middle = (one.corners == 1).all(axis=1)
            corners.append(at)
            areas.append(float(one.areas_mm2[middle][0]))
    return np.array(corners).reshape(-1, 3), np.array(areas)


def slow_outline(reference, predicted):
    """NSD at 1 and 2 mm, and HD95, by comparing every pair of surface elements."""
    if not reference.any() and not predicted.any():
        return 1, 1, None
    if not reference.any() or not predicted.any():
        return 0, 0, None
    (a, a_mm2), (b, b_mm2) = slow_surface(reference), slow_surface(predicted)
    squares = sum((np.subtract.outer(a[:, i], b[:, i]) * SPACING_MM[i]) ** 2 for i in range(3))
    of_a, of_b = np.sqrt(squares.min(axis=1)), np.sqrt(squares.min(axis=0))

    def nsd(tolerance):
        near = a_mm2[of_a <= tolerance + 1e-6].sum() + b_mm2[of_b <= tolerance + 1e-6].sum()
        return near / (a_mm2.sum() + b_mm2.sum())

    def within(values, areas):
        """The smallest distance within which 95 % of the area lies."""
        return min(
            v for v in values if areas[values <= v].sum() >= 0.95 * areas.sum() * (1 - 1e-12)
        )

    return nsd(1), nsd(2), max(within(of_a, a_mm2), within(of_b, b_mm2))


def assert_outline(outline, expected):
    nsd_1mm, nsd_2mm, hd95_mm = expected
    assert (outline.nsd_1mm, outline.nsd_2mm) == pytest.approx((nsd_1mm, nsd_2mm))
    assert outline.hd95_mm == (hd95_mm if hd95_mm is None else pytest.approx(hd95_mm))


@settings(max_examples=40)
@given(instance_maps(), instance_maps())
def test_figures_of_regions_are_those_of_the_whole_scan(reference, predicted):
    regions = paired_regions(cropped(reference), cropped(predicted))
    assert_outline(case_outline(regions, SPACING_MM), slow_outline(reference > 0, predicted > 0))
    parts = [count_voxels(each.reference > 0, each.predicted > 0) for each in regions]
    whole = count_voxels(reference > 0, predicted > 0)
    for name in ("shared", "reference", "predicted"):
        assert sum(getattr(part, name) for part in parts) == getattr(whole, name)


@settings(max_examples=40)
@given(instance_maps(), instance_maps())
def test_pairs_and_lesions_of_regions_are_those_of_the_whole_scan(reference, predicted):
    regions = paired_regions(cropped(reference), cropped(predicted))
    rows = [
        sorted(zip(each.reference.tolist(), each.predicted.tolist(), each.iou, strict=True))
        for each in (region_overlaps(regions), overlaps(reference, predicted))
    ]
    assert rows[0] == rows[1]
    found_by = {lesion: number for lesion, number, _ in rows[0]}
    outlines = lesion_outlines(regions, found_by, SPACING_MM)
    assert outlines.keys() == found_by.keys()
    for lesion, number in found_by.items():
        assert_outline(outlines[lesion], slow_outline(reference == lesion, predicted == number))


@given(instance_maps(), instance_maps())
def test_a_centre_hits_the_lesion_in_whose_voxel_it_lies(reference, predicted):
    hits = centre_hits(paired_regions(cropped(reference), cropped(predicted)))
    expected = []
    for number in np.unique(predicted[predicted > 0]):
        centre = ndimage.center_of_mass(predicted == number)
        lesion = reference[tuple(int(np.floor(c + 0.5 + 1e-9)) for c in centre)]
        expected += [(int(lesion), int(number))] if lesion else []
    assert sorted(zip(hits.reference, hits.predicted, strict=True)) == sorted(expected)


@given(instance_maps(), instance_maps())
def test_regions_hold_whole_lesions_and_do_not_touch(reference, predicted):
    taken = np.zeros(np.add(SHAPE, 2), int)
    for region in paired_regions(cropped(reference), cropped(predicted)):
        box = tuple(
            slice(a, a + n) for a, n in zip(region.start, region.reference.shape, strict=True)
        )
        np.testing.assert_array_equal(region.reference, reference[box])
        np.testing.assert_array_equal(region.predicted, predicted[box])
        wider = tuple(slice(side.start, side.stop + 1) for side in box)
        taken[wider] += 1
        inside = np.zeros(SHAPE, bool)
        inside[box] = True
        for whole in (reference, predicted):
            assert not np.intersect1d(whole[inside], whole[~inside]).any()
    assert taken.max(initial=0) <= 1


@settings(max_examples=20)
@given(instance_maps(), st.sampled_from([".nii.gz", ".nrrd"]))
def test_a_crop_is_the_box_around_all_ids(tmp_path_factory, instances, ending):
    path = tmp_path_factory.mktemp("crop") / f"a{ending}"
    write_volume(path, Volume(instances, Geometry(SHAPE, SPACING_MM)))
    crop, expected = crop_instances(path), cropped(instances)
    np.testing.assert_array_equal(crop.array, expected.array)
    assert crop.start == expected.start or not expected.array.size
    assert crop.geometry.shape == SHAPE


@given(instance_maps(), instance_maps())
def test_figures_of_outlines_stay_when_the_maps_are_exchanged_or_moved(reference, predicted):
    a, b = surface_of(reference > 0, SPACING_MM), surface_of(predicted > 0, SPACING_MM)
    moved = surface_of(reference > 0, SPACING_MM, (3, -2, 40))
    there, back = surface_distances(a, b, SPACING_MM), surface_distances(b, a, SPACING_MM)
    assert there.nsd(1) == pytest.approx(back.nsd(1))
    assert there.hausdorff_mm() == back.hausdorff_mm()
    np.testing.assert_array_equal(moved.corners, a.corners + [3, -2, 40])
