"""Copies of lesions in other windows: where they go, what they change, what training is told."""

import numpy as np
import pytest

from bonemet_auto.data import loader
from bonemet_auto.data.loader import PatchDataset
from bonemet_auto.data.paste import RIM_MM, Cutout, cut_out, near_bone, paste, vary
from bonemet_auto.store import open_case
from tests.unit.training_fakes import training_plan, write_stored_case

SPACING = (2.0, 1.0, 1.0)
SHAPE = (24, 40, 40)
BRIGHT = 5.0


def rng(seed=0):
    np.random.seed(seed)  # noqa: NPY002, batchgenerators draws from it
    return np.random.default_rng(seed)


def cutout(half=(2, 3, 3), margin=(3, 5, 5)):
    """A bright cuboid of 4x6x6 voxels on zeros."""
    shape = tuple(2 * (h + m) for h, m in zip(half, margin, strict=True))
    mask = np.zeros(shape, bool)
    mask[tuple(slice(m, -m) for m in margin)] = True
    return Cutout(np.where(mask, BRIGHT, 0).astype(np.float32), mask)


def window():
    return np.full(SHAPE, -1, np.float32), np.zeros(SHAPE, np.uint16)


def bone(box):
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(*ends) for ends in box)] = True
    return mask


BONE = bone(((6, 18), (8, 30), (10, 34)))


@pytest.mark.parametrize("seed", range(8))
def test_a_copy_lies_in_bone_and_changes_only_what_is_near(seed):
    image, instances = window()
    lesion = cutout()
    assert paste(image, instances, BONE, lesion, 7, SPACING, rng(seed))
    pasted = instances == 7
    assert pasted.sum() == lesion.mask.sum()
    assert BONE[pasted].mean() >= 0.65
    assert (image[pasted] == BRIGHT).all()
    assert set(np.unique(instances)) == {0, 7}
    changed = np.argwhere(image != -1)
    voxels = np.argwhere(pasted)
    reach = np.ceil(np.divide(RIM_MM[1], SPACING))
    assert (changed >= voxels.min(0) - reach).all() and (changed <= voxels.max(0) + reach).all()


def test_the_rim_fades_from_the_copy_to_the_window():
    image, instances = window()
    lesion = cutout()
    assert paste(image, instances, BONE, lesion, 1, SPACING, rng())
    z, y, x = (int(np.median(index)) for index in np.nonzero(instances))
    last = np.nonzero(instances[z, y])[0].max()
    # 1 mm from the lesion still the copy's own surroundings (0), 5 mm away the window's (-1).
    beside = image[z, y, last + 1 : last + 6]
    assert beside[0] == 0 and beside[-1] == -1
    assert (np.diff(beside) <= 0).all() and -1 < beside[2] < 0


def test_lesions_keep_apart():
    image, instances = window()
    instances[BONE] = 3
    before = image.copy()
    assert not paste(image, instances, BONE, cutout(), 4, SPACING, rng())
    np.testing.assert_array_equal(image, before)
    assert not (instances == 4).any()


@pytest.mark.parametrize(
    "place", [np.zeros(SHAPE, bool), bone(((6, 8), (8, 10), (10, 12)))], ids=["none", "a speck"]
)
def test_nothing_is_pasted_where_bone_has_no_room(place):
    image, instances = window()
    assert not paste(image, instances, place, cutout(), 1, SPACING, rng())
    assert not instances.any() and (image == -1).all()


def test_a_lesion_as_large_as_the_window_stays_out():
    image, instances = window()
    lesion = cutout(half=(12, 20, 20), margin=(1, 1, 1))
    assert not paste(image, instances, np.ones(SHAPE, bool), lesion, 1, SPACING, rng())


def test_variation_moves_image_and_mask_together():
    lesion = cutout(half=(5, 9, 9), margin=(4, 7, 7))
    for seed in range(5):
        varied = vary(lesion, SPACING, rng(seed))
        assert varied.image[varied.mask].mean() > 0.8 * BRIGHT
        assert varied.image[~varied.mask].mean() < 0.1 * BRIGHT
        assert varied.mask.any()


def test_near_bone_is_the_dense_part_and_the_marrow_beside_it():
    hu = np.full((15, 30, 30), 20, np.int16)
    hu[:, 8:22, 8:22] = 900
    hu[:, 10:20, 10:20] = 120
    found = near_bone(hu)
    assert found[7, 8:22, 8:22].mean() > 0.6
    assert found[7, 8:12, 8:22].all()
    assert not found[:, :5].any()


@pytest.fixture
def folder(tmp_path):
    write_stored_case(tmp_path, "with", (40, 48, 48), [((10, 12, 14, 16, 20, 22), True)], seed=1)
    write_stored_case(tmp_path, "without", (40, 48, 48), (), seed=2)
    return tmp_path


def test_a_cutout_is_the_lesion_and_what_is_around_it(folder):
    case, plan = open_case(folder, "with"), training_plan((16, 32, 32))
    found = cut_out(case, case.meta.lesions[0], plan.spacing_mm, lambda hu: hu.astype(np.float32))
    hu, instances = case.read()
    assert found.mask.sum() == (instances == 1).sum()
    np.testing.assert_array_equal(np.sort(found.image[found.mask]), np.sort(hu[instances == 1]))
    reach = np.ceil(np.divide(RIM_MM[1], plan.spacing_mm))
    inside = np.argwhere(found.mask)
    assert (inside.min(0) >= reach).all()
    assert (inside.max(0) + reach < found.mask.shape).all()


def test_training_is_told_of_pasted_lesions(folder, monkeypatch):
    monkeypatch.setattr(loader, "near_bone", lambda hu: np.ones(hu.shape, bool))
    monkeypatch.setattr(loader, "PASTE_SHARE", 1.0)
    plan = training_plan((16, 32, 32), lesion_share=0.0)
    # Whatever the case without lesions shows is pasted.
    data = PatchDataset(folder, ["with", "without"], plan, seed=0)
    shown = [targets for _, targets, case in (data[k] for k in range(40)) if case == "without"]
    found = [targets for targets in shown if len(targets.boxes)]
    assert len(found) > 0.7 * len(shown) > 5
    for targets in found:
        assert set(targets.is_lung.tolist()) == {1}
        assert set(targets.instances.unique().tolist()) >= set(range(len(targets.boxes) + 1))


def test_a_cohort_without_lesions_has_nothing_to_paste(tmp_path):
    write_stored_case(tmp_path, "without", (40, 48, 48), (), seed=2)
    data = PatchDataset(tmp_path, ["without"], training_plan((16, 32, 32)), seed=0)
    assert not any(data[k][1].instances.any() for k in range(10))
