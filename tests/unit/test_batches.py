"""Windows that are too many for the memory go again in smaller batches, with the same results."""

import logging

import numpy as np
import pytest
import torch

from bonemet_auto.inference import batches
from bonemet_auto.inference.batches import BatchSize, first_batch_size, in_batches, windows_that_fit
from bonemet_auto.inference.predict import find_lesions, predict_volume, prepare_scan
from bonemet_auto.model.footprint import forward_bytes, measure_footprint
from bonemet_auto.model.mask_rcnn import build_model
from tests.unit.inference_fakes import BlobNetwork, add_ball, make_plan, tissue
from tests.unit.training_fakes import training_plan

CPU = torch.device("cpu")


def shortages():
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**50)
    return {
        "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB."),
        "cudnn": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        "cpu": refused.value,
        "numpy": MemoryError("Unable to allocate 20 GiB"),
    }


class Cramped:
    """A network that has no memory for more than `room` windows at once."""

    def __init__(self, network, room, error):
        self.network, self.room, self.error, self.tried = network, room, error, []

    def eval(self):
        return self

    def detect(self, images):
        self.require_room(images)
        return self.network.detect(images)

    def outline(self, images, boxes):
        self.require_room(images)
        return self.network.outline(images, boxes)

    def require_room(self, images):
        self.tried.append(len(images))
        if len(images) > self.room:
            raise self.error


@pytest.fixture
def eight(monkeypatch):
    monkeypatch.setattr(batches, "CPU_BATCH", 8)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = build_model(training_plan((8, 16, 16)).network).eval()
    with torch.no_grad():
        model.dense.logit.weight.mul_(30)
        model.dense.logit.bias.zero_()
    return model


def scan():
    return add_ball(tissue((20, 40, 40)), (20, 20, 10), 6)


@pytest.mark.parametrize("kind", ["cuda", "cudnn", "cpu", "numpy"])
@pytest.mark.parametrize("room", [1, 3])
def test_smaller_batches_give_the_same_lesions_and_a_note(eight, network, kind, room, caplog):
    plan = training_plan((8, 16, 16))
    usual = predict_volume(scan(), [network], plan, CPU).lesions
    cramped = Cramped(network, room, shortages()[kind])
    with caplog.at_level(logging.WARNING):
        found = predict_volume(scan(), [cramped], plan, CPU).lesions
    assert cramped.tried[:2] == [8, 4] and max(cramped.tried[4:]) <= room
    assert "memory ran out with 8 windows at once; goes on with 4" in caplog.text
    assert len(usual) > 3
    for one, other in zip(usual, found, strict=True):
        assert (one.score, one.p_lung, one.start) == (other.score, other.p_lung, other.start)
        assert np.array_equal(one.mask, other.mask)


def test_the_note_goes_to_the_run_report(eight):
    prepared = prepare_scan(scan(), make_plan())
    find_lesions(prepared, [Cramped(BlobNetwork(), 4, MemoryError())], make_plan(), CPU)
    assert prepared.cost.notes == ["memory ran out with 8 windows at once; goes on with 4"]


def test_a_single_window_that_does_not_fit_is_a_failure(eight):
    with pytest.raises(torch.OutOfMemoryError):
        cramped = Cramped(BlobNetwork(), 0, torch.OutOfMemoryError("full"))
        predict_volume(scan(), [cramped], make_plan(), CPU)


def test_other_errors_are_not_taken_for_want_of_memory():
    def broken(run):
        raise RuntimeError("shapes do not match")

    size = BatchSize(4)
    with pytest.raises(RuntimeError, match="shapes"):
        list(in_batches([(0, 0, 0)] * 4, size, CPU, broken))
    assert size == BatchSize(4)


def test_every_window_is_done_once_whatever_fails():
    windows = [(i, 0, 0) for i in range(11)]
    size, done = BatchSize(8), []

    def work(run):
        if len(run) > 3:
            raise MemoryError
        return [start[0] for start in run]

    for first, run, result in in_batches(windows, size, CPU, work):
        assert run == windows[first : first + len(run)]
        done += result
    assert done == list(range(11))
    assert size.size == 2


def test_the_batch_follows_the_memory_that_is_free():
    assert windows_that_fit(0, 1000) == 1
    assert windows_that_fit(10_000, 1000) == 6
    assert windows_that_fit(10**9, 1000) == batches.LARGEST_GPU_BATCH
    assert first_batch_size(make_plan(), CPU) == batches.CPU_BATCH


def test_a_look_needs_less_memory_than_training_and_grows_with_the_window():
    network = training_plan((8, 16, 16)).network
    small, large = (forward_bytes(network, (8, n, n), mixed=False) for n in (16, 32))
    assert small < large < 4.5 * small
    assert large < measure_footprint(network, (8, 32, 32), 1, mixed=False).peak
