"""`bonemet_train D all_folds`: the folds in turn here, or as jobs of a cluster side by side."""

import argparse
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bonemet_auto.commands.cluster import Job, open_queue, own_arguments, submit
from bonemet_auto.commands.common import EXIT_DONE
from bonemet_auto.commands.fold_folder import (
    FINISHED_NAME,
    checkpoints_of,
    claim_folder,
    clear_folders,
    has_checkpoint,
    outcome_of,
)
from bonemet_auto.errors import UsageError
from bonemet_auto.files import data_root, find_dataset, preprocessed_folder, results_folder

if TYPE_CHECKING:
    from bonemet_auto.training.distributed import World

logger = logging.getLogger(__name__)

ALL_FOLDS = "all_folds"


def train_in_turn(
    options: argparse.Namespace,
    train_fold: Callable[[argparse.Namespace, float], int],
    world: "World",
) -> int:
    """All folds, one after the other; with `--resume` those that are not finished.

    Args:
        options: of the command.
        train_fold: trains the fold in its options, which begins at a time of `perf_counter`.
        world: the processes that train together.
    """
    from bonemet_auto.plan_file import read_plan

    ends = None if options.max_time is None else time.perf_counter() + options.max_time
    preprocessed, results, folds = _folds(options)
    if world.leads:
        _require_consent(results, list(folds.values()), options)
        plan = read_plan(preprocessed / options.plan_name / "plan.json", "Plan first.")
        if options.overwrite:
            # Of all, before the first starts: --resume must not take an old one for finished.
            clear_folders(list(folds.values()))
    outcome = EXIT_DONE
    for fold, folder in folds.items():
        goes_on = world.from_leader(options.resume and has_checkpoint(folder))
        if goes_on and world.from_leader((folder / FINISHED_NAME).is_file()):
            if world.leads:
                claim_folder(folder, plan, options)
                logger.info("fold %d is finished: %s", fold, folder)
                outcome = max(outcome, outcome_of(folder))
            continue
        now = time.perf_counter()
        changed = {"fold": fold, "resume": goes_on, "max_time": ends and max(0.0, ends - now)}
        changed |= {"init_weights": None if goes_on else options.init_weights}
        outcome = max(outcome, train_fold(argparse.Namespace(**vars(options) | changed), now))
    return outcome


def submit_folds(options: argparse.Namespace) -> int:
    """A job for each fold that is asked for and not finished."""
    _, results, folds = _folds(options)
    wanted = list(folds) if options.fold == ALL_FOLDS else [options.fold]
    folders = [results / f"fold_{fold}" for fold in wanted]
    _require_consent(results, folders, options)
    queue = open_queue(results / "jobs", f"bonemet_{results.parent.name}", options)
    if options.overwrite:
        clear_folders(folders)
    jobs = []
    for fold, folder in zip(wanted, folders, strict=True):
        if options.resume and (folder / FINISHED_NAME).is_file():
            logger.info("fold %s is finished: %s", fold, folder)
            continue
        fresh, again = _fold_arguments(options, fold)
        flags = again if options.resume and has_checkpoint(folder) else fresh
        jobs.append(Job("train", tuple(flags), tuple(again), checkpoints_of(folder)))
    if jobs:
        submit(queue, jobs)
    return EXIT_DONE


def _fold_arguments(options: argparse.Namespace, fold: int | str) -> tuple[list[str], list[str]]:
    """Arguments of a fold's job that starts, and of one that goes on."""
    beginning = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--resume", "--overwrite"):
        beginning.add_argument(flag, action="store_true")
    beginning.add_argument("--init-weights")
    given, shared = beginning.parse_known_args(own_arguments(options.given))
    shared = [str(fold) if flag == str(options.fold) else flag for flag in shared]
    weights = [] if given.init_weights is None else ["--init-weights", given.init_weights]
    return [*shared, *weights], [*shared, "--resume"]


def _folds(options: argparse.Namespace) -> tuple[Path, Path, dict[int, Path]]:
    """Folder of a preprocessed dataset, of a plan's results, and in that those of its folds."""
    from bonemet_auto.schema import Splits, read_json

    root = data_root(options.root)
    name = find_dataset(root, options.dataset)
    preprocessed = preprocessed_folder(root, name)
    remedy = f"Run bonemet_plan_and_preprocess -d {name} first."
    splits = read_json(preprocessed / "splits.json", Splits, remedy)
    results = results_folder(root, name, options.plan_name)
    numbers = range(len(splits.validation))
    return preprocessed, results, {fold: results / f"fold_{fold}" for fold in numbers}


def _require_consent(results: Path, folders: Sequence[Path], options: argparse.Namespace) -> None:
    """Refuse to write over runs that nobody said to give up, or to resume where there is none."""
    begun = [str(folder) for folder in folders if has_checkpoint(folder)]
    if begun and not (options.resume or options.overwrite):
        raise UsageError(
            f"{', '.join(begun)} hold trained folds; --resume goes on with them and leaves the "
            "finished ones, --overwrite starts over"
        )
    if options.resume and not begun:
        raise UsageError(f"nothing to resume in {results}; leave --resume out to start")
