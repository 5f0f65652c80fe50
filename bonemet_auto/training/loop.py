"""The training loop of one fold. No framework: what happens is what is written here."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bonemet_auto.checkpoint import (
    CHECKPOINT_NAME,
    PREVIOUS_NAME,
    Progress,
    load_to_resume,
    progress_of,
    save_checkpoint,
)
from bonemet_auto.data.loader import Batch, PatchDataset, batches
from bonemet_auto.errors import ModelError, StoppedError
from bonemet_auto.model.fpn import fusion_weights
from bonemet_auto.plan_schema import Plan
from bonemet_auto.training.distributed import World
from bonemet_auto.training.lanes import Network
from bonemet_auto.training.log import TrainingLog, epoch_line
from bonemet_auto.training.stop import Stop
from bonemet_auto.training.trainer import ALONE, Trainer
from bonemet_auto.training.watch import doubts

logger = logging.getLogger(__name__)

_SIGNAL_DELAY_S = 0.5


def train(
    model: Network,
    plan: Plan,
    dataset: PatchDataset,
    folder: Path,
    progress: Progress,
    device: torch.device,
    workers: int,
    resume: bool,
    max_time_s: float | None = None,
    glance: Callable[[Network], dict[str, float]] | None = None,
    world: World = ALONE,
    tensorboard: bool = False,
) -> Network:
    """Train up to `progress.total_steps` and return the averaged network.

    Args:
        model: freshly initialised network.
        plan: batch size and training settings.
        dataset: training windows.
        folder: takes the checkpoint, `metrics.csv` and `progress.png`.
        progress: start of a fresh run; with `resume` the checkpoint's own is used.
        device: where to train.
        workers: loader processes; 0 loads in this one.
        resume: go on from the last checkpoint in `folder`.
        max_time_s: stop after so many seconds, to be resumed.
        glance: measures the averaged network after every epoch, for `metrics.csv`.
        world: the processes that train together; the first one writes the files.
        tensorboard: also write events for TensorBoard.

    Raises:
        ModelError: the loss is not finite, or the checkpoint cannot be used.
        StoppedError: asked to stop (see `Stop`); the checkpoint holds the step reached.
    """
    trainer, progress = _begin(model, plan, folder, progress, device, resume, world)
    ends = epoch_ends(progress.total_steps, progress.epochs)
    done = sum(end <= progress.step for end in ends)
    log = TrainingLog(folder, first_epoch=done, tensorboard=tensorboard and world.leads)
    loader = batches(
        dataset,
        progress.step,
        progress.total_steps,
        plan.batch_size,
        workers,
        world.share_of(plan.batch_size),
    )
    hidden = None if world.leads else True  # None: where no terminal is
    bar = tqdm(total=progress.total_steps, initial=progress.step, unit="step", disable=hidden)
    with Stop(folder, max_time_s) as stop, bar:
        with stop.sheltered():
            stream = iter(loader)
        for epoch, end in enumerate(ends):
            if end <= progress.step:
                continue
            row, reached = _epoch(trainer, stream, progress.step, end, bar, stop)
            progress = replace(progress, step=reached)
            if world.leads:
                if reached == end:
                    _report(trainer, log, {"epoch": epoch, "step": end, **row}, len(ends), glance)
                state = trainer.optimizer.state_dict()
                save_checkpoint(folder, progress, trainer.model, trainer.ema, state)
            if world.anybody(stop.reason() is not None):
                raise StoppedError(
                    f"stopped by {stop.reason() or 'another process'} after step {reached} of "
                    f"{progress.total_steps}; the same command goes on from there with --resume "
                    "(in place of --overwrite or --init-weights)"
                )
    if world.leads:
        (folder / PREVIOUS_NAME).unlink(missing_ok=True)
    return trainer.ema


def _report(
    trainer: Trainer[Network],
    log: TrainingLog,
    row: dict[str, float],
    epochs: int,
    glance: Callable[[Network], dict[str, float]] | None,
) -> None:
    """Write and say how an epoch went, and what is to be doubted."""
    log.add(row | fusion_weights(trainer.model) | (glance(trainer.ema) if glance else {}))
    # Where a terminal is, the progress bar says it.
    level = logging.DEBUG if sys.stderr.isatty() else logging.INFO
    logger.log(level, epoch_line(log.rows[-1], epochs, trainer.total_steps))
    for doubt in doubts(log.rows, trainer.total_steps):
        logger.warning(doubt)


def _begin(
    model: Network,
    plan: Plan,
    folder: Path,
    progress: Progress,
    device: torch.device,
    resume: bool,
    world: World,
) -> tuple[Trainer[Network], Progress]:
    """Trainer of a fresh run, or of one that goes on from its last checkpoint."""
    content = load_to_resume(folder, device) if resume else None
    if content is not None:
        progress = progress_of(content)
    each, total = len(world.share_of(plan.batch_size)), progress.total_steps
    trainer = Trainer(model, plan.training, each, total, progress.seed, device, world)
    if content is not None:
        _restore(trainer, content, folder)
        logger.info("resumed at step %d of %d", progress.step, total)
    return trainer, progress


def _restore(trainer: Trainer[Network], content: dict[str, Any], folder: Path) -> None:
    try:
        trainer.model.load_state_dict(content["model"])
        trainer.ema.load_state_dict(content["ema"])
        trainer.optimizer.load_state_dict(content["optimizer"])
    except (RuntimeError, ValueError, LookupError) as misfit:
        raise ModelError(
            f"{folder / CHECKPOINT_NAME} holds another network than the plan describes. Bring back "
            "the plan that the run was started with, or start over with --overwrite."
        ) from misfit


def epoch_ends(total_steps: int, epochs: int) -> list[int]:
    """Step after which each epoch ends; at most `epochs`, none of them empty."""
    epochs = min(epochs, total_steps)
    return [total_steps * (i + 1) // epochs for i in range(epochs)]


def _epoch(
    trainer: Trainer[Network],
    stream: Iterator[Batch],
    first: int,
    end: int,
    bar: "tqdm[None]",
    stop: Stop,
) -> tuple[dict[str, float], int]:
    """Run the steps of one epoch, or of what is left of it; mean losses and times, last step."""
    values: dict[str, list[float]] = {}
    waited_s, started, reached = 0.0, time.perf_counter(), first
    for number in range(first, end):
        asked = time.perf_counter()
        batch = _next_batch(stream, stop)
        asked_to_stop = batch is None or stop.reason() is not None
        if trainer.world.anybody(asked_to_stop) or batch is None:
            break
        waited_s += time.perf_counter() - asked
        losses = trainer.step(number, batch)
        numbers = torch.stack(list(losses.values())).tolist()
        for name, value in zip(losses, numbers, strict=True):
            values.setdefault(name, []).append(value)
        bar.update()
        reached = number + 1
    n = max(1, reached - first)
    means = {name: sum(many) / len(many) for name, many in values.items()}
    bar.set_postfix({name: f"{value:.3f}" for name, value in means.items()})
    times = {
        "learning_rate": trainer.optimizer.learning_rate,
        "step_s": (time.perf_counter() - started) / n,
        "loader_wait_s": waited_s / n,
    }
    return means | times, reached


def _next_batch(stream: Iterator[Batch], stop: Stop) -> Batch | None:
    """The next batch; None where the loader was told to end together with this process."""
    try:
        return next(stream)
    except (RuntimeError, OSError, EOFError):
        # A cluster sends SIGTERM to the loader's processes too, and theirs may be seen first, by
        # what they had begun to hand over.
        time.sleep(_SIGNAL_DELAY_S)
        if stop.reason() is None:
            raise
        return None
