import numpy as np
import pytest
from scipy import ndimage

from bonemet_auto.data.loader import PatchDataset
from bonemet_auto.data.plant import APART_MM, plant
from bonemet_auto.plan_schema import AugmentationPlan
from bonemet_auto.store import open_case, write_case
from tests.unit.training_fakes import training_plan, write_stored_case

SPACING = (1.5, 1.0, 1.0)
SHAPE = (32, 48, 48)


def window(seed=0):
    """A cylinder of bone along z in soft tissue, with one annotated lesion at its end."""
    random = np.random.default_rng(seed)
    hu = random.normal(40, 12, SHAPE)
    y, x = np.ogrid[: SHAPE[1], : SHAPE[2]]
    inside = (y - 24) ** 2 + (x - 24) ** 2 < 15**2
    hu[:, inside] += 280
    instances = np.zeros(SHAPE, np.uint16)
    instances[2:6, 20:28, 20:28] = 3
    return np.rint(hu).astype(np.int16), instances, np.broadcast_to(inside, SHAPE)


def plants(seeds):
    for seed in seeds:
        hu, instances, bone = window()
        before, had = hu.copy(), instances.copy()
        record = plant(hu, instances, SPACING, 7, np.random.default_rng(seed))
        yield record, hu, instances, before, had, bone


def test_planted_lesions_lie_in_bone_apart_from_others_and_show():
    sources, n_found = [], 0
    for record, hu, instances, before, had, bone in plants(range(12)):
        assert (instances[had == 3] == 3).all() and (hu[had == 3] == before[had == 3]).all()
        if record is None:
            assert (instances == had).all() and (hu == before).all()
            continue
        n_found += 1
        new = instances == 7
        assert record.volume_voxel == new.sum() and record.instance == 7
        place = ndimage.find_objects(new.astype(np.uint8))[0]
        assert record.box_voxel_zyx == (*(s.start for s in place), *(s.stop for s in place))
        assert bone[new].mean() > 0.5
        centre = tuple(np.argwhere(new).mean(axis=0).round().astype(int))
        away_mm = ndimage.distance_transform_edt(had == 0, SPACING)
        assert away_mm[centre] > APART_MM / 2
        assert np.abs(hu[new].astype(int) - before[new]).mean() > 30
        far = ndimage.distance_transform_edt(~new, SPACING) > 8
        assert (hu[far] == before[far]).all()
        sources.append(record.is_lung)
    assert n_found >= 8 and len(set(sources)) == 2


def test_the_same_draw_plants_the_same_lesion():
    first, second = next(plants([5])), next(plants([5]))
    assert first[0] is not None and first[0] == second[0]
    assert (first[1] == second[1]).all() and (first[2] == second[2]).all()


def test_without_bone_nothing_is_planted():
    hu = np.full(SHAPE, 30, np.int16)
    assert plant(hu, np.zeros(SHAPE, np.uint16), SPACING, 1, np.random.default_rng(0)) is None
    assert (hu == 30).all()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_plan_decides_how_many_windows_get_one(tmp_path, share):
    shape = (24, 40, 40)
    write_stored_case(tmp_path, "a", shape, lesions=(), bone=((12, 20, 20),))
    stored = open_case(tmp_path, "a")
    hu, instances = stored.read()
    hu[:, 6:34, 6:34] = 320
    write_case(tmp_path, hu, instances, stored.meta)
    plan = training_plan((16, 32, 32)).model_copy(
        update={"augmentation": AugmentationPlan(planting=share)}
    )
    data = PatchDataset(tmp_path, ["a"], plan, seed=0)
    lesions = [len(data[k][1].boxes) for k in range(12)]
    assert sum(lesions) >= 4 if share else not any(lesions)
