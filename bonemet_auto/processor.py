"""How the processor is used: allocator and threads. Called once, at a command's start."""

import ctypes
import os
import sys

_SWITCH_INTERVAL_S = 2e-4
"""Training lanes hand the interpreter over at each operation; Python's own 5 ms is far too long."""

_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


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


def default_workers() -> int:
    """Loader processes beside the one that computes: the other cores, at most 8."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))  # what a cluster job was given, not what is there
    else:
        cores = os.cpu_count() or 1
    return max(0, min(8, cores - 1))
