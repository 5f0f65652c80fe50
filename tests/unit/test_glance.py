import math

import pytest
import torch
from scipy import ndimage

from bonemet_auto.data.loader import UNBOXED
from bonemet_auto.model.mask_rcnn import Detections
from bonemet_auto.model.roi_sampling import Targets
from bonemet_auto.training.glance import Glance, lesions_found, window_dice
from bonemet_auto.training.log import epoch_line, seconds_left
from bonemet_auto.training.schedule import is_dense_only

SHAPE = (12, 16, 16)


def window(*lesions):
    """Instance map with cubes of 4 voxels that begin at these corners."""
    instances = torch.zeros(SHAPE, dtype=torch.int16)
    for number, (z, y, x) in enumerate(lesions, 1):
        instances[z : z + 4, y : y + 4, x : x + 4] = number
    return instances


def test_the_dice_counts_windows_with_a_lesion_only():
    instances = torch.stack([window((1, 1, 1)), window(), window((2, 2, 2))])
    dense = (instances > 0).float()
    dense[1] = 0.9
    dense[2] = 0
    assert window_dice(dense, instances) == pytest.approx(0.5)
    assert math.isnan(window_dice(dense[1:2], instances[1:2]))


def test_lesions_are_found_by_their_peaks_among_the_false_ones():
    instances = torch.stack([window((1, 1, 1), (7, 10, 10)), window()])
    instances[0, 6:10, 1:5, 1:5] = UNBOXED
    dense = torch.zeros(2, *SHAPE)
    dense[0][instances[0] == 1] = 0.9
    dense[0][instances[0] == 2] = 0.4
    dense[1, 5:8, 5:8, 5:8] = 0.6
    assert lesions_found(dense, instances, false_peaks=0) == 0.5, "one false peak lies above"
    assert lesions_found(dense, instances, false_peaks=0.5) == 1.0, "one false peak is allowed"
    assert math.isnan(lesions_found(dense[1:], instances[1:], 1))


def test_peaks_are_those_of_an_obvious_count():
    rng = torch.Generator().manual_seed(0)
    instances = torch.stack([window((1, 1, 1), (7, 10, 9)), window((4, 4, 4))])
    dense = torch.rand(2, *SHAPE, generator=rng)
    kept, best = [], []
    for probability, ids in zip(dense.numpy(), instances.numpy(), strict=True):
        smooth = ndimage.uniform_filter(probability, 3, mode="constant")
        peak = ndimage.maximum_filter(smooth, 5, mode="constant") == smooth
        near = ndimage.maximum_filter((ids > 0).astype(int), 5, mode="constant") > 0
        kept += smooth[peak & ~near].tolist()
        best += [smooth[ids == number].max() for number in (1, 2) if (ids == number).any()]
    for allowed in (0.0, 1.0, 3.0):
        limit = sorted(kept, reverse=True)[int(2 * allowed)]
        expected = sum(value > limit for value in best) / len(best)
        assert lesions_found(dense, instances, allowed) == pytest.approx(expected)


def test_the_time_left_knows_that_later_steps_are_dearer():
    total = 100
    dense = sum(is_dense_only(step, total) for step in range(total))
    early = {"step": 10, "step_s": 2.0}
    assert seconds_left(early, total) == pytest.approx(2 * (dense - 10) + 3.4 * (100 - dense))
    assert seconds_left({"step": 90, "step_s": 3.0}, total) == pytest.approx(30)
    assert seconds_left({"step": 100, "step_s": 3.0}, total) == 0


def test_an_epoch_is_told_in_a_line():
    row = {"epoch": 1, "step": 90, "step_s": 2.0, "loader_wait_s": 0.1, "held_out_dice": 0.25}
    line = epoch_line(row | {"held_out_found": 0.5}, 10, 100)
    assert line == (
        "epoch 2 of 10; step 90 of 100; 2 s each, 5% of it waiting for data; "
        "held-out windows: Dice 0.25, lesions found 0.50; 0:00:20 left"
    )
    assert "held-out" not in epoch_line({k: v for k, v in row.items() if "held" not in k}, 10, 100)


class Oracle(torch.nn.Module):
    """Answers bright voxels."""

    def detect(self, images):
        boxes = torch.tensor([[2.0, 2, 2, 6, 6, 6]])
        return Detections((images[:, 0] > 0.5).float(), [boxes], [torch.tensor([0.9])])


def test_a_glance_measures_and_draws(tmp_path):
    instances = window((2, 2, 2))
    target = Targets(torch.tensor([[2.0, 2, 2, 6, 6, 6]]), instances, torch.tensor([1]))
    samples = [((instances > 0).float()[None], target, "a")] * 16
    glance = Glance(samples, samples, tmp_path, torch.device("cpu"))
    assert glance(Oracle()) == {"held_out_dice": 1.0, "held_out_found": 1.0}
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")


def test_without_lesions_there_is_nothing_to_measure_and_the_picture_is_drawn(tmp_path):
    target = Targets(torch.zeros(0, 6), window(), torch.zeros(0, dtype=torch.long))
    samples = [(torch.zeros(1, *SHAPE), target, "a")] * 16
    assert Glance(samples, samples, tmp_path, torch.device("cpu"))(Oracle()) == {}
    assert (tmp_path / "samples.png").is_file()
