"""One thread per test process: tests may run side by side."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
