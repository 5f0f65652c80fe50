"""A phantom training that is killed again and again ends with the weights of one that was not.

    python -m tests.faults.kill_at_random [--kills 20] [--seed 0]

Trains a fold of a tiny cohort with the command that users run, two loader processes included, and
kills it (SIGKILL, the whole process group) after random times, then resumes. After every kill each
file of the fold must be readable. A run that ends between two kills must hold, bit by bit, the
weights of an uninterrupted one; the next one then starts from nothing. Takes some minutes.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.image import imread

from bonemet_auto.checkpoint import CHECKPOINT_NAME, PREVIOUS_NAME, load_checkpoint
from bonemet_auto.commands import plan_and_preprocess
from bonemet_auto.images import read_instances
from tests.cohort import write_cohort

NAME = "Dataset001_Tiny"
ITERATIONS = 120
CPU = torch.device("cpu")
READERS = {
    ".json": lambda path: json.loads(path.read_text("utf-8")),
    ".csv": pd.read_csv,
    ".png": imread,
    ".pt": lambda path: torch.load(path, weights_only=True),
    ".npz": lambda path: [np.load(path)[name] for name in np.load(path).files],
    ".gz": read_instances,
}
_COMMAND = "from bonemet_auto.commands.train import main; raise SystemExit(main())"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        write_cohort(root / "raw" / NAME, n_cases=10)
        flags = ["-d", "1", "--root", str(root), "--planner", "fast"]
        assert plan_and_preprocess.main([*flags, "--patch-size", "16", "16", "24"]) == 0
        folder = root / "results" / NAME / "default" / "fold_0"
        began = time.monotonic()
        assert start(root, folder).wait() == 0
        whole_s = time.monotonic() - began
        expected = load_checkpoint(folder, CPU)
        shutil.rmtree(folder)
        print(f"uninterrupted: {ITERATIONS} steps in {whole_s:.0f} s", flush=True)
        killed = ended = 0
        while killed < options.kills:
            process = start(root, folder)
            if survived(process, draw.uniform(0, whole_s)):
                require_equal(expected, load_checkpoint(folder, CPU))
                shutil.rmtree(folder)
                ended += 1
                continue
            killed += 1
            files = require_readable(folder)
            print(f"kill {killed}: {position(folder)}, {files} files readable", flush=True)
        if start(root, folder).wait() != 0:
            raise SystemExit("the last resumed run failed")
        require_equal(expected, load_checkpoint(folder, CPU))
        print(f"{killed} kills, {ended + 1} runs ended, all with the weights of the uninterrupted")


def start(root: Path, folder: Path) -> "subprocess.Popen[bytes]":
    """Train the fold from where it is, in a process group of its own."""
    has_checkpoint = any((folder / name).is_file() for name in (CHECKPOINT_NAME, PREVIOUS_NAME))
    length = ["--resume"] if has_checkpoint else ["--iterations", str(ITERATIONS)]
    flags = ["1", "0", "--root", str(root), "--workers", "2", *length]
    return subprocess.Popen(
        [sys.executable, "-c", _COMMAND, *flags],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def survived(process: "subprocess.Popen[bytes]", seconds: float) -> bool:
    """Kill a run after some time; whether it had ended by then."""
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return False
    if status != 0:
        raise SystemExit(f"a resumed run failed with exit code {status}")
    return True


def require_readable(folder: Path) -> int:
    """Read every file but what a kill leaves of one that was being written, which has a dot."""
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    ]
    for path in files:
        READERS[path.suffix](path)
    return len(files)


def position(folder: Path) -> str:
    """Where a run would go on."""
    if not (folder / CHECKPOINT_NAME).is_file():
        return "before the first checkpoint"
    return f"step {load_checkpoint(folder, CPU)['progress']['step']}"


def require_equal(expected: "dict[str, object]", found: "dict[str, object]") -> None:
    for part in ("model", "ema"):
        one, other = expected[part], found[part]
        assert isinstance(one, dict) and isinstance(other, dict)
        for name, value in one.items():
            if not torch.equal(value, other[name]):
                raise SystemExit(f"{part} {name} differs from the uninterrupted run")


if __name__ == "__main__":
    main()
