"""One training step: network, averaged network and optimiser of a run."""

import copy
from dataclasses import dataclass
from typing import Generic

import numpy as np
import torch
from torch import Tensor, nn

from bonemet_auto.data.loader import Batch
from bonemet_auto.errors import ModelError
from bonemet_auto.model.convnext import compile_pointwise
from bonemet_auto.model.precision import mixed_precision
from bonemet_auto.model.roi_sampling import Targets
from bonemet_auto.plan_schema import TrainingPlan
from bonemet_auto.processor import WINDOWS_PER_PART
from bonemet_auto.training.distributed import World
from bonemet_auto.training.lanes import Lanes, Network, lanes_for
from bonemet_auto.training.optimizer import MuonAdamW
from bonemet_auto.training.schedule import (
    ema_decay,
    is_dense_only,
    learning_rate,
    loss_weights,
)

MAX_GRADIENT_NORM = 1.0
ALONE = World()


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
        world: the processes that train together; `batch_size` is this one's share.
    """

    def __init__(
        self,
        model: Network,
        plan: TrainingPlan,
        batch_size: int,
        total_steps: int,
        seed: int,
        device: torch.device,
        world: World = ALONE,
    ) -> None:
        self.world = world
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
        parts = split(batch, self.device, self.seed, number, self.world)

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
        losses = self.world.average(losses)
        self.world.average_gradients(self.model)
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


def split(
    batch: Batch, device: torch.device, seed: int, step: int, world: World = ALONE
) -> list[_Part]:
    """Parts of a batch: all of it on a GPU, a few windows each on a CPU.

    Parts are numbered over all processes, so that a part's draws do not depend on who works on it.
    """
    images, targets = _to_device(batch, device)
    size = len(images) if device.type != "cpu" else WINDOWS_PER_PART
    starts = range(0, len(images), size)
    everybodys = np.random.SeedSequence([seed, step]).generate_state(len(starts) * world.size)
    draws = everybodys[world.rank * len(starts) :]
    return [
        _Part(
            images[start : start + size],
            targets[start : start + size],
            torch.Generator().manual_seed(int(draw)),
        )
        for start, draw in zip(starts, draws, strict=False)
    ]


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the averaged weights towards the model's."""
    ours: list[Tensor] = list(average.parameters())
    theirs: list[Tensor] = list(model.parameters())
    torch._foreach_lerp_(ours, theirs, 1 - decay)


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
