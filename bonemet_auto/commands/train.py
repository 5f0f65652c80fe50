"""`bonemet_train D FOLD`: train one fold and predict its validation cases."""

import argparse
import importlib.util
import logging
import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bonemet_auto.commands.all_folds import ALL_FOLDS, submit_folds, train_in_turn
from bonemet_auto.commands.cluster import add_cluster
from bonemet_auto.commands.common import (
    EXIT_DONE,
    add_root,
    command_parser,
    natural,
    parse_duration,
    positive,
    run_command,
)
from bonemet_auto.commands.fold_folder import (
    claim_folder,
    held_alone,
    outcome_of,
    resumable,
    start_folder,
)
from bonemet_auto.commands.initial_weights import initial_weights, initialise
from bonemet_auto.errors import UsageError
from bonemet_auto.files import data_root, find_dataset, preprocessed_folder, results_folder

if TYPE_CHECKING:
    import torch

    from bonemet_auto.checkpoint import Progress
    from bonemet_auto.data.loader import PatchDataset
    from bonemet_auto.model.mask_rcnn import MaskRCNN
    from bonemet_auto.plan_schema import Plan
    from bonemet_auto.result_schema import OperatingPoint
    from bonemet_auto.training.distributed import World
    from bonemet_auto.training.glance import Glance

logger = logging.getLogger(__name__)

ALL_CASES = "all"


def main(arguments: Sequence[str] | None = None) -> int:
    """Console script."""
    parser = command_parser(
        "bonemet_train",
        "Train one fold of a planned and preprocessed dataset, then predict its validation cases.",
    )
    parser.add_argument("dataset", help="number, name or folder name of the dataset")
    parser.add_argument(
        "fold",
        type=_fold,
        help="fold number, 0 to 4; all_folds: one after the other; all: one model on all cases, "
        "without validation",
    )
    add_root(parser)
    parser.add_argument("-p", "--plan-name", default="default", help="plan to train")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=positive, help="stop after so many of the plan's epochs")
    length.add_argument("--iterations", type=positive, help="training steps in all")
    length.add_argument(
        "--time-budget",
        type=parse_duration,
        metavar="30m",
        help="wall-clock time for training and validation; converted once to a number of steps",
    )
    parser.add_argument(
        "--seed", type=natural, default=0, help="seed of weights, samples and draws"
    )
    parser.add_argument(
        "--workers", type=natural, help="loader processes (default: cores - 1, at most 8)"
    )
    parser.add_argument(
        "--init-weights",
        type=Path,
        metavar="FOLDER",
        help="start from the weights of another run: what fits by name and shape is "
        "taken, depthwise kernels of another size are interpolated",
    )
    parser.add_argument(
        "--max-time",
        type=parse_duration,
        metavar="8h",
        help="stop after so long with a checkpoint and exit code 4, to go on with --resume",
    )
    parser.add_argument(
        "--tensorboard",
        action="store_true",
        help="also write TensorBoard events (pip install -e '.[tensorboard]')",
    )
    add_cluster(parser)
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--resume",
        action="store_true",
        help="go on from the last checkpoint, with the length and seed that the run began with",
    )
    start.add_argument("--overwrite", action="store_true", help="start over an existing run")
    return run_command(parser, _train, arguments)


def _fold(text: str) -> int | str:
    """A fold's number, or the word for all of them or for all cases."""
    if text in (ALL_FOLDS, ALL_CASES):
        return text
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(
            f"'{text}' is no fold; write 0 to 4, {ALL_FOLDS} or {ALL_CASES}"
        )
    return int(text)


def _train(options: argparse.Namespace) -> int:
    started = time.perf_counter()
    if options.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UsageError("--tensorboard needs: pip install -e '.[tensorboard]'")
    if options.cluster:
        return submit_folds(options)
    from bonemet_auto.processor import tune_processor

    tune_processor()
    from bonemet_auto.processor import pick_device
    from bonemet_auto.training.distributed import join_world, own_device

    device = own_device(pick_device(options.device))
    with join_world(device) as world:
        if not world.leads:
            logging.getLogger().setLevel(logging.ERROR)
        if options.fold == ALL_FOLDS:
            return train_in_turn(options, partial(_train_fold, device=device, world=world), world)
        return _train_fold(options, started, device, world)


def _train_fold(
    options: argparse.Namespace, started: float, device: "torch.device", world: "World"
) -> int:
    """Train a fold in a folder that nobody else works in."""
    from bonemet_auto.commands.fold_validation import require_raw_cases

    root = data_root(options.root)
    name = find_dataset(root, options.dataset)
    fold = _read_fold(root, name, options.plan_name, options.fold)
    require_raw_cases(root / "raw" / name, fold[2])
    folder = results_folder(root, name, options.plan_name) / f"fold_{options.fold}"
    with held_alone(folder) if world.leads else nullcontext(), resumable(folder):
        return _train_in(folder, name, fold, options, started, device, world)


def _train_in(
    folder: Path,
    dataset_name: str,
    fold: tuple["Plan", list[str], list[str]],
    options: argparse.Namespace,
    started: float,
    device: "torch.device",
    world: "World",
) -> int:
    import torch

    from bonemet_auto.data.loader import PatchDataset, batches
    from bonemet_auto.model.mask_rcnn import build_model
    from bonemet_auto.processor import default_workers
    from bonemet_auto.training.distributed import local_processes
    from bonemet_auto.training.log import TrainingLog
    from bonemet_auto.training.loop import epochs_done, go_on, train
    from bonemet_auto.training.trainer import Trainer

    plan, training_cases, validation_cases = fold
    root = data_root(options.root)
    raw = root / "raw" / dataset_name
    cases_folder = preprocessed_folder(root, dataset_name) / options.plan_name / "cases"
    workers = default_workers(local_processes()) if options.workers is None else options.workers
    initial = initial_weights(options, root, dataset_name)
    progress = world.from_leader(claim_folder(folder, plan, options) if world.leads else None)
    dataset = PatchDataset(cases_folder, training_cases, plan, progress.seed)
    if not options.resume:
        spent_s = time.perf_counter() - started
        progress = _length(
            options, plan, dataset, validation_cases, device, workers, spent_s, world
        )
        if world.leads:
            start_folder(plan, raw, folder)
        logger.info(
            "training %s %s fold %s on %s: %d cases, %d steps in %d epochs",
            dataset_name, plan.name, options.fold, device, len(training_cases),
            progress.total_steps, progress.epochs,
        )  # fmt: skip
    torch.manual_seed(progress.seed)
    model = build_model(plan.network)
    if initial is not None:
        initialise(model, initial, options.init_weights)
    total, share = progress.total_steps, world.share_of(plan.batch_size)
    trainer = Trainer(model, plan.training, len(share), total, progress.seed, device, world)
    if options.resume:
        go_on(trainer, folder)
    loader = batches(dataset, progress.step, total, plan.batch_size, workers, share)
    glance = _glance(dataset, validation_cases, folder, device) if world.leads else None
    done = epochs_done(progress)
    log = TrainingLog(folder, done, glance, options.tensorboard) if world.leads else None
    left_s = None if options.max_time is None else options.max_time - time.perf_counter() + started
    average = train(trainer, loader, folder, progress, log, left_s)
    return _validate(average, plan, raw, validation_cases, folder) if world.leads else EXIT_DONE


def _validate(
    average: "MaskRCNN", plan: "Plan", raw: Path, validation_cases: list[str], folder: Path
) -> int:
    """Find the fold's operating point on the cases held out, or borrow one where there are none."""
    from bonemet_auto.commands.fold_validation import borrow_point, validate_fold

    if not validation_cases:
        point = borrow_point(folder)
        logger.info("nothing to validate on; %s; everything is in %s", point.rule, folder)
        return EXIT_DONE
    device = next(average.parameters()).device
    return _conclude(validate_fold(average, plan, raw, validation_cases, folder, device), folder)


def _glance(
    dataset: "PatchDataset", validation: list[str], folder: Path, device: "torch.device"
) -> "Glance | None":
    """What looks at held-out windows after every epoch; None where no case is held out."""
    from bonemet_auto.data.loader import PatchDataset
    from bonemet_auto.training.glance import Glance

    if not validation:
        return None
    # Data sets of its own: the loader's must not have files open when its processes start.
    shown = PatchDataset(dataset.folder, dataset.names, dataset.plan, seed=0)
    held_out = PatchDataset(dataset.folder, validation, dataset.plan, seed=0, augmented=False)
    return Glance(shown, held_out, folder, device)


def _conclude(point: "OperatingPoint", folder: Path) -> int:
    logger.info(
        "validation: lesion sensitivity %s at %s FP per scan (score >= %.2f); everything is in %s",
        _rate(point.sensitivity), _rate(point.fp_per_scan), point.score_threshold, folder,
    )  # fmt: skip
    if point.sensitivity == 0:
        logger.warning(
            "no lesion of the validation cases was found; progress.png shows whether the network "
            "was still learning (train longer) or never began to"
        )
    return outcome_of(folder)


def _rate(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def _read_fold(
    root: Path, dataset: str, plan_name: str, fold: int | str
) -> tuple["Plan", list[str], list[str]]:
    """Plan, training cases and validation cases of a fold, or all cases and none."""
    from bonemet_auto.folds import check_splits, fold_cases
    from bonemet_auto.plan_file import read_plan
    from bonemet_auto.schema import Fingerprint, Splits, read_json

    folder = preprocessed_folder(root, dataset)
    remedy = f"Run bonemet_plan_and_preprocess -d {dataset} first."
    plan = read_plan(folder / plan_name / "plan.json", remedy)
    fingerprint = read_json(folder / "fingerprint.json", Fingerprint, remedy)
    splits = read_json(folder / "splits.json", Splits, remedy)
    check_splits(splits, fingerprint)
    if isinstance(fold, str):
        return plan, [case.case for case in fingerprint.cases], []
    training, validation = fold_cases(splits, fingerprint, fold)
    return plan, list(training), list(validation)


def _length(
    options: argparse.Namespace,
    plan: "Plan",
    dataset: "PatchDataset",
    validation: list[str],
    device: "torch.device",
    workers: int,
    spent_s: float,
    world: "World",
) -> "Progress":
    """A fresh run, of as many steps and epochs as were asked for."""
    from bonemet_auto.checkpoint import Progress
    from bonemet_auto.store import read_meta
    from bonemet_auto.training.budget import LEAST_STEPS, steps_for_budget

    training = plan.training
    if options.epochs:
        per_epoch = max(1, training.iterations // training.epochs)
        return Progress(0, per_epoch * options.epochs, options.epochs, options.seed)
    steps = options.iterations or training.iterations
    if options.time_budget is not None:
        held_out = [read_meta(dataset.folder, case) for case in validation]
        left_s = options.time_budget - spent_s
        # Each process has timed its own steps.
        steps = world.from_leader(
            steps_for_budget(plan, dataset, held_out, device, workers, left_s, world)
        )
    epochs = min(training.epochs, max(1, steps // LEAST_STEPS))
    return Progress(0, steps, epochs, options.seed)
