"""`bonemet_pretrain D`: learn what bones look like from CTs without labels."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bonemet_auto.commands.common import (
    EXIT_DONE,
    EXIT_SOME_FAILED,
    add_root,
    command_parser,
    natural,
    parse_duration,
    positive,
    run_command,
)
from bonemet_auto.commands.fold_folder import claim_folder, clear_folder, held_alone, resumable
from bonemet_auto.errors import DataError
from bonemet_auto.files import (
    data_root,
    find_dataset,
    preprocessed_folder,
    raw_folder,
    results_folder,
)

if TYPE_CHECKING:
    import torch

    from bonemet_auto.checkpoint import Progress
    from bonemet_auto.data.loader import PatchDataset
    from bonemet_auto.plan_schema import Plan

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Console script."""
    parser = command_parser(
        "bonemet_pretrain",
        "Train the network of a plan to guess hidden parts of CTs, without any label; "
        "bonemet_train --init-weights starts from what it has learnt.",
    )
    parser.add_argument("dataset", help="number, name or folder name of a planned dataset")
    parser.add_argument(
        "-i",
        "--input",
        type=Path,
        metavar="CTS",
        help="folder of CTs (default: the dataset's own training images)",
    )
    add_root(parser)
    parser.add_argument("-p", "--plan-name", default="default", help="plan of the network")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--iterations", type=positive, help="steps (default: as the plan trains)")
    length.add_argument(
        "--time-budget", type=parse_duration, metavar="30m", help="wall-clock time of training"
    )
    parser.add_argument("--seed", type=natural, default=0, help="of weights, samples and draws")
    parser.add_argument("--workers", type=natural, help="loader processes")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    start.add_argument("--overwrite", action="store_true", help="start over an existing run")
    return run_command(parser, _pretrain, arguments)


def _pretrain(options: argparse.Namespace) -> int:
    from bonemet_auto.processor import tune_processor

    tune_processor()
    root = data_root(options.root)
    name = find_dataset(root, options.dataset)
    folder = results_folder(root, name, options.plan_name) / "pretrained"
    with held_alone(folder), resumable(folder):
        return _pretrain_in(folder, name, options)


def _pretrain_in(folder: Path, name: str, options: argparse.Namespace) -> int:
    import torch

    from bonemet_auto.data.loader import PatchDataset, batches
    from bonemet_auto.images import find_images
    from bonemet_auto.model.masked import build_autoencoder
    from bonemet_auto.plan_file import read_plan
    from bonemet_auto.processor import default_workers, pick_device
    from bonemet_auto.schema import write_failures, write_json
    from bonemet_auto.training.log import TrainingLog
    from bonemet_auto.training.loop import epochs_done, go_on, train
    from bonemet_auto.training.trainer import Trainer
    from bonemet_auto.unlabelled import store_unlabelled

    root = data_root(options.root)
    planned = preprocessed_folder(root, name) / options.plan_name
    remedy = f"Run bonemet_plan_and_preprocess -d {name} first."
    plan = read_plan(planned / "plan.json", remedy)
    device = pick_device(options.device)
    progress = claim_folder(folder, plan, options)
    images = find_images(options.input or raw_folder(root, name) / "imagesTr")
    cases, failed = store_unlabelled(images, plan, planned / "unlabelled")
    if not cases:
        raise DataError(f"none of the {len(images)} scans could be read; see the warnings above")
    unplanted = plan.augmentation.model_copy(update={"planting": 0.0})
    plain = plan.model_copy(update={"augmentation": unplanted})
    dataset = PatchDataset(planned / "unlabelled", cases, plain, progress.seed)
    workers = default_workers() if options.workers is None else options.workers
    if not options.resume:
        progress = _length(options, plan, dataset, device, workers)
        clear_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "plan.json", plan)
    write_failures(folder / "failed_cases.json", failed)
    logger.info(
        "pretraining %s %s on %s: %d scans, %d steps",
        name, plan.name, device, len(cases), progress.total_steps,
    )  # fmt: skip
    torch.manual_seed(progress.seed)
    model = build_autoencoder(plan.network)
    total, size = progress.total_steps, plan.batch_size
    trainer = Trainer(model, plan.training, size, total, progress.seed, device)
    if options.resume:
        go_on(trainer, folder)
    loader = batches(dataset, progress.step, total, size, workers)
    train(trainer, loader, folder, progress, TrainingLog(folder, epochs_done(progress)))
    logger.info("now: bonemet_train %s FOLD --init-weights %s", options.dataset, folder)
    return EXIT_SOME_FAILED if failed else EXIT_DONE


def _length(
    options: argparse.Namespace,
    plan: "Plan",
    dataset: "PatchDataset",
    device: "torch.device",
    workers: int,
) -> "Progress":
    from bonemet_auto.checkpoint import Progress
    from bonemet_auto.model.masked import build_autoencoder
    from bonemet_auto.training.budget import step_seconds
    from bonemet_auto.training.trainer import Trainer

    steps = options.iterations or plan.training.iterations
    if options.time_budget is not None:
        model = build_autoencoder(plan.network)
        trainer = Trainer(model, plan.training, plan.batch_size, 1000, 0, device)
        (step_s,) = step_seconds(trainer, dataset, plan.batch_size, workers, (0,))
        steps = max(1, int(options.time_budget / step_s))
    return Progress(0, steps, min(plan.training.epochs, max(1, steps // 10)), options.seed)
