"""What the dense branch learns in some minutes: train it alone, look at fixed plain windows.

    python -m tests.bench.dense_study ROOT DATASET --other DATASET --steps 300

Prints every hundred steps, for 48 windows each of training cases, validation cases and, with
`--other`, cases of another dataset preprocessed with the same plan: average precision over voxels,
Dice of windows that hold a lesion, share of their lesions whose mean probability exceeds .5. Last
the CPU seconds per step. `--pasted` and `--warped` change what is augmented; other things are
compared from tree to tree: a seed fixes windows and weights.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from bonemet_auto.processor import tune_processor

tune_processor()

import torch  # noqa: E402
from sklearn.metrics import average_precision_score  # noqa: E402
from torch import Tensor  # noqa: E402

from bonemet_auto.data import loader  # noqa: E402
from bonemet_auto.data.loader import PatchDataset, batches  # noqa: E402
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
    parser.add_argument("--other")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--pasted", type=float, default=loader.PASTE_SHARE)
    parser.add_argument("--warped", type=float, default=loader.SPATIAL_SHARE)
    parser.add_argument("-p", "--plan-name", default="default")
    options = parser.parse_args()
    loader.PASTE_SHARE, loader.SPATIAL_SHARE = options.pasted, options.warped
    folder = preprocessed_folder(options.root, find_dataset(options.root, options.dataset))
    plan = read_json(folder / options.plan_name / "plan.json", Plan)
    fingerprint = read_json(folder / "fingerprint.json", Fingerprint)
    training, held_out = fold_cases(read_json(folder / "splits.json", Splits), fingerprint, 0)
    cases = folder / options.plan_name / "cases"
    windows = {"training": plain(cases, training, plan), "held out": plain(cases, held_out, plan)}
    if options.other:
        other = preprocessed_folder(options.root, find_dataset(options.root, options.other))
        names = [case.case for case in read_json(other / "fingerprint.json", Fingerprint).cases]
        windows["other"] = plain(other / options.plan_name / "cases", names, plan)

    schedule.DENSE_ONLY_SHARE = 10.0
    torch.manual_seed(0)
    trainer = Trainer(
        build_model(plan.network), plan.training, plan.batch_size, options.steps, 0, CPU
    )
    dataset = PatchDataset(cases, training, plan, seed=0)
    started = time.process_time()
    for number, batch in enumerate(batches(dataset, 0, options.steps, plan.batch_size, 0), 1):
        trainer.step(number - 1, batch)
        if number % REPORT_EVERY == 0:
            step_s = (time.process_time() - started) / REPORT_EVERY
            figures = [f"{name}: {measure(trainer.ema, *given)}" for name, given in windows.items()]
            print(f"step {number}, {step_s:.2f} s; " + "; ".join(figures), flush=True)
            started = time.process_time()


def plain(cases: Path, names: Sequence[str], plan: Plan) -> tuple[Tensor, Tensor]:
    """Windows as they are stored, and their instance maps."""
    dataset = PatchDataset(cases, names, plan, seed=1, augmented=False)
    samples = [dataset[i] for i in range(WINDOWS)]
    return (
        torch.stack([sample[0] for sample in samples]),
        torch.stack([sample[1].instances for sample in samples]),
    )


@torch.no_grad()
def measure(model: MaskRCNN, images: Tensor, instances: Tensor) -> str:
    """Average precision over voxels, Dice over windows with a lesion, share of lesions seen."""
    with mixed_precision(CPU):
        dense = torch.cat([model.detect(part).dense for part in images.split(8)])
    truth, found = (instances > 0).flatten(1), (dense > 0.5).flatten(1)
    precision = average_precision_score(truth.flatten().numpy(), dense.flatten().numpy())
    holds = truth.any(dim=1)
    size = truth.sum(dim=1) + found.sum(dim=1)
    dice = (2 * (truth & found).sum(dim=1) / size.clamp_min(1))[holds].mean()
    means = [
        dense[i][instances[i] == lesion].mean()
        for i in range(len(instances))
        for lesion in instances[i].unique().tolist()
        if 0 < lesion < loader.UNBOXED
    ]
    recall = sum(float(mean) > 0.5 for mean in means) / len(means)
    return f"AP {precision:.3f}, Dice {dice:.3f}, recall {recall:.3f} of {len(means)}"


if __name__ == "__main__":
    main()
