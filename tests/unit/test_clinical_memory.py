"""Memory of whole-volume work, in bytes per voxel; figures at clinical size: docs/benchmarks.md."""

import struct
import tracemalloc

import numpy as np
import pytest
from scipy import ndimage

from bonemet_auto.fingerprint import bone_mask
from bonemet_auto.geometry import Geometry
from bonemet_auto.images import Volume, read_hu, write_volume
from bonemet_auto.inference.fuse import label_components
from bonemet_auto.inference.tiles import dilate_bone, lay_tiles
from bonemet_auto.preprocess import preparing_bytes, to_plan_grid

SHAPE = (96, 128, 128)
ONE_MM = (1.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def hu():
    random = np.random.default_rng(0)
    values = random.normal(40, 60, SHAPE)
    values[10:80, 40:60, 30:50] += 500
    return values.astype(np.int16)


def bytes_per_voxel(work):
    tracemalloc.start()
    try:
        result = work()
        return tracemalloc.get_traced_memory()[1] / np.prod(SHAPE), result
    finally:
        tracemalloc.stop()


def test_bone_takes_as_much_as_its_smoothed_scan_and_its_pieces(hu):
    taken, bone = bytes_per_voxel(lambda: bone_mask(hu, ONE_MM))
    assert taken < 7.5
    pieces, _ = ndimage.label(
        ndimage.uniform_filter(hu, 3, mode="nearest") > 150, np.ones((3,) * 3)
    )
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    assert np.array_equal(bone, (sizes >= 100)[pieces]) and 20_000 < bone.sum() < 40_000


def test_margins_around_bone_take_two_bytes(hu):
    bone = hu > 300
    taken, grown = bytes_per_voxel(lambda: dilate_bone(bone, ONE_MM))
    assert taken < 2.2
    assert grown.dtype == bool and grown.sum() > bone.sum()


def test_windows_and_components_take_no_more_than_their_results(hu):
    wanted = hu > 300
    assert bytes_per_voxel(lambda: lay_tiles(SHAPE, (32, 32, 32), 0.5, wanted))[0] < 1.1
    total = np.zeros(SHAPE, np.float32)
    tiling = lay_tiles(SHAPE, (32, 32, 32), 0.5, None)
    assert bytes_per_voxel(lambda: tiling.divide_by_weight(total))[0] < 0.2
    assert bytes_per_voxel(lambda: label_components(total))[0] < 5.2


@pytest.mark.parametrize("code", [4, 512])
def test_a_scale_in_the_header_costs_one_copy_in_double_precision(hu, tmp_path, code):
    path = tmp_path / "a.nii"
    write_volume(path, Volume(hu, Geometry(SHAPE, ONE_MM)))
    raw = bytearray(path.read_bytes())
    shift = 0 if code == 4 else 2048
    raw[352:] = (hu.astype(np.int32) + shift).astype("<i2" if code == 4 else "<u2").tobytes()
    raw[70:72], raw[112:120] = struct.pack("<h", code), struct.pack("<ff", 1, -shift or 1e-3)
    path.write_bytes(raw)
    taken, found = bytes_per_voxel(lambda: read_hu(path).array)
    assert np.array_equal(found, hu)
    assert taken < 12.5


def test_preparing_a_scan_keeps_to_what_is_planned_for_it(hu):
    def prepare():
        own = hu.copy()
        stored = to_plan_grid(own, ONE_MM, (1.2, 1.2, 1.2))
        return dilate_bone(bone_mask(stored.hu, stored.spacing_mm), stored.spacing_mm)

    taken, _ = bytes_per_voxel(prepare)
    assert taken < preparing_bytes(SHAPE, ONE_MM, (1.2, 1.2, 1.2)) / np.prod(SHAPE)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)], ids=str)
def test_a_scan_that_lies_otherwise_is_not_copied_to_stand_upright(hu, order):
    view = hu[::-1, :, ::-1].transpose(order)
    grid = (1.25, 1.0, 1.1)
    own = np.ascontiguousarray(view)
    taken, stored = bytes_per_voxel(lambda: to_plan_grid(view, ONE_MM, grid))
    usual, expected = bytes_per_voxel(lambda: to_plan_grid(own, ONE_MM, grid))
    assert np.array_equal(stored.hu, expected.hu)
    assert taken < usual + 0.1
