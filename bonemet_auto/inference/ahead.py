"""Reading, computing and writing side by side: one thread before the networks, one behind them.

Both hold one case at most, so memory stays bounded however many cases there are. The order of the
cases stays, and what fails fails with its own case.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Job = TypeVar("Job")
Read = TypeVar("Read")
Found = TypeVar("Found")
Written = TypeVar("Written")


def read_ahead(
    jobs: Iterable[Job], read: Callable[[Job], Read], fits: Callable[[Job], bool]
) -> Generator[Future[Read], None, None]:
    """Read jobs in their order, each while the one before it is used.

    Args:
        jobs: what to read.
        read: runs in a thread.
        fits: whether there is room for a job beside the one in use; if not, it waits.

    Yields:
        One future per job. Whoever takes its result lets it go before asking for the next.
    """
    with _thread() as thread:
        coming: list[Future[Read]] = []
        for job in jobs:
            if coming and not fits(job):
                yield coming.pop()
            coming.append(thread.submit(read, job))
            if len(coming) > 1:
                yield coming.pop(0)
        if coming:
            yield coming.pop()


def write_behind(
    found: Iterable[Found], write: Callable[[Found], Written]
) -> Generator[Written, None, None]:
    """Write what is found, each while the next is being found; results in the same order."""
    with _thread() as thread:
        last: Future[Written] | None = None
        for item in found:
            if last is not None:
                yield last.result()
            last = thread.submit(write, item)
        if last is not None:
            yield last.result()


@contextmanager
def _thread() -> Iterator[ThreadPoolExecutor]:
    """One thread that ends with the block: after what it is at, without what still waits."""
    pool = ThreadPoolExecutor(1)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
