"""The folder of one fold: who may write into it, and what lies in it before training starts."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bonemet_auto.commands.common import EXIT_DONE, EXIT_SOME_FAILED
from bonemet_auto.errors import UsageError

if TYPE_CHECKING:
    from bonemet_auto.checkpoint import Progress
    from bonemet_auto.plan_schema import Plan

FINISHED_NAME = "operating_point.json"
"""Comes last, after the validation."""


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
