"""The training loop of one fold. No framework: what happens is what is written here."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

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
from bonemet_auto.data.loader import Batch
from bonemet_auto.errors import ModelError, StoppedError
from bonemet_auto.model.fpn import fusion_weights
from bonemet_auto.training.lanes import Network
from bonemet_auto.training.log import TrainingLog, epoch_line
from bonemet_auto.training.stop import SIGNAL_DELAY_S, Stop
from bonemet_auto.training.trainer import Trainer
from bonemet_auto.training.watch import doubts

logger = logging.getLogger(__name__)


def train(
    trainer: Trainer[Network],
    loader: Iterable[Batch],
    folder: Path,
    progress: Progress,
    log: TrainingLog[Network] | None,
    max_time_s: float | None = None,
) -> Network:
    """Train up to `progress.total_steps` and return the averaged network.

    Args:
        trainer: fresh, or brought to `progress` by `go_on`.
        loader: this process's share of the batches, from `progress.step` on.
        folder: takes the checkpoint.
        progress: where the run stands.
        log: takes every epoch; None in processes that do not lead, which write no files.
        max_time_s: stop after so many seconds, to be resumed.

    Raises:
        ModelError: the loss is not finite.
        StoppedError: asked to stop (see `Stop`); the checkpoint holds the step reached.
    """
    world = trainer.world
    ends = epoch_ends(progress.total_steps, progress.epochs)
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
            if log is not None:
                if reached == end:
                    _report(trainer, log, {"epoch": epoch, "step": end, **row}, len(ends))
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
    trainer: Trainer[Network], log: TrainingLog[Network], row: dict[str, float], epochs: int
) -> None:
    """Write and say how an epoch went, and what is to be doubted."""
    log.add(row | fusion_weights(trainer.model), trainer.ema)
    # Where a terminal is, the progress bar says it.
    level = logging.DEBUG if sys.stderr.isatty() else logging.INFO
    logger.log(level, epoch_line(log.rows[-1], epochs, trainer.total_steps))
    for doubt in doubts(log.rows, trainer.total_steps):
        logger.warning(doubt)


def go_on(trainer: Trainer[Network], folder: Path) -> None:
    """Bring a fresh trainer to where the last checkpoint in a folder stands.

    Raises:
        ModelError: the checkpoint cannot be used.
    """
    content = load_to_resume(folder, trainer.device)
    try:
        trainer.model.load_state_dict(content["model"])
        trainer.ema.load_state_dict(content["ema"])
        trainer.optimizer.load_state_dict(content["optimizer"])
    except (RuntimeError, ValueError, LookupError) as misfit:
        raise ModelError(
            f"{folder / CHECKPOINT_NAME} holds another network than the plan describes. Bring back "
            "the plan that the run was started with, or start over with --overwrite."
        ) from misfit
    logger.info("resumed at step %d of %d", progress_of(content).step, trainer.total_steps)


def epochs_done(progress: Progress) -> int:
    """Epochs that a run has ended."""
    return sum(end <= progress.step for end in epoch_ends(progress.total_steps, progress.epochs))


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
        # Seen by what the loader's processes had begun to hand over.
        time.sleep(SIGNAL_DELAY_S)
        if stop.reason() is None:
            raise
        return None
