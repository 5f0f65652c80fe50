"""`--cluster slurm`: the same command as jobs of a cluster, through submitit.

A job whose time is up is told so: it stops as it would by hand, with a checkpoint, and puts itself
back into the queue; when it runs again it goes on from there.
"""

import argparse
import importlib
import logging
import math
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from bonemet_auto.commands.common import (
    EXIT_DONE,
    EXIT_SOME_FAILED,
    EXIT_STOPPED,
    positive,
)
from bonemet_auto.errors import UsageError

if TYPE_CHECKING:
    from submitit import SlurmExecutor

logger = logging.getLogger(__name__)

WARNED_S = 120
"""Seconds before its time is up at which a job is told."""


@dataclass(frozen=True)
class Job:
    """A command line of this package, to be run on a node of a cluster.

    Attributes:
        command: module of `bonemet_auto.commands`.
        flags: its arguments.
        again: its arguments when it goes on with what an earlier run of it left.
        traces: files or folders; if any exists, a job that runs again has something to go on with.
            Those of an earlier training must be gone when it is submitted.
    """

    command: str
    flags: tuple[str, ...]
    again: tuple[str, ...] = ()
    traces: tuple[Path, ...] = ()

    def __call__(self) -> int:
        """Run the command here; queue again if the time of this run was up.

        Raises:
            RuntimeError: it failed, so that the cluster counts the job as failed.
        """
        main = importlib.import_module(f"bonemet_auto.commands.{self.command}").main
        warned = _Warning()
        code: int = main(self.arguments())
        if code == EXIT_STOPPED and warned.heard:
            _queue_again()
        if code not in (EXIT_DONE, EXIT_SOME_FAILED, EXIT_STOPPED):
            raise RuntimeError(f"bonemet_{self.command} ended with {code}; its message is above")
        return code

    def arguments(self) -> list[str]:
        """Arguments of this run of the job: its first one, or one after it was queued again."""
        restarted = int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0
        goes_on = restarted and any(trace.exists() for trace in self.traces)
        return list(self.again if goes_on else self.flags)


class _Warning:
    """Hears the cluster's signal before the time is up.

    Where the command listens for SIGTERM it is told by that, and saves. Where it does not, nothing
    would be lost by ending at once: queueing again does that.
    """

    def __init__(self) -> None:
        self.heard = False
        self._before = signal.getsignal(signal.SIGTERM)
        # That is the one which submitit asks SLURM to send.
        signal.signal(signal.SIGUSR2, self._hear)

    def _hear(self, _number: int, _frame: FrameType | None) -> None:
        self.heard = True
        if signal.getsignal(signal.SIGTERM) is self._before:
            _queue_again()
        else:
            os.kill(os.getpid(), signal.SIGTERM)


def _queue_again() -> None:
    logger.info("the time of this run is up; the job is queued again")
    subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True)


def own_arguments(given: Sequence[str]) -> list[str]:
    """Arguments of a command line but those of `add_cluster`."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_cluster(parser)
    return parser.parse_known_args(given)[1]


def add_cluster(parser: argparse.ArgumentParser) -> None:
    """Add `--cluster` and what goes with it."""
    group = parser.add_argument_group("cluster")
    group.add_argument("--cluster", choices=["slurm"], help="submit jobs instead of working here")
    group.add_argument("--partition", metavar="P", help="where to; otherwise the default one")
    group.add_argument(
        "--hours",
        type=_hours,
        default=24.0,
        metavar="H",
        help="time of one run of a job; one that needs more goes on in another run",
    )
    group.add_argument("--gpus", type=int, choices=[0, 1], default=0, help="GPUs of each job")
    group.add_argument("--cpus", type=positive, default=4, metavar="N", help="cores of each job")
    group.add_argument("--memory", type=positive, default=16, metavar="GB", help="of each job")
    group.add_argument(
        "--sbatch",
        action="append",
        default=[],
        type=_key_value,
        metavar="KEY=VALUE",
        help="any other option of sbatch, as in account=abc",
    )


def _hours(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 10_000:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of hours")
    return value


def _key_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"'{text}' is no KEY=VALUE")
    return key.removeprefix("--"), value


def open_queue(folder: Path, name: str, options: argparse.Namespace) -> "SlurmExecutor":
    """The cluster's queue, before anything is changed for the jobs.

    Args:
        folder: takes the jobs' logs.
        name: shown in the queue.
        options: with the flags of `add_cluster`.

    Raises:
        UsageError: submitit is not installed, or no SLURM is here.
    """
    try:
        import submitit
    except ImportError:
        raise UsageError("--cluster needs submitit: pip install -e '.[cluster]'") from None
    try:
        queue = submitit.SlurmExecutor(folder=folder, max_num_timeout=1000)
    except RuntimeError as error:
        raise UsageError(f"--cluster slurm: {error} Submit from a login node.") from None
    more = {"requeue": True, **dict(options.sbatch)}
    if options.gpus:
        more["gres"] = f"gpu:{options.gpus}"
    queue.update_parameters(
        job_name=name,
        time=max(1, math.ceil(60 * options.hours)),
        partition=options.partition,
        cpus_per_task=options.cpus,
        mem=f"{options.memory}GB",
        signal_delay_s=min(WARNED_S, math.ceil(900 * options.hours)),
        stderr_to_stdout=True,
        additional_parameters=more,
    )
    return queue


def submit(queue: "SlurmExecutor", jobs: Sequence[Job]) -> None:
    """Submit jobs as one array, and say what they are called."""
    ids = [job.job_id for job in queue.submit_array(jobs)]
    logger.info("submitted %s; their logs are in %s", ", ".join(ids), queue.folder)
