"""What predicting one case took, and by what way it was done."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Cost:
    """Filled in while a case is predicted; goes into `run_report.json`.

    Attributes:
        seconds: by stage, in the order in which they were entered.
        windows: windows that the networks looked at, mirrors and folds aside.
        windows_left_out: windows of the same grid that hold no bone.
        notes: what was done otherwise than planned, in words for the person who runs it.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    windows: int = 0
    windows_left_out: int = 0
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time that the block takes, well or badly ended, less that of stages in it."""
        began_s, before_s = time.perf_counter(), sum(self.seconds.values())
        try:
            yield
        finally:
            within_s = sum(self.seconds.values()) - before_s
            own_s = time.perf_counter() - began_s - within_s
            self.seconds[name] = self.seconds.get(name, 0.0) + own_s
