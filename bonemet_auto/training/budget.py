"""Turn a wall-clock budget into a number of steps, once, before training starts."""

import math
import time
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

import torch

from bonemet_auto.data.loader import PREFETCHED, PatchDataset, batches
from bonemet_auto.errors import UsageError
from bonemet_auto.model.mask_rcnn import MaskRCNN, build_model
from bonemet_auto.model.precision import mixed_precision
from bonemet_auto.plan_schema import Plan
from bonemet_auto.schema import StoredCase
from bonemet_auto.training.distributed import World
from bonemet_auto.training.lanes import Network
from bonemet_auto.training.schedule import DENSE_ONLY_SHARE
from bonemet_auto.training.trainer import ALONE, Trainer

_LEAST_UNTIMED_STEPS = 4
_TIMED_STEPS = 10
_TRIED = 1000
"""Length of the throw-away run that the timed steps belong to."""
_OUTLINES_PER_CASE = 8
_RESERVE_SHARE = 0.04
"""Kept back for checkpoints, reading and writing."""

EPOCH_S = 2.0
"""What figures and pictures of an epoch take on a slow core."""
LEAST_STEPS = 10
"""Of an epoch: short runs have fewer epochs than the plan."""


def steps_for_budget(
    plan: Plan,
    dataset: PatchDataset,
    validation: Sequence[StoredCase],
    device: torch.device,
    workers: int,
    budget_s: float,
    world: World = ALONE,
) -> int:
    """Steps that fit `budget_s` seconds together with the validation at the end.

    A throw-away network takes a few steps on the real loader; the run itself starts afresh, so that
    its weights depend on the seed and the number of steps alone.

    Raises:
        UsageError: not even ten steps fit.
    """
    started = time.perf_counter()
    share = world.share_of(plan.batch_size)
    model = build_model(plan.network)
    trainer = Trainer(model, plan.training, len(share), _TRIED, 0, device, world)
    # The first step trains the dense branch alone, the last one everything.
    first_and_last = (0, _TRIED - 1)
    dense_s, all_s = step_seconds(trainer, dataset, plan.batch_size, workers, first_and_last, share)
    step_s = DENSE_ONLY_SHARE * dense_s + (1 - DENSE_ONLY_SHARE) * all_s
    forward_s = _forward_seconds(trainer, plan)
    validation_s = forward_s * sum(
        n_windows(case, plan) + _OUTLINES_PER_CASE for case in validation
    )
    left_s = budget_s * (1 - _RESERVE_SHARE) - (time.perf_counter() - started) - validation_s
    steps = int(steps_in(left_s, step_s, plan.training.epochs))
    if steps < 10:
        raise UsageError(
            f"--time-budget of {budget_s:.0f} s leaves room for {max(0, steps)} steps of "
            f"{step_s:.2f} s beside {validation_s:.0f} s of validation; give at least "
            f"{(validation_s + 100 * step_s + EPOCH_S * LEAST_STEPS) * 1.2:.0f} s."
        )
    return steps


def steps_in(left_s: float, step_s: float, epochs: int) -> float:
    """Steps that fit, with an epoch's figures after each of `epochs`, or of the fewer that fit."""
    short = left_s / (step_s + EPOCH_S / LEAST_STEPS)
    return short if short < LEAST_STEPS * epochs else (left_s - EPOCH_S * epochs) / step_s


def step_seconds(
    trainer: Trainer[Network],
    dataset: PatchDataset,
    batch_size: int,
    workers: int,
    numbers: Sequence[int],
    share: Sequence[int] | None = None,
) -> list[float]:
    """Seconds of a step with each of some numbers, on the real loader; the network learns."""
    # What the workers made in advance while the first step was slow must be used up.
    untimed = max(_LEAST_UNTIMED_STEPS, PREFETCHED * workers)
    order = [numbers[-1]] * untimed + [n for n in numbers for _ in range(_TIMED_STEPS)]
    ends = [time.perf_counter()]
    for number, batch in zip(
        order, batches(dataset, 0, len(order), batch_size, workers, share), strict=False
    ):
        trainer.step(number, batch)
        ends.append(time.perf_counter())
    times = [b - a for a, b in pairwise(ends)][untimed:]
    starts = range(0, len(times), _TIMED_STEPS)
    # Medians: convolutions are compiled when they first meet a new number of RoIs.
    return [median(times[start : start + _TIMED_STEPS]) for start in starts]


def n_windows(case: StoredCase, plan: Plan) -> int:
    """Forwards of a full sliding window over a case, mirrors included."""
    steps = [max(1.0, patch * (1 - plan.inference.overlap)) for patch in plan.patch_size]
    counts = [
        math.ceil(max(0, size - patch) / step) + 1
        for size, patch, step in zip(case.shape, plan.patch_size, steps, strict=True)
    ]
    return math.prod(counts) * 2 ** len(plan.inference.mirror_axes)


def _forward_seconds(trainer: Trainer[MaskRCNN], plan: Plan) -> float:
    image = torch.zeros(1, 1, *plan.patch_size, device=trainer.device)
    with mixed_precision(trainer.device):
        trainer.ema.detect(image)
        started = time.perf_counter()
        for _ in range(3):
            trainer.ema.detect(image)
    return (time.perf_counter() - started) / 3
