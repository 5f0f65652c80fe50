import numpy as np
import pytest
import torch

from bonemet_auto.data.augment import SPATIAL_SHARE
from bonemet_auto.data.loader import (
    MIN_VISIBLE_SHARE,
    UNBOXED,
    PatchDataset,
    batches,
    window_targets,
)
from bonemet_auto.errors import DataError
from bonemet_auto.preprocess import normalise
from bonemet_auto.store import open_case
from tests.unit.training_fakes import stored_case, training_plan, write_stored_case

PATCH = (8, 16, 16)
PLAN = training_plan(PATCH)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cases")
    write_stored_case(folder, "Fall 1 ä", seed=1)
    write_stored_case(folder, "small", (5, 20, 9), [((1, 2, 2, 4, 6, 7), False)], (), seed=2)
    write_stored_case(folder, "empty", (20, 20, 20), (), ((3, 3, 3),), seed=3)
    return folder


NAMES = ["Fall 1 ä", "small", "empty"]


def dataset(folder, seed=0, augmented=True, names=NAMES):
    return PatchDataset(folder, names, PLAN, seed, augmented)


def in_bytes(sample):
    image, targets, case = sample
    parts = (image, targets.boxes, targets.instances, targets.is_lung)
    return case, *(part.numpy().tobytes() for part in parts)


def unbatched(loader):
    return [
        in_bytes((image, target, case))
        for batch in loader
        for image, target, case in zip(batch.images, batch.targets, batch.cases, strict=True)
    ]


def test_a_sample_is_a_function_of_seed_and_number_however_it_is_made(folder):
    straight = unbatched(batches(dataset(folder), 0, 10, 2, workers=0))
    assert unbatched(batches(dataset(folder), 6, 10, 2, workers=0)) == straight[12:]
    assert unbatched(batches(dataset(folder), 0, 10, 2, workers=1)) == straight
    np.random.seed(5)
    data = dataset(folder)
    assert [in_bytes(data[k]) for k in reversed(range(20))] == straight[::-1]


def test_other_seeds_and_numbers_give_other_samples(folder):
    one, other = ([in_bytes(dataset(folder, seed)[k]) for k in range(20)] for seed in (0, 1))
    assert sum(a == b for a, b in zip(one, other, strict=True)) <= 2
    assert len(set(one)) >= 15


def test_a_window_is_an_image_in_network_values_with_its_targets(folder):
    data = dataset(folder)
    spatial, lesions = 0, 0
    for k in range(30):
        image, targets, case = data[k]
        assert image.shape == (1, *PATCH) and image.dtype == torch.float32
        assert torch.isfinite(image).all() and case in NAMES
        assert targets.instances.shape == PATCH
        assert len(targets.boxes) == len(targets.is_lung)
        for number, box in enumerate(targets.boxes.int().tolist(), 1):
            inside = torch.nonzero(targets.instances == number)
            assert inside.amin(0).tolist() == box[:3]
            assert (inside.amax(0) + 1).tolist() == box[3:]
            lesions += 1
            spatial += len(inside) not in (3 * 4 * 4, 3 * 4 * 5)
    assert lesions > 10 and (SPATIAL_SHARE == 0 or spatial > 0)


def test_plain_windows_are_crops_of_the_stored_case_padded_with_air(folder):
    data, drawn = dataset(folder, augmented=False), []
    draw = data.sampler.draw
    data.sampler.draw = lambda *given: (drawn.append(draw(*given)), drawn[-1])[1]
    for k in range(12):
        image, targets, case = data[k]
        number, start = drawn[-1]
        hu, instances = open_case(folder, NAMES[number]).crop(start, PATCH)
        assert case == NAMES[number]
        expected = normalise(hu, PLAN.window_hu, PLAN.mean_hu, PLAN.sd_hu)
        np.testing.assert_array_equal(image[0].numpy(), expected)
        np.testing.assert_array_equal(targets.instances.numpy() > 0, instances > 0)


def window(*boxes, shape=(10, 12, 14)):
    instances = np.zeros(shape, np.uint16)
    for number, (z0, y0, x0, z1, y1, x1) in boxes:
        instances[z0:z1, y0:y1, x0:x1] = number
    return instances


def described(*lesions):
    """(id, is_lung, voxels) of lesions, as a case records them."""
    template = stored_case("a", (9, 9, 9), [((0, 0, 0, 1, 1, 1), None)]).lesions[0]
    return tuple(
        template.model_copy(update={"instance": number, "is_lung": source, "volume_voxel": volume})
        for number, source, volume in lesions
    )


def test_targets_are_numbered_from_one_in_the_order_of_the_case():
    instances = window((9, (1, 1, 1, 3, 4, 5)), (40_000, (5, 6, 7, 10, 12, 14)))
    case = described((3, True, 5), (9, None, 24), (40_000, False, 210))
    found = window_targets(instances, case)
    assert found.boxes.tolist() == [[1, 1, 1, 3, 4, 5], [5, 6, 7, 10, 12, 14]]
    assert found.is_lung.tolist() == [-1, 0]
    assert found.instances.dtype == torch.int16
    np.testing.assert_array_equal(found.instances == 1, instances == 9)
    np.testing.assert_array_equal(found.instances == 2, instances == 40_000)


def test_slivers_are_not_to_be_detected_but_stay_lesion_for_the_dense_branch():
    instances = window((1, (0, 0, 0, 2, 5, 10)), (2, (6, 6, 6, 8, 8, 8)))
    barely = int(100 / MIN_VISIBLE_SHARE)
    kept = window_targets(instances, described((1, True, barely), (2, False, 8)))
    assert len(kept.boxes) == 2
    dropped = window_targets(instances, described((1, True, barely + 10), (2, False, 8)))
    assert dropped.boxes.tolist() == [[6, 6, 6, 8, 8, 8]] and dropped.is_lung.tolist() == [0]
    assert (dropped.instances[instances == 1] == UNBOXED).all()
    np.testing.assert_array_equal(dropped.instances > 0, instances > 0)


def test_a_window_without_lesions_has_empty_targets():
    found = window_targets(window(), described((1, True, 8)))
    assert found.boxes.shape == (0, 6) and found.is_lung.shape == (0,)
    assert not found.instances.any()


def test_boxes_that_overlap_share_no_voxel():
    instances = window((1, (0, 0, 0, 6, 6, 6)), (2, (3, 3, 3, 5, 5, 5)))
    found = window_targets(instances, described((1, True, 208), (2, False, 8)))
    assert (found.instances == 1).sum() == 208 and (found.instances == 2).sum() == 8


def test_a_damaged_case_is_named(folder, tmp_path):
    write_stored_case(tmp_path, "broken")
    path = tmp_path / "broken.b2nd"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="broken"):
        list(batches(dataset(tmp_path, names=["broken"]), 0, 1, 1, workers=0))


def test_a_case_that_was_not_preprocessed_is_refused_with_the_remedy(folder):
    with pytest.raises(DataError, match="bonemet_plan_and_preprocess"):
        dataset(folder, names=["missing"])


def test_no_steps_no_batches(folder):
    assert list(batches(dataset(folder), 4, 4, 2, workers=0)) == []
