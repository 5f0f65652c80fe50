"""What the dense branch learns in a few minutes: train it alone, look at fixed validation windows.

    python -m tests.bench.dense_study ROOT DATASET --steps 300

Prints every hundred steps the Dice of windows that hold a lesion, the share of their lesions whose
mean probability exceeds .5, and CPU seconds per step. Runs on one tree are compared with runs on
another: a seed fixes windows and weights.
"""

import argparse
import time
from pathlib import Path

from bonemet_auto.processor import tune_processor

tune_processor()

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from bonemet_auto.data.loader import UNBOXED, PatchDataset, batches  # noqa: E402
from bonemet_auto.files import find_dataset, preprocessed_folder  # noqa: E402
from bonemet_auto.folds import fold_cases  # noqa: E402
from bonemet_auto.model.mask_rcnn import MaskRCNN, build_model  # noqa: E402
from bonemet_auto.model.precision import mixed_precision  # noqa: E402
from bonemet_auto.schema import Fingerprint, Plan, Splits, read_json  # noqa: E402
from bonemet_auto.training import schedule  # noqa: E402
from bonemet_auto.training.loop import Trainer  # noqa: E402

CPU = torch.device("cpu")
WINDOWS = 48
REPORT_EVERY = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("dataset")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("-p", "--plan-name", default="default")
    options = parser.parse_args()
    folder = preprocessed_folder(options.root, find_dataset(options.root, options.dataset))
    plan = read_json(folder / options.plan_name / "plan.json", Plan)
    fingerprint = read_json(folder / "fingerprint.json", Fingerprint)
    training, held_out = fold_cases(read_json(folder / "splits.json", Splits), fingerprint, 0)
    cases = folder / options.plan_name / "cases"
    dataset = PatchDataset(cases, training, plan, seed=0)
    plain = PatchDataset(cases, held_out, plan, seed=1, augmented=False)
    samples = [plain[i] for i in range(WINDOWS)]
    images = torch.stack([sample[0] for sample in samples])
    instances = torch.stack([sample[1].instances for sample in samples])

    schedule.DENSE_ONLY_SHARE = 10.0
    torch.manual_seed(0)
    trainer = Trainer(
        build_model(plan.network), plan.training, plan.batch_size, options.steps, 0, CPU
    )
    started = time.process_time()
    for number, batch in enumerate(batches(dataset, 0, options.steps, plan.batch_size, 0), 1):
        trainer.step(number - 1, batch)
        if number % REPORT_EVERY == 0:
            step_s = (time.process_time() - started) / REPORT_EVERY
            dice, recall, n = measure(trainer.ema, images, instances)
            print(f"step {number}: Dice {dice:.3f}, recall {recall:.3f} of {n}, {step_s:.2f} s")
            started = time.process_time()


@torch.no_grad()
def measure(model: MaskRCNN, images: Tensor, instances: Tensor) -> tuple[float, float, int]:
    """Mean Dice over windows with a lesion, share of lesions seen, and their number."""
    with mixed_precision(CPU):
        logits = torch.cat([model.detect(part).dense for part in images.split(8)])
    truth, found = (instances > 0).flatten(1), (logits > 0.5).flatten(1)
    holds = truth.any(dim=1)
    size = truth.sum(dim=1) + found.sum(dim=1)
    dice = (2 * (truth & found).sum(dim=1) / size.clamp_min(1))[holds].mean()
    means = [
        logits[i][instances[i] == lesion].mean()
        for i in range(len(instances))
        for lesion in instances[i].unique().tolist()
        if 0 < lesion < UNBOXED
    ]
    seen = [float(mean) > 0.5 for mean in means]
    return float(dice), sum(seen) / len(seen), len(seen)


if __name__ == "__main__":
    main()
