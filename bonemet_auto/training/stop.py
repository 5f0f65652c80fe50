"""How a long run is asked to stop where it can go on: after the step under way."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType

STOP_FILE = "stop"

SIGNAL_DELAY_S = 0.5
"""A cluster sends SIGTERM to the loader's processes too, and theirs may be seen first."""


class Stop:
    """Listens for Ctrl-C, SIGTERM, a time limit and a file named `stop` in the run's folder.

    A second Ctrl-C interrupts at once. Signals are listened for in the main thread only, and while
    the object is entered.

    Args:
        folder: where the file is looked for; it is removed when it has been seen.
        max_time_s: seconds from now; None without limit.
    """

    def __init__(self, folder: Path, max_time_s: float | None = None) -> None:
        self.file = folder / STOP_FILE
        self._ends = None if max_time_s is None else time.monotonic() + max_time_s
        self._signal: str | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "Stop":
        """Take over the signals; a file of an earlier run is forgotten."""
        self.file.unlink(missing_ok=True)
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before.clear()

    @contextmanager
    def sheltered(self) -> Iterator[None]:
        """Processes started meanwhile ignore Ctrl-C, which a terminal sends to all of them.

        Not SIGTERM, by which the interpreter ends them when it ends.
        """
        if signal.SIGINT not in self._before:
            yield
            return
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, self._heard)

    def reason(self) -> str | None:
        """Why the run should stop now; None where it should go on."""
        if self._signal is not None:
            return self._signal
        if self._ends is not None and time.monotonic() >= self._ends:
            return "--max-time"
        if self.file.exists():
            self.file.unlink(missing_ok=True)
            self._signal = f"the file {self.file}"
            return self._signal
        return None

    def _heard(self, number: int, _frame: FrameType | None) -> None:
        if self._signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if number == signal.SIGTERM:
            _let_children_end()
        self._signal = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM interrupts as Ctrl-C does, where there is no step to end with.

    `Stop` takes the signals over while it is entered. Heard in the main thread only.

    Raises:
        KeyboardInterrupt: on either; its text names a SIGTERM.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    except (RuntimeError, OSError, EOFError):
        time.sleep(SIGNAL_DELAY_S)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    _let_children_end()
    raise KeyboardInterrupt(signal.Signals(number).name)


def _let_children_end() -> None:
    """The loader's may have got the signal, too; that must raise no error in the midst of ours.

    Torch's handler would. Not SIG_DFL: Python writes a traceback for a signal that came before its
    handler was taken away.
    """
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, lambda *_: None)
