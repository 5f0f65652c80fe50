"""A training step of the `fast` planner's network beside one of a plain U-Net of its size.

    python -m tests.bench.bench_step [--turns 30]

Batches of four 32x48x48 windows through the same `Trainer`, on all cores as training uses them,
taking turns in one process: the network with all its losses, its dense branch alone, and a residual
U-Net of as many parameters with its dense loss. Run it on an idle machine: seconds are wall clock.
"""

import argparse
import statistics
import time

from bonemet_auto.processor import tune_processor

tune_processor()

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from bonemet_auto.data.loader import Batch  # noqa: E402
from bonemet_auto.training.trainer import Trainer  # noqa: E402
from tests.bench.dense_baseline import WIDTHS, PlainUnet  # noqa: E402
from tests.bench.step_time import TOTAL, make_batch, make_model, make_trainer  # noqa: E402

WARM_UP = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=30)
    turns = parser.parse_args().turns
    batch, model = make_batch(), make_model()
    ours = make_trainer(model)
    plain = make_trainer(unet_of_size(parameters(model)))
    # Detection losses are left out in the first part of the schedule.
    dense, whole = 10, TOTAL // 2
    runs = {
        "all losses": (ours, whole),
        "dense branch alone": (ours, dense),
        "plain U-Net": (plain, dense),
    }
    wall_s: dict[str, list[float]] = {name: [] for name in runs}
    cpu_s: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(WARM_UP + turns):
        for name, (trainer, first) in runs.items():
            started_s, before_s = time.perf_counter(), time.process_time()
            trainer.step(first + turn, batch)
            wall_s[name].append(time.perf_counter() - started_s)
            cpu_s[name].append(time.process_time() - before_s)
    print(f"{torch.get_num_threads()} threads, {len(ours.lanes.replicas)} lanes")
    print("| | M parameters | GFLOP forward | s | processor s | s to the U-Net's |")
    print("| --- | --- | --- | --- | --- | --- |")
    reference_s = statistics.median(wall_s["plain U-Net"][WARM_UP:])
    for name, (trainer, first) in runs.items():
        wall, cpu = (statistics.median(taken[name][WARM_UP:]) for taken in (wall_s, cpu_s))
        count = parameters(trainer.model) / 1e6
        flop = forward_gflop(trainer, batch, dense_only=first == dense)
        ratio = wall / reference_s
        print(f"| {name} | {count:.2f} | {flop:.1f} | {wall:.3f} | {cpu:.3f} | {ratio:.2f} |")


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def unet_of_size(wanted: int) -> PlainUnet:
    """The baseline with another deepest width, in steps of eight as the processor likes it."""
    with torch.device("meta"):
        sizes = {width: parameters(PlainUnet((*WIDTHS[:-1], width))) for width in range(8, 512, 8)}
    deepest, size = min(sizes.items(), key=lambda item: abs(item[1] - wanted))
    assert abs(size / wanted - 1) < 0.05
    torch.manual_seed(0)
    return PlainUnet((*WIDTHS[:-1], deepest))


def forward_gflop(trainer: Trainer, batch: Batch, dense_only: bool) -> float:
    """Of the whole batch, losses included; a multiplication and an addition count as two."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        trainer.model(batch.images, batch.targets, generator, dense_only=dense_only)
    return counter.get_total_flops() / 1e9


if __name__ == "__main__":
    main()
