import ctypes
import os
import subprocess
import sys

import pytest

from bonemet_auto.processor import (
    default_workers,
    free_memory_bytes,
    processes_for,
    tune_processor,
)


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


GIB = 1 << 30


def system_with(folder, files):
    for name, text in {"proc/meminfo": f"MemAvailable:  {20 * GIB // 1024} kB\n", **files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 20),
        ({"proc/meminfo": "MemTotal: 1 kB\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n",
          "sys/fs/cgroup/memory.current": "1\n"}, 20),
        ({"proc/self/cgroup": "0::/job/step\n",
          "sys/fs/cgroup/job/memory.max": f"{6 * GIB}\n",
          "sys/fs/cgroup/job/memory.current": f"{4 * GIB}\n",
          "sys/fs/cgroup/job/memory.stat": f"anon 5\ninactive_file {GIB}\n",
          "sys/fs/cgroup/job/step/memory.max": "max\n",
          "sys/fs/cgroup/job/step/memory.current": "7\n"}, 3),
        ({"proc/self/cgroup": "5:cpu:/x\n4:memory:/docker/abc\n",
          "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{5 * GIB}\n",
          "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}\n"}, 4),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{GIB}\n",
          "sys/fs/cgroup/memory.current": f"{2 * GIB}\n"}, 0),
    ],
    ids=["machine", "unknown", "no limit", "outer group", "version 1, host path", "over"],
)  # fmt: skip
def test_free_memory_is_the_least_of_machine_and_control_groups(tmp_path, files, free):
    assert free_memory_bytes(system_with(tmp_path, files)) == free * GIB


def test_a_machine_that_tells_nothing_is_assumed_small(tmp_path):
    assert free_memory_bytes(tmp_path) == 8 * GIB


def test_processes_fit_cores_and_memory(monkeypatch):
    from bonemet_auto import processor

    monkeypatch.setattr(processor, "usable_cores", lambda: 6)
    monkeypatch.setattr(processor, "free_memory_bytes", lambda: 10 * GIB)
    assert [processes_for(n * GIB) for n in (1, 2, 3, 40)] == [6, 5, 3, 1]


def test_torch_is_not_imported_before_the_tuning():
    script = "import sys, bonemet_auto.processor; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
