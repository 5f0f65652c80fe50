"""Reading ahead and writing behind: order, faults, memory and stops."""

import gc
import threading
import weakref

import pytest

from bonemet_auto.images import write_volume
from bonemet_auto.inference import predict as prediction
from bonemet_auto.inference.ahead import read_ahead, write_behind
from bonemet_auto.inference.cost import Cost
from bonemet_auto.schema import FailedCase
from tests.unit.inference_fakes import BlobNetwork, add_ball, make_plan, tissue
from tests.unit.test_batches import CPU

WAIT_S = 20


class Case:
    """Something that can be watched."""

    def __init__(self, number):
        self.number = number


def always(job):
    return True


def test_the_next_is_read_while_one_is_in_use():
    began = {number: threading.Event() for number in range(3)}

    def read(number):
        began[number].set()
        return number

    coming = read_ahead(range(3), read, always)
    assert next(coming).result() == 0
    assert began[1].wait(WAIT_S)
    assert not began[2].is_set()
    assert [future.result() for future in coming] == [1, 2]


def test_what_does_not_fit_beside_another_waits_for_its_turn():
    began = []
    coming = read_ahead(range(3), lambda n: began.append(n) or n, lambda n: n != 1)
    assert next(coming).result() == 0
    assert began == [0]
    assert [future.result() for future in coming] == [1, 2]


def test_two_cases_at_most_are_in_memory():
    alive = weakref.WeakSet()
    most = 0

    def read(number):
        nonlocal most
        case = Case(number)
        alive.add(case)
        most = max(most, len(alive))
        return case

    def use(coming):
        case = next(coming).result()
        return case.number

    coming = read_ahead(range(6), read, always)
    gc.disable()  # Letting go must be enough.
    try:
        assert [use(coming) for _ in range(6)] == list(range(6))
    finally:
        gc.enable()
    assert most == 2


def test_a_fault_stays_with_its_job():
    coming = read_ahead([2, 0, 1], lambda n: 1 / n, always)
    assert next(coming).result() == 0.5
    with pytest.raises(ZeroDivisionError):
        next(coming).result()
    assert next(coming).result() == 1


def test_who_stops_early_leaves_no_thread_and_no_further_reading():
    before, began = threading.active_count(), []
    coming = read_ahead(range(9), began.append, always)
    next(coming)
    coming.close()
    assert threading.active_count() == before
    assert len(began) <= 2


def test_results_are_written_in_order_while_the_next_is_found():
    in_writing, found_next = threading.Event(), threading.Event()

    def find():
        yield "a"
        assert in_writing.wait(WAIT_S)
        found_next.set()
        yield "b"

    def write(item):
        in_writing.set()
        assert found_next.wait(WAIT_S)
        return item.upper()

    assert list(write_behind(find(), write)) == ["A", "B"]


def test_a_stop_lets_the_file_under_way_be_finished():
    done = []

    def find():
        yield "a"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(write_behind(find(), done.append))
    assert done == ["a"]


def test_a_fault_in_writing_is_told():
    with pytest.raises(OSError, match="full"):
        list(write_behind(["a", "b"], lambda item: (_ for _ in ()).throw(OSError("disk full"))))


def test_cases_side_by_side_and_one_by_one_are_the_same(tmp_path, monkeypatch):
    images = {}
    for case in "abcd":
        images[case] = tmp_path / f"{case}.nii.gz"
        radius_mm = 3 + ord(case) % 4
        write_volume(images[case], add_ball(tissue((20, 20, 20)), (10, 10, 10), radius_mm))
    images["c"].write_bytes(b"broken")

    def run():
        outcomes = prediction.predict_cases(images, [BlobNetwork()], make_plan(), CPU)
        return [(outcome.case, volumes(outcome)) for outcome in outcomes]

    def volumes(outcome):
        if isinstance(outcome, FailedCase):
            return None
        return [lesion.volume_mm3 for lesion in outcome.result.lesions]

    together = run()
    monkeypatch.setattr(prediction, "free_memory_bytes", lambda: 0)
    assert run() == together
    assert [case for case, _ in together] == list("abcd")
    assert together[2] == ("c", None)


def test_a_stage_within_another_counts_once(monkeypatch):
    clock = iter([0.0, 1.0, 4.0, 10.0])
    monkeypatch.setattr("bonemet_auto.inference.cost.time.perf_counter", lambda: next(clock))
    cost = Cost()
    with cost.stage("merge"), cost.stage("describe"):
        pass
    assert cost.seconds == {"describe": 3.0, "merge": 7.0}
