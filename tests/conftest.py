"""One thread per test process: tests may run side by side. Ctrl-C works in what they start."""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings  # noqa: E402

settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

# A shell starts its background jobs with the signal ignored, and every child inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)
