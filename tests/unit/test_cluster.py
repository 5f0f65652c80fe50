"""What can be said of cluster jobs without a cluster; tests/cluster has a real one."""

import argparse
import os
import signal
import subprocess

import pytest

from bonemet_auto.commands import cluster, predict, train
from bonemet_auto.commands.cluster import Job, own_arguments
from bonemet_auto.commands.common import EXIT_STOPPED


def test_a_job_goes_on_only_when_it_runs_again_and_left_something(tmp_path, monkeypatch):
    trace = tmp_path / "checkpoint_last.pt"
    job = Job("train", ("1", "0", "--overwrite", "--seed", "3"), ("--resume",), (trace,))
    fresh, again = list(job.flags), ["1", "0", "--seed", "3", "--resume"]
    assert job.arguments() == fresh
    trace.touch()
    assert job.arguments() == fresh, "what is there is of an earlier training"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert job.arguments() == again
    trace.unlink()
    assert job.arguments() == fresh


def test_the_clusters_flags_are_not_the_jobs():
    given = ["1", "all_folds", "--cluster", "slurm", "--hours", "3", "--root", "r", "--gpus=1"]
    assert own_arguments([*given, "--sbatch", "account=a"]) == ["1", "all_folds", "--root", "r"]


@pytest.fixture
def requeued(monkeypatch):
    """What was queued again; signals as submitit leaves them."""
    done = []
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setattr(subprocess, "run", lambda command, check: done.append(command))
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR2)}
    signal.signal(signal.SIGTERM, lambda *_: None)
    yield done
    for number, handler in before.items():
        signal.signal(number, handler)


def run_as(monkeypatch, main):
    monkeypatch.setattr(train, "main", main)
    return Job("train", ("1", "0"))()


def test_a_warned_job_stops_by_itself_where_it_listens_and_queues_again(monkeypatch, requeued):
    def listens(_arguments):
        told = []
        signal.signal(signal.SIGTERM, lambda *_: told.append(True))
        os.kill(os.getpid(), signal.SIGUSR2)
        assert told and not requeued
        return EXIT_STOPPED

    assert run_as(monkeypatch, listens) == EXIT_STOPPED
    assert requeued == [["scontrol", "requeue", "17"]]


def test_a_warned_job_that_does_not_listen_queues_again_at_once(monkeypatch, requeued):
    def deaf(_arguments):
        os.kill(os.getpid(), signal.SIGUSR2)
        assert len(requeued) == 1
        return 0

    assert run_as(monkeypatch, deaf) == 0 and len(requeued) == 1


def test_a_job_that_somebody_ended_does_not_queue_again(monkeypatch, requeued):
    assert run_as(monkeypatch, lambda _: EXIT_STOPPED) == EXIT_STOPPED
    assert requeued == []


def test_a_job_that_is_refused_fails(monkeypatch, requeued):
    with pytest.raises(RuntimeError, match="bonemet_train ended with 2"):
        run_as(monkeypatch, lambda _: 2)


@pytest.mark.parametrize(
    ("flag", "said"),
    [("--hours=0", "no number of hours"), ("--sbatch=account", "no KEY=VALUE"), ("--gpus=2", "2")],
)
def test_wrong_flags_are_refused(flag, said, capsys):
    parser = argparse.ArgumentParser()
    cluster.add_cluster(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--cluster", "slurm", flag])
    assert said in capsys.readouterr().err


def test_without_slurm_nothing_is_submitted(tmp_path, monkeypatch, capsys):
    pytest.importorskip("submitit")
    monkeypatch.setattr("shutil.which", lambda *_: None)
    (tmp_path / "scan.nii.gz").touch()
    given = ["-i", str(tmp_path), "-o", str(tmp_path.with_name("out")), "-m", "x"]
    assert predict.main([*given, "--cluster", "slurm"]) == 2
    assert "login node" in capsys.readouterr().err
