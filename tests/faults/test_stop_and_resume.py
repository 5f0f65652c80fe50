"""A run that is asked to stop saves the step it reached, and goes on as if nothing had been."""

import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch

from bonemet_auto.checkpoint import (
    CHECKPOINT_NAME,
    PREVIOUS_NAME,
    load_checkpoint,
    load_to_resume,
    progress_of,
)
from bonemet_auto.errors import ModelError, StoppedError
from bonemet_auto.training import log, trainer
from tests.faults.test_kill_and_resume import CPU, STEPS, cases, run  # noqa: F401 - a fixture
from tests.unit.test_train_command import prepared  # noqa: F401 - a fixture

COMMAND = """
import sys
from bonemet_auto.commands.train import main
from bonemet_auto.training import log
log._draw = lambda table, path: path.write_bytes(b"no picture")
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(log, "_draw", lambda table, path: path.write_bytes(b"no picture"))


def stop_after(monkeypatch, folder, n_steps):
    """Put a stop file down while step number `n_steps` runs."""
    step, left = trainer.Trainer.step, iter(range(n_steps - 1))

    def last(self, number, batch):
        if next(left, None) is None:
            (folder / "stop").touch()
        return step(self, number, batch)

    monkeypatch.setattr(trainer.Trainer, "step", last)


def same(one, other):
    parts = [load_checkpoint(folder, CPU) for folder in (one, other)]
    return parts[0]["progress"] == parts[1]["progress"] and all(
        torch.equal(value, parts[1][part][name])
        for part in ("model", "ema")
        for name, value in parts[0][part].items()
    )


@pytest.mark.parametrize("n_steps", [1, 3, 4])
def test_a_stop_within_an_epoch_or_at_its_end_loses_nothing(cases, tmp_path, n_steps):  # noqa: F811
    stopped, straight = tmp_path / "stopped", tmp_path / "straight"
    stopped.mkdir()
    with pytest.MonkeyPatch.context() as patched:
        stop_after(patched, stopped, n_steps)
        with pytest.raises(StoppedError, match=f"after step {n_steps} of {STEPS}.*--resume"):
            run(cases, stopped, resume=False)
    assert progress_of(load_checkpoint(stopped, CPU)).step == n_steps
    run(cases, stopped, resume=True)
    run(cases, straight, resume=False)
    assert same(stopped, straight)
    epochs = [pd.read_csv(folder / "metrics.csv")["epoch"] for folder in (stopped, straight)]
    assert epochs[0].tolist() == epochs[1].tolist()
    assert not (stopped / PREVIOUS_NAME).exists()


def test_a_stop_in_the_last_step_leaves_only_the_validation(cases, tmp_path, monkeypatch):  # noqa: F811
    folder = tmp_path / "run"
    folder.mkdir()
    with monkeypatch.context() as patched:
        stop_after(patched, folder, STEPS)
        with pytest.raises(StoppedError, match=f"after step {STEPS} of {STEPS}"):
            run(cases, folder, resume=False)
    assert run(cases, folder, resume=True) is not None


@pytest.mark.parametrize("broken", ["truncated", "gone"])
def test_a_broken_last_checkpoint_gives_way_to_the_one_before(
    cases,  # noqa: F811
    tmp_path,
    monkeypatch,
    caplog,
    broken,
):
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    with monkeypatch.context() as patched:
        stop_after(patched, stopped, 5)
        with pytest.raises(StoppedError):
            run(cases, stopped, resume=False)
    last = stopped / CHECKPOINT_NAME
    if broken == "gone":
        last.unlink()
    else:
        last.write_bytes(last.read_bytes()[:1000])
    assert progress_of(load_to_resume(stopped, CPU)).step == 4
    assert "step 4" in caplog.text and CHECKPOINT_NAME in caplog.text
    # The broken one is gone, so that the next save cannot put it in the place of the good one.
    assert not last.exists() and (stopped / PREVIOUS_NAME).is_file()
    run(cases, stopped, resume=True)
    run(cases, tmp_path / "straight", resume=False)
    assert same(stopped, tmp_path / "straight")


def test_without_one_before_a_broken_checkpoint_is_an_error(tmp_path):
    (tmp_path / CHECKPOINT_NAME).write_bytes(b"nothing")
    with pytest.raises(ModelError, match="cannot be read"):
        load_to_resume(tmp_path, CPU)


@pytest.mark.parametrize(
    ("workers", "number", "said_of_it"),
    [("0", signal.SIGINT, "Ctrl-C"), ("1", signal.SIGINT, "Ctrl-C"), ("1", signal.SIGTERM, "SIGT")],
)
def test_signals_and_the_time_limit_end_the_command_with_4(
    prepared,  # noqa: F811
    workers,
    number,
    said_of_it,
):
    root = prepared
    fold = ["1", "1", "--root", str(root), "--device", "cpu", "--workers", workers]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def start(*flags):
        return subprocess.Popen(
            [sys.executable, "-c", COMMAND, *fold, *flags],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    process = start("--iterations", "100000", "--overwrite")
    give_up = time.monotonic() + 120
    while time.monotonic() < give_up and "training" not in (line := process.stderr.readline()):
        assert process.poll() is None, line
    time.sleep(4)
    # As a terminal and a cluster do: to all processes of the group, loader workers too.
    os.killpg(process.pid, number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 4, said
    assert f"stopped by {said_of_it}" in said and "--resume" in said and "Traceback" not in said
    process = start("--resume", "--max-time", "1s")
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 4 and "--max-time" in said, said
