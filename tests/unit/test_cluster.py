"""What can be said of cluster jobs without a cluster; tests/cluster has a real one."""

import argparse
import os
import signal
import subprocess

import pytest

from bonemet_auto.commands import all_folds, cluster, predict, train
from bonemet_auto.commands.cluster import Job, own_arguments
from bonemet_auto.commands.common import EXIT_STOPPED
from bonemet_auto.schema import Splits, write_json


def test_a_job_goes_on_only_when_it_runs_again_and_left_something(tmp_path, monkeypatch):
    trace = tmp_path / "checkpoint_last.pt"
    fresh, again = ["1", "0", "--init-weights", "w"], ["1", "0", "--resume"]
    job = Job("train", tuple(fresh), tuple(again), (trace,))
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
def submitted(tmp_path, monkeypatch):
    """Jobs that a command would submit for a dataset of five folds, two of them begun."""
    splits = Splits(seed=0, validation=tuple((f"c{k}",) for k in range(5)))
    write_json(tmp_path / "preprocessed" / "Dataset001_A" / "splits.json", splits)
    results = tmp_path / "results" / "Dataset001_A" / "default"
    for fold in (0, 1):
        (results / f"fold_{fold}").mkdir(parents=True)
        (results / f"fold_{fold}" / "checkpoint_last.pt").touch()
    (results / "fold_0" / "operating_point.json").touch()
    (tmp_path / "raw" / "Dataset001_A").mkdir(parents=True)
    monkeypatch.setattr(all_folds, "open_queue", lambda *_: None)

    def submit(*flags):
        jobs = []
        monkeypatch.setattr(all_folds, "submit", lambda _, given: jobs.extend(given))
        given = [*flags, "--root", str(tmp_path), "--cluster", "slurm"]
        assert train.main(["1", "all_folds", *given]) == 0
        return [
            tuple([flag for flag in side if flag not in ("--root", str(tmp_path))] for side in job)
            for job in ((job.flags, job.again) for job in jobs)
        ]

    return submit


def test_a_fold_starts_with_the_given_weights_and_goes_on_without(submitted):
    jobs = submitted("--overwrite", "--init-weights", "w", "--seed", "3")
    assert [flags for flags, _ in jobs] == [
        ["1", str(k), "--seed", "3", "--init-weights", "w"] for k in range(5)
    ]
    assert [again for _, again in jobs] == [
        ["1", str(k), "--seed", "3", "--resume"] for k in range(5)
    ]


def test_jobs_that_start_over_leave_nothing_to_be_taken_for_their_own(submitted, tmp_path):
    submitted("--overwrite")
    assert not list((tmp_path / "results").rglob("checkpoint_last.pt"))
    assert not list((tmp_path / "results").rglob("operating_point.json"))


def test_resumed_folds_go_on_and_finished_ones_are_left(submitted):
    jobs = submitted("--resume", "--init-weights", "w")
    assert [flags for flags, _ in jobs] == [
        ["1", "1", "--resume"], *(["1", str(k), "--init-weights", "w"] for k in (2, 3, 4))
    ]  # fmt: skip


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
