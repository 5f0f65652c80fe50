import numpy as np
import pytest

from bonemet_auto.evaluation.surface import surface_distances, surface_of

SPACING_MM = (3.0, 1.0, 0.5)


def box(*sides, shape=(20, 20, 20), at=5):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(at, at + side) for side in sides)] = True
    return mask


def area(mask):
    return surface_of(mask, SPACING_MM).areas_mm2.sum()


def distances(a, b, spacing_mm=SPACING_MM):
    return surface_distances(surface_of(a, spacing_mm), surface_of(b, spacing_mm), spacing_mm)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_more_layer_adds_a_ring_of_faces_with_bevelled_edges(axis):
    sides = [4, 4, 4]
    sides[axis] += 1
    first, second = (mm for other, mm in enumerate(SPACING_MM) if other != axis)
    bevel = (first + second - np.hypot(first, second)) / 2
    around = 2 * (4 * first + 4 * second) - 4 * bevel
    added = area(box(*sides)) - area(box(4, 4, 4))
    assert added == pytest.approx(around * SPACING_MM[axis])


def test_one_voxel_is_an_octahedron():
    z, y, x = (mm / 2 for mm in SPACING_MM)
    triangle = np.linalg.norm(np.cross([z, -y, 0], [z, 0, -x])) / 2
    assert area(box(1, 1, 1)) == pytest.approx(8 * triangle)


def test_a_mask_at_the_border_of_the_scan_is_closed_there():
    assert area(np.ones((4, 4, 4), bool)) == pytest.approx(area(box(4, 4, 4)))


def test_parallel_faces_are_as_far_apart_as_the_masks_were_moved():
    a, b = box(4, 4, 4), np.roll(box(4, 4, 4), 2, axis=1)
    assert distances(a, b).hausdorff_mm(1.0) == 2
    assert distances(a, b).nsd(2) == 1
    assert distances(a, b).nsd(1) < 1
    assert distances(a, a).hausdorff_mm() == 0


def test_a_distance_of_the_tolerance_itself_is_within_it():
    """Five voxels of 0.2 mm, as a header in single precision gives them, are 1 mm."""
    stored = (float(np.float32(0.2)),) * 3
    a = box(1, 1, 1, shape=(30, 2, 2), at=0)
    assert 5 * stored[0] > 1
    assert distances(a, np.roll(a, 5, axis=0), stored).nsd(1) == pytest.approx(1)
    assert distances(a, np.roll(a, 6, axis=0), stored).nsd(1) < 1


def test_empty_masks_follow_the_stated_rules():
    full, empty = box(2, 2, 2), np.zeros((20, 20, 20), bool)
    nothing = np.zeros((0, 0, 0), bool)
    assert (distances(empty, empty).nsd(1), distances(empty, empty).hausdorff_mm()) == (1, None)
    assert (distances(full, empty).nsd(2), distances(full, empty).hausdorff_mm()) == (0, None)
    assert (distances(nothing, full).nsd(1), distances(nothing, full).hausdorff_mm()) == (0, None)


def test_hd95_leaves_out_five_percent_of_the_area_not_of_the_elements():
    """A thin spike is a large share of the elements and a small one of the area."""
    block = box(10, 10, 10, shape=(20, 20, 40), at=3)
    spiked = block.copy()
    spiked[5, 5, 13:25] = True
    of_spike = surface_of(spiked, SPACING_MM)
    outside = of_spike.corners[:, 2] > 13
    assert outside.mean() > 0.05
    assert of_spike.areas_mm2[outside].sum() < 0.05 * of_spike.areas_mm2.sum()
    near, far = (
        distances(block, spiked).hausdorff_mm(0.95),
        distances(block, spiked).hausdorff_mm(1),
    )
    assert (near, far) == (0, pytest.approx(12 * 0.5))
