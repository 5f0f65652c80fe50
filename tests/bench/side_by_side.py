"""Time two ways to do one thing in turns, and print the ratio of their medians.

The ratio holds on another or a busy machine, where milliseconds do not. Process time: with one
thread, what others do in the meantime does not count.
"""

import time
from collections.abc import Callable

SECONDS_EACH = 0.5
LEAST_TURNS = 5


def print_header() -> None:
    print(f"{'operation':62s} {'ours':>12s}  {'naive':>12s}  ratio")


def compare(
    name: str,
    ours: Callable[[], object],
    naive: Callable[[], object],
    target: float | None = None,
) -> None:
    """Print the medians of both and their ratio, and whether it reaches `target`."""
    ours(), naive()
    times_s: tuple[list[float], list[float]] = ([], [])
    start_s = time.perf_counter()
    while len(times_s[0]) < LEAST_TURNS or time.perf_counter() - start_s < 2 * SECONDS_EACH:
        for taken, run in zip(times_s, (ours, naive), strict=True):
            before_s = time.process_time()
            run()
            taken.append(time.process_time() - before_s)
    one, other = (sorted(taken)[len(taken) // 2] * 1000 for taken in times_s)
    verdict = ""
    if target is not None:
        verdict = f"  (aim x{target:g}: {'reached' if other >= target * one else 'MISSED'})"
    print(f"{name:62s} {one:9.2f} ms  {other:9.2f} ms  x{other / one:.1f}{verdict}", flush=True)
