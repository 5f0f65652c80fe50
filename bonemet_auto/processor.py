"""What a machine has to give, and how its processor is used: cores, memory, allocator, threads."""

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bonemet_auto.errors import UsageError

if TYPE_CHECKING:
    import torch

WINDOWS_PER_PART = 2
"""Windows of a batch that go through the network together on a CPU; other parts run beside them.

A constant, so that results do not depend on the number of cores.
"""

INTERPRETER_BYTES = 300_000_000
"""A worker process with its libraries, before it does anything."""

_SWITCH_INTERVAL_S = 2e-4
"""Training lanes hand the interpreter over at each operation; Python's own 5 ms is far too long."""

_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4

_ASSUMED_BYTES = 8 << 30
_GROUP_FILES = (
    ("memory.max", "memory.current"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
)


def tune_processor() -> None:
    """Keep large blocks in the process, and let idle threads spin for microseconds only.

    Call before importing numpy or torch. glibc maps large temporaries anew for each operation and
    the kernel clears their pages each time; keeping them makes elementwise operations on feature
    maps several times faster. A training step is thousands of small operations: threads that sleep
    at once between them are slow to wake, threads that spin for long take the cores from others.
    Numpy's matrix products are small here, and its helper threads spin through half a core of a
    loader.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    if sys.platform.startswith("linux"):
        try:
            libc = ctypes.CDLL("libc.so.6")
        except OSError:
            return
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def pick_device(name: str) -> "torch.device":
    """The torch device of a `--device` flag; `auto` takes CUDA where there is one.

    Raises:
        UsageError: no such device here.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name}: write auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: {torch.cuda.device_count()} CUDA devices are here")
    return device


def default_workers(processes: int = 1) -> int:
    """Loader processes beside each that computes: the other cores of its share, at most 8."""
    return max(0, min(8, usable_cores() // processes - 1))


def processes_for(bytes_each: int) -> int:
    """Worker processes that fit the cores and the free memory; at least one."""
    return max(1, min(usable_cores(), free_memory_bytes() // max(1, bytes_each)))


def usable_cores() -> int:
    """Cores that this process may use: what a cluster job was given, not what is there."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_memory_bytes(system: Path = Path("/")) -> int:
    """Memory that can still be taken: of the machine, and of every control group around us.

    A container or cluster job is killed at its group's limit, however much the machine has free.
    Cached files count as free. Where the system does not tell, 8 GiB are assumed.

    Args:
        system: where `proc` and `sys` lie.
    """
    limits = [_room(group) for group in _control_groups(system)]
    meminfo = _numbers(system / "proc" / "meminfo")
    limits.append(meminfo["MemAvailable:"] * 1024 if "MemAvailable:" in meminfo else None)
    return max(0, min((room for room in limits if room is not None), default=_ASSUMED_BYTES))


def _control_groups(system: Path) -> Iterator[Path]:
    """Folders of the memory control groups of this process, inner to outer (versions 2 and 1)."""
    top = system / "sys" / "fs" / "cgroup"
    for line in _text(system / "proc" / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        base = top / controllers
        inner = base / path.lstrip("/")
        # In a container the path may be that of the host; the container's own group is the base.
        while inner != base and base in inner.parents:
            yield inner
            inner = inner.parent
        yield base


def _room(group: Path) -> int | None:
    """Bytes below a group's limit; None without a limit."""
    for limit, usage in _GROUP_FILES:
        most, used = _text(group / limit).strip(), _text(group / usage).strip()
        if most.isdecimal() and used.isdecimal():
            cached = _numbers(group / "memory.stat").get("inactive_file", 0)
            return int(most) - int(used) + cached
    return None


def _numbers(path: Path) -> dict[str, int]:
    """Lines of a key and a number (and a unit)."""
    rows = [line.split() for line in _text(path).splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
