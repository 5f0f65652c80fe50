"""Five folds through a real SLURM; `tests/cluster/run.sh` starts one on this machine.

Skipped where no SLURM answers.
"""

import re
import shutil
import subprocess
import time

import pandas as pd
import pytest

from bonemet_auto.commands import plan_and_preprocess, predict, train
from tests.cohort import write_cohort

NAME = "Dataset001_Tiny"
LIMIT_S = 420


def answers():
    if shutil.which("sinfo") is None:
        return False
    try:
        return subprocess.run(["sinfo", "-h"], capture_output=True, timeout=20).returncode == 0
    except subprocess.TimeoutExpired:
        return False


pytestmark = [
    pytest.mark.skipif(not answers(), reason="no SLURM answers here"),
    pytest.mark.timeout(2 * LIMIT_S),
]
SMALL = ["--cluster", "slurm", "--cpus", "1", "--memory", "2"]


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_cohort(tmp_path / "raw" / NAME, n_cases=10)
    flags = ["-d", "1", "--root", str(tmp_path), "--planner", "fast"]
    assert plan_and_preprocess.main([*flags, "--patch-size", "16", "16", "24"]) == 0
    return tmp_path


def submitted(caplog):
    """Ids of the jobs that a command has just submitted."""
    line = next(text for text in reversed(caplog.messages) if text.startswith("submitted"))
    return re.findall(r"\d+(?:_\d+)?", line.split(";")[0])


def state(job):
    shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True).stdout
    found = dict(re.findall(r"(JobState|Restarts)=(\S+)", shown))
    return found.get("JobState"), int(found.get("Restarts", 0))


def wait_until(reached, what):
    deadline = time.monotonic() + LIMIT_S
    while not reached():
        assert time.monotonic() < deadline, f"no {what} after {LIMIT_S} s"
        time.sleep(0.5)


def wait_for_end(jobs):
    over = {"COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL"}
    wait_until(lambda: all(state(job)[0] in over for job in jobs), "end of the jobs")
    return [state(job)[0] for job in jobs]


def fold(root, number):
    return root / "results" / NAME / "default" / f"fold_{number}"


def logs(root):
    return "".join(path.read_text() for path in (fold(root, 0).parent / "jobs").glob("*.out"))


def test_five_folds_train_and_a_job_that_is_thrown_out_goes_on(root, caplog):
    with caplog.at_level("INFO"):
        whole = ["1", "all_folds", "--root", str(root), "--iterations", "150", "--workers", "0"]
        assert train.main([*whole, *SMALL]) == 0
    jobs = submitted(caplog)
    assert len(jobs) == 5
    wait_until((fold(root, 1) / "checkpoint_last.pt").exists, "checkpoint of fold 1")
    subprocess.run(["scontrol", "requeue", jobs[1]], check=True)
    assert wait_for_end(jobs) == ["COMPLETED"] * 5, logs(root)
    assert state(jobs[1])[1] == 1 and "resumed at step" in logs(root)
    for number in range(5):
        assert (fold(root, number) / "operating_point.json").is_file()
        assert pd.read_csv(fold(root, number) / "metrics.csv")["step"].tolist()[-1] == 150
    out, scans = root / "out", root / "raw" / NAME / "imagesTr"
    with caplog.at_level("INFO"):
        given = ["-i", str(scans), "-o", str(out), "-d", "1", "--root", str(root)]
        assert predict.main([*given, "-num_parts", "2", *SMALL]) == 0
    assert wait_for_end(submitted(caplog)) == ["COMPLETED"] * 2
    assert len(list(out.glob("case_*.nii.gz"))) == 10


def test_a_job_whose_time_is_up_queues_again_and_goes_on(root, caplog):
    with caplog.at_level("INFO"):
        # One minute is the least that SLURM grants.
        flags = ["--iterations", "300", "--workers", "0", "--hours", "0.016"]
        assert train.main(["1", "0", "--root", str(root), *flags, *SMALL]) == 0
    jobs = submitted(caplog)
    assert len(jobs) == 1
    assert wait_for_end(jobs) == ["COMPLETED"], logs(root)
    assert state(jobs[0])[1] >= 1
    assert "queued again" in logs(root) and "resumed at step" in logs(root)
    assert pd.read_csv(fold(root, 0) / "metrics.csv")["step"].tolist()[-1] == 300


def test_a_job_that_fails_counts_as_failed_and_says_why(root, caplog):
    with caplog.at_level("INFO"):
        flags = ["--iterations", "5", "--workers", "0", "--init-weights", str(root / "nothing")]
        assert train.main(["1", "0", "--root", str(root), *flags, *SMALL]) == 0
    assert wait_for_end(submitted(caplog)) == ["FAILED"]
    assert "nothing" in logs(root)
