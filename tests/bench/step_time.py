"""Wall-clock seconds of a training step of the `fast` planner's network, by way of using the cores.

    python -m tests.bench.step_time

Median of ten steps each, on random windows with one lesion; run it on an idle machine.
"""

import statistics
import time

from bonemet_auto.processor import tune_processor

tune_processor()

import torch  # noqa: E402
from torch import nn  # noqa: E402

from bonemet_auto.data.loader import Batch  # noqa: E402
from bonemet_auto.model.mask_rcnn import MaskRCNN, build_model  # noqa: E402
from bonemet_auto.model.roi_sampling import Targets  # noqa: E402
from bonemet_auto.plan_schema import NetworkPlan, TrainingPlan  # noqa: E402
from bonemet_auto.training.lanes import Lanes  # noqa: E402
from bonemet_auto.training.trainer import Trainer  # noqa: E402
from planners.fast import FAST  # noqa: E402

PATCH, WINDOWS, TOTAL = (32, 48, 48), 4, 1000
BOX = (10, 18, 16, 20, 30, 30)


def main() -> None:
    batch = make_batch()
    cores = torch.get_num_threads()
    for threads, lanes in ((1, 1), (cores, 1), (cores, 2)):
        torch.set_num_threads(threads)
        trainer = make_trainer(make_model())
        trainer.lanes = Lanes(trainer.model, lanes)
        dense, whole = (time_step(trainer, batch, first) for first in (10, TOTAL // 2))
        print(f"{threads} threads, {lanes} lanes: dense alone {dense:.3f} s, all {whole:.3f} s")


def make_model() -> MaskRCNN:
    network = NetworkPlan(
        widths=FAST.widths,
        depths=FAST.depths,
        strides=((2, 2, 2),) * 4,
        kernels=((3, 3, 3),) * 4,
        skip_width=FAST.skip_width,
        neck_width=FAST.neck_width,
        rpn_stages=(1, 2, 3),
        anchor_sizes=tuple(((5.0 * s,) * 3, (7.0 * s,) * 3) for s in (1, 2, 4)),
        drop_path=0.0,
    )
    torch.manual_seed(0)
    return build_model(network)


def make_trainer(model: nn.Module) -> Trainer:
    settings = TrainingPlan(
        iterations=TOTAL, epochs=1, learning_rate=1e-3, weight_decay=0.05, warmup_share=0.05,
        lesion_share=0.5,
    )  # fmt: skip
    return Trainer(model, settings, WINDOWS, TOTAL, 0, torch.device("cpu"))


def make_batch() -> Batch:
    torch.manual_seed(0)
    images = torch.randn(WINDOWS, 1, *PATCH)
    instances = torch.zeros(PATCH, dtype=torch.int16)
    instances[BOX[0] : BOX[3], BOX[1] : BOX[4], BOX[2] : BOX[5]] = 1
    images[:, 0][:, instances > 0] += 2
    targets = Targets(torch.tensor([BOX], dtype=torch.float32), instances, torch.tensor([1]))
    return Batch(images, [targets] * WINDOWS, ["random"] * WINDOWS)


def time_step(trainer: Trainer, batch: Batch, first: int) -> float:
    seconds = []
    for number in range(first, first + 15):
        started = time.perf_counter()
        trainer.step(number, batch)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[5:])


if __name__ == "__main__":
    main()
