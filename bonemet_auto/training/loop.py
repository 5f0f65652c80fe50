"""The training loop of one fold. No framework: what happens is what is written here."""

import copy
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic

import numpy as np
import torch
from torch import Tensor, nn
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
from bonemet_auto.model.convnext import compile_pointwise
from bonemet_auto.model.fpn import fusion_weights
from bonemet_auto.model.precision import mixed_precision
from bonemet_auto.model.roi_sampling import Targets
from bonemet_auto.plan_schema import Plan, TrainingPlan
from bonemet_auto.processor import WINDOWS_PER_PART
from bonemet_auto.training.lanes import Lanes, Network, lanes_for
from bonemet_auto.training.log import TrainingLog, epoch_line
from bonemet_auto.training.optimizer import MuonAdamW
from bonemet_auto.training.schedule import (
    ema_decay,
    is_dense_only,
    learning_rate,
    loss_weights,
)
from bonemet_auto.training.stop import Stop
from bonemet_auto.training.watch import doubts

logger = logging.getLogger(__name__)

MAX_GRADIENT_NORM = 1.0
_SIGNAL_DELAY_S = 0.5


class Trainer(Generic[Network]):
    """Network, averaged network and optimiser of one run; `step` is all that happens in a step.

    Args:
        model: network whose `forward(images, targets, generator, dense_only)` returns its losses
            by name.
        plan: the training settings.
        batch_size: windows per step.
        total_steps: length of the schedule.
        seed: with the step number it fixes every random draw of a step.
        device: where to train.
    """

    def __init__(
        self,
        model: Network,
        plan: TrainingPlan,
        batch_size: int,
        total_steps: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.model = model.to(device).train()
        self.lanes = Lanes(self.model, lanes_for(device, batch_size))
        self.ema = copy.deepcopy(self.model).requires_grad_(False).eval()
        if plan.compiled and device.type == "cuda":
            compile_pointwise(self.model)
        self.optimizer = MuonAdamW(self.model, plan)
        self.plan = plan
        self.total_steps = total_steps
        self.seed = seed
        self.device = device

    def step(self, number: int, batch: Batch) -> dict[str, Tensor]:
        """Learn from one batch and return its losses.

        Raises:
            ModelError: the loss is not finite.
        """
        rate = learning_rate(
            number, self.total_steps, self.plan.learning_rate, self.plan.warmup_share
        )
        weights = loss_weights(number, self.total_steps)
        dense_only = is_dense_only(number, self.total_steps)
        parts = split(batch, self.device, self.seed, number)

        def learn(model: Network, part: _Part) -> dict[str, Tensor]:
            with mixed_precision(self.device):
                losses = model(part.images, part.targets, part.generator, dense_only=dense_only)
            # Losses that the schedule does not know, as of pretraining, count in full.
            weighted = (loss * weights.get(name, 1.0) for name, loss in losses.items())
            total = sum(weighted, torch.zeros(()))
            _require_finite(total, losses, number, batch)
            (total / len(parts)).backward()
            return {name: loss.detach() for name, loss in losses.items()}

        self.optimizer.zero_grad()
        done = self.lanes.run(learn, parts)
        losses = {name: torch.stack([part[name] for part in done]).mean() for name in done[0]}
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
        _require_finite(norm, losses, number, batch)
        self.optimizer.step(rate)
        update_average(self.ema, self.model, ema_decay(number, self.total_steps))
        return losses


@dataclass(frozen=True)
class _Part:
    """Windows that go through the network together, and their own source of draws."""

    images: Tensor
    targets: list[Targets]
    generator: torch.Generator


def split(batch: Batch, device: torch.device, seed: int, step: int) -> list[_Part]:
    """Parts of a batch: all of it on a GPU, a few windows each on a CPU."""
    images, targets = _to_device(batch, device)
    size = len(images) if device.type != "cpu" else WINDOWS_PER_PART
    starts = range(0, len(images), size)
    draws = np.random.SeedSequence([seed, step]).generate_state(len(starts))
    return [
        _Part(
            images[start : start + size],
            targets[start : start + size],
            torch.Generator().manual_seed(int(draw)),
        )
        for start, draw in zip(starts, draws, strict=True)
    ]


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the averaged weights towards the model's."""
    ours: list[Tensor] = list(average.parameters())
    theirs: list[Tensor] = list(model.parameters())
    torch._foreach_lerp_(ours, theirs, 1 - decay)


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

    Raises:
        ModelError: the loss is not finite, or the checkpoint cannot be used.
        StoppedError: asked to stop (see `Stop`); the checkpoint holds the step reached.
    """
    if resume:
        content = load_to_resume(folder, device)
        progress = progress_of(content)
    trainer = Trainer(
        model, plan.training, plan.batch_size, progress.total_steps, progress.seed, device
    )
    if resume:
        _restore(trainer, content, folder)
        logger.info("resumed at step %d of %d", progress.step, progress.total_steps)
    ends = epoch_ends(progress.total_steps, progress.epochs)
    log = TrainingLog(folder, first_epoch=sum(end <= progress.step for end in ends))
    loader = batches(dataset, progress.step, progress.total_steps, plan.batch_size, workers)
    bar = tqdm(total=progress.total_steps, initial=progress.step, unit="step", disable=None)
    with Stop(folder, max_time_s) as stop, bar:
        with stop.sheltered():
            stream = iter(loader)
        for epoch, end in enumerate(ends):
            if end <= progress.step:
                continue
            row, reached = _epoch(trainer, stream, progress.step, end, bar, stop)
            progress = replace(progress, step=reached)
            if reached == end:
                row = {"epoch": epoch, "step": end, **row, **fusion_weights(trainer.model)}
                log.add(row | (glance(trainer.ema) if glance else {}))
                _tell(log, len(ends), progress.total_steps, bool(bar.disable))
            state = trainer.optimizer.state_dict()
            save_checkpoint(folder, progress, trainer.model, trainer.ema, state)
            if reason := stop.reason():
                raise StoppedError(
                    f"stopped by {reason} after step {reached} of {progress.total_steps}; the same "
                    "command goes on from there with --resume (in place of --overwrite or "
                    "--init-weights)"
                )
    (folder / PREVIOUS_NAME).unlink(missing_ok=True)
    return trainer.ema


def _tell(log: TrainingLog, epochs: int, total_steps: int, without_bar: bool) -> None:
    """Say how the last epoch went, and what is to be doubted."""
    if without_bar:
        logger.info(epoch_line(log.rows[-1], epochs, total_steps))
    for doubt in doubts(log.rows, total_steps):
        logger.warning(doubt)


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
        if batch is None:
            break
        waited_s += time.perf_counter() - asked
        losses = trainer.step(number, batch)
        numbers = torch.stack(list(losses.values())).tolist()
        for name, value in zip(losses, numbers, strict=True):
            values.setdefault(name, []).append(value)
        bar.update()
        reached = number + 1
        if stop.reason():
            break
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
    except RuntimeError:
        # A cluster sends SIGTERM to the loader's processes too, and theirs may be seen first.
        time.sleep(_SIGNAL_DELAY_S)
        if stop.reason() is None:
            raise
        return None


def _to_device(batch: Batch, device: torch.device) -> tuple[Tensor, list[Targets]]:
    images = batch.images.to(device, non_blocking=True)
    targets = [
        Targets(
            item.boxes.to(device, non_blocking=True),
            item.instances.to(device, non_blocking=True),
            item.is_lung.to(device, non_blocking=True),
        )
        for item in batch.targets
    ]
    return images, targets


def _require_finite(value: Tensor, losses: dict[str, Tensor], number: int, batch: Batch) -> None:
    if torch.isfinite(value):
        return
    values = ", ".join(f"{name} {loss.item():.3g}" for name, loss in losses.items())
    raise ModelError(
        f"the loss or its gradient is not finite at step {number} ({values}); the batch held cases "
        f"{', '.join(batch.cases)}. Look at these cases, or lower learning_rate in plan.json; "
        "--resume goes on from the last epoch."
    )
