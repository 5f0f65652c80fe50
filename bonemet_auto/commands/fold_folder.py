"""The folder of one fold: who may write into it, and what lies in it before training starts."""

import argparse
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bonemet_auto.commands.common import EXIT_DONE, EXIT_SOME_FAILED
from bonemet_auto.errors import StoppedError, UsageError

if TYPE_CHECKING:
    from bonemet_auto.checkpoint import Progress
    from bonemet_auto.plan_schema import Plan

logger = logging.getLogger(__name__)

FINISHED_NAME = "operating_point.json"
"""Comes last, after the validation."""


@contextmanager
def held_alone(folder: Path) -> Iterator[None]:
    """Keep other processes from training in a folder, by a lock on a file beside it.

    The system lifts the lock when the process ends, however it ends. The file stays: a process
    that removed it could take it from under another one. Where locks are not to be had, as on some
    network drives, a warning says so.

    Raises:
        UsageError: another process holds it.
    """
    path = folder.with_name(f".{folder.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another process is training in {folder}. Wait for it, or stop it (Ctrl-C, or a "
                "file named stop in that folder) and go on with --resume."
            ) from None
        except (ImportError, OSError) as unsupported:
            logger.warning(
                "warning: %s cannot be locked (%s); see to it that nothing else trains in %s",
                path, unsupported, folder,
            )  # fmt: skip
        yield


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the work on a folder, and what they leave is said.

    Raises:
        StoppedError: on either, outside the training loop, which stops after its step.
    """
    from bonemet_auto.training.stop import interruptible

    try:
        with interruptible():
            yield
    except KeyboardInterrupt as stopped:
        way = (
            "the same command goes on from the last checkpoint with --resume (in place of "
            "--overwrite or --init-weights)"
            if has_checkpoint(folder)
            else "nothing was trained yet; give the same command again"
        )
        raise StoppedError(f"stopped by {str(stopped) or 'Ctrl-C'}; {way}") from None


def checkpoints_of(folder: Path) -> tuple[Path, ...]:
    """Files of a folder of which either lets a run go on."""
    from bonemet_auto.checkpoint import CHECKPOINT_NAME, PREVIOUS_NAME

    return folder / CHECKPOINT_NAME, folder / PREVIOUS_NAME


def has_checkpoint(folder: Path) -> bool:
    """Whether a run was begun in a folder."""
    return any(path.is_file() for path in checkpoints_of(folder))


def clear_folder(folder: Path) -> None:
    """Remove what would let an earlier run pass for the one that is to come."""
    for stale in (folder / FINISHED_NAME, *checkpoints_of(folder)):
        stale.unlink(missing_ok=True)


def clear_folders(folders: Sequence[Path]) -> None:
    """Remove the same from several folders, unless another process is training in one of them."""
    with ExitStack() as held:
        for folder in folders:
            held.enter_context(held_alone(folder))
        for folder in folders:
            clear_folder(folder)


def claim_folder(folder: Path, plan: "Plan", options: argparse.Namespace) -> "Progress":
    """Where to begin; refuses to write over a run that nobody said to give up."""
    import torch

    from bonemet_auto.checkpoint import Progress, load_to_resume, progress_of
    from bonemet_auto.plan_schema import Plan
    from bonemet_auto.schema import read_json

    exists = has_checkpoint(folder)
    if options.resume and not exists:
        raise UsageError(f"nothing to resume in {folder}; leave --resume out to start")
    if exists and not (options.resume or options.overwrite):
        raise UsageError(f"{folder} holds a run; --resume goes on with it, --overwrite starts over")
    if not options.resume:
        return Progress(0, 0, 0, options.seed)
    if read_json(folder / "plan.json", Plan, "Start over with --overwrite.") != plan:
        raise UsageError(
            f"plan {plan.name} is not the one in {folder / 'plan.json'}, with which the run began. "
            "Bring it back to go on, or start over with --overwrite."
        )
    return progress_of(load_to_resume(folder, torch.device("cpu")))


def start_folder(plan: "Plan", raw: Path, folder: Path) -> None:
    """Put in place what prediction needs beside the checkpoint: the folder can then travel alone.

    What an earlier run left goes first: its checkpoint must not be resumed with another plan.
    """
    from bonemet_auto.files import require_file, write_text
    from bonemet_auto.schema import write_json

    clear_folder(folder)
    write_json(folder / "plan.json", plan)
    source = require_file(raw / "dataset.json", "The raw dataset must be in place.")
    write_text(folder / "dataset.json", source.read_text(encoding="utf-8"))


def outcome_of(folder: Path) -> int:
    """Exit code of a finished fold."""
    failed = (folder / "validation" / "failed_cases.json").is_file()
    return EXIT_SOME_FAILED if failed else EXIT_DONE
