import os
import signal
import sys
import threading

import pytest

from bonemet_auto.training import stop as module
from bonemet_auto.training.stop import Stop, interruptible


@pytest.mark.parametrize(("number", "said"), [("SIGINT", "Ctrl-C"), ("SIGTERM", "SIGTERM")])
def test_a_signal_asks_to_stop_and_is_given_back(tmp_path, number, said):
    number = getattr(signal, number)
    before = signal.getsignal(number)
    with Stop(tmp_path) as stop:
        assert stop.reason() is None
        os.kill(os.getpid(), number)
        assert stop.reason() == said
        if number == signal.SIGINT:
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before


@pytest.mark.parametrize(("number", "said"), [("SIGINT", ""), ("SIGTERM", "SIGTERM")])
def test_outside_the_loop_a_signal_interrupts_at_once_and_is_given_back(number, said):
    number = getattr(signal, number)
    before, children = signal.getsignal(number), signal.getsignal(signal.SIGCHLD)
    with pytest.raises(KeyboardInterrupt) as interrupted, interruptible():
        os.kill(os.getpid(), number)
    signal.signal(signal.SIGCHLD, children)
    assert str(interrupted.value) == said and signal.getsignal(number) == before


def test_the_end_of_a_child_seen_before_the_signal_of_all_is_an_interruption():
    late = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM))
    children = signal.getsignal(signal.SIGCHLD)
    with pytest.raises(KeyboardInterrupt), interruptible():
        late.start()
        raise RuntimeError("DataLoader worker is killed by signal: Terminated.")
    signal.signal(signal.SIGCHLD, children)
    with pytest.raises(RuntimeError, match="of its own"), interruptible():
        raise RuntimeError("of its own")


def test_a_file_asks_once_and_one_of_before_does_not_count(tmp_path):
    (tmp_path / "stop").touch()
    with Stop(tmp_path) as stop:
        assert stop.reason() is None
        (tmp_path / "stop").touch()
        assert str(tmp_path / "stop") in stop.reason()
        assert not (tmp_path / "stop").exists() and stop.reason()


def test_time_runs_out(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    stop = Stop(tmp_path, 5.0)
    assert stop.reason() is None
    now[0] = 105.0
    assert stop.reason() == "--max-time"
    assert Stop(tmp_path).reason() is None


def test_beside_the_main_thread_signals_are_left_alone(tmp_path):
    before, seen = signal.getsignal(signal.SIGTERM), []

    def enter():
        with Stop(tmp_path):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]


def test_the_end_of_loader_processes_that_comes_with_sigterm_writes_no_traceback(
    tmp_path, monkeypatch
):
    said = []
    monkeypatch.setattr(sys, "unraisablehook", lambda fault: said.append(fault.exc_value))
    before = signal.signal(signal.SIGCHLD, lambda *_: said.append("an error of the loader"))
    both = {signal.SIGTERM, signal.SIGCHLD}
    try:
        with Stop(tmp_path) as stop:
            signal.pthread_sigmask(signal.SIG_BLOCK, both)
            for number in both:
                signal.pthread_kill(threading.get_ident(), number)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, both)
            assert stop.reason() == "SIGTERM"
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert said == []
