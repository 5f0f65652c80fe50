"""A training process that is killed loses at most an epoch, and nothing else."""

import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch

from bonemet_auto.checkpoint import CHECKPOINT_NAME, Progress, load_checkpoint
from bonemet_auto.data.loader import PatchDataset
from bonemet_auto.model.mask_rcnn import build_model
from bonemet_auto.training import log
from tests.unit.training_fakes import train_here, training_plan, write_stored_case

CPU = torch.device("cpu")
STEPS, EPOCHS, SEED = 8, 4, 5

SCRIPT = """
import sys
from pathlib import Path
from tests.faults.test_kill_and_resume import run
run(Path(sys.argv[1]), Path(sys.argv[2]), resume=False)
"""


def run(cases, folder, *, resume):
    """A tiny training of its own data; the averaged network."""
    torch.set_num_threads(1)
    plan = training_plan((8, 16, 16))
    torch.manual_seed(SEED)
    model = build_model(plan.network)
    dataset = PatchDataset(cases, ["a", "b"], plan, SEED)
    progress = Progress(0, STEPS, EPOCHS, SEED)
    return train_here(model, plan, dataset, folder, progress, resume)


@pytest.fixture
def cases(tmp_path):
    write_stored_case(tmp_path / "cases", "a", seed=1)
    write_stored_case(tmp_path / "cases", "b", (9, 20, 18), [((1, 2, 2, 4, 6, 7), False)], seed=2)
    return tmp_path / "cases"


def kill_after_first_checkpoint(cases, folder):
    """Start a training in another process, and kill it at once when it has saved."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(cases), str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.DEVNULL,
    )
    give_up = time.monotonic() + 120
    while not (folder / CHECKPOINT_NAME).is_file() and time.monotonic() < give_up:
        assert process.poll() is None, "ended without a checkpoint"
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "ended before it could be killed"


def test_a_killed_run_resumes_to_the_weights_of_one_that_was_not(cases, tmp_path, monkeypatch):
    monkeypatch.setattr(log, "_draw", lambda table, path: path.write_bytes(b"no picture"))
    folder = tmp_path / "killed"
    kill_after_first_checkpoint(cases, folder)
    stopped_at = load_checkpoint(folder, CPU)["progress"]["step"]
    assert 0 < stopped_at < STEPS
    run(cases, folder, resume=True)
    run(cases, tmp_path / "straight", resume=False)
    killed, straight = (load_checkpoint(tmp_path / name, CPU) for name in ("killed", "straight"))
    for part in ("model", "ema"):
        for name, value in straight[part].items():
            assert torch.equal(value, killed[part][name]), f"{part} {name}"
    assert killed["progress"] == straight["progress"]
    table = pd.read_csv(folder / "metrics.csv")
    assert table["epoch"].tolist() == list(range(EPOCHS))
    other = pd.read_csv(tmp_path / "straight" / "metrics.csv")
    columns = [name for name in table if not name.endswith("_s")]
    pd.testing.assert_frame_equal(table[columns], other[columns])
