import ctypes
import os
import subprocess
import sys

import pytest

from bonemet_auto.processor import default_workers, tune_processor


class FakeLibc:
    def __init__(self):
        self.calls = {}

    def mallopt(self, option, value):
        self.calls[option] = value


@pytest.fixture
def libc(monkeypatch):
    fake = FakeLibc()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: fake)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    return fake


def test_large_blocks_stay_in_the_process_and_threads_spin_briefly(libc):
    tune_processor()
    mmap_max, trim_threshold = -4, -1
    assert libc.calls[mmap_max] == 0 and libc.calls[trim_threshold] > 2**30
    assert 0 < int(os.environ["GOMP_SPINCOUNT"]) < 10_000


def test_what_the_user_set_stays(libc, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    tune_processor()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE" and "GOMP_SPINCOUNT" not in os.environ


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_a_system_without_glibc_is_left_alone(libc, monkeypatch, platform):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", missing)
    tune_processor()


@pytest.mark.parametrize(("cores", "workers"), [(None, 0), (1, 0), (2, 1), (6, 5), (64, 8)])
def test_one_core_is_left_for_the_network(monkeypatch, cores, workers):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores or 1), raising=False)
    assert default_workers() == workers


def test_torch_is_not_imported_before_the_tuning():
    script = "import sys, bonemet_auto.processor; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
