"""One run of `tests.bench.dense_study`: train the dense branch with one change, look at windows.

python -m tests.bench.dense_study_run ROOT SIGNAL SEED STEPS
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from bonemet_auto.processor import tune_processor

tune_processor()

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402, N812
from sklearn.metrics import average_precision_score  # noqa: E402
from torch import Tensor  # noqa: E402

from bonemet_auto.data.loader import UNBOXED, PatchDataset, batches, collate  # noqa: E402
from bonemet_auto.files import preprocessed_folder  # noqa: E402
from bonemet_auto.folds import fold_cases  # noqa: E402
from bonemet_auto.model.mask_rcnn import MaskRCNN, build_model  # noqa: E402
from bonemet_auto.model.precision import mixed_precision  # noqa: E402
from bonemet_auto.plan_schema import Plan  # noqa: E402
from bonemet_auto.schema import Fingerprint, Splits, read_json  # noqa: E402
from bonemet_auto.training import schedule  # noqa: E402
from bonemet_auto.training.trainer import Trainer  # noqa: E402
from tests.bench.cohorts import DATASET, OTHER  # noqa: E402
from tests.bench.constants import changed  # noqa: E402
from tests.bench.signals import SIGNALS, Signal  # noqa: E402

CPU = torch.device("cpu")
WARMED, TIMED = 3, 21
WINDOWS = {"held out": 32, "others": 128, "own": 64}
FALSE_PEAKS = 0.3
"""Peaks outside lesions for each window, at which found lesions are counted."""


def main() -> None:
    root, signal, seed = Path(sys.argv[1]), SIGNALS[sys.argv[2]], int(sys.argv[3])
    torch.set_num_threads(1)
    schedule.DENSE_ONLY_SHARE = 10.0
    folder = preprocessed_folder(root, DATASET)
    given = read_json(folder / "default" / "plan.json", Plan)
    fingerprint = read_json(folder / "fingerprint.json", Fingerprint)
    training, held_out = fold_cases(read_json(folder / "splits.json", Splits), fingerprint, 0)
    cases = folder / "default" / "cases"
    trained = all_cases(root, signal.dataset) if signal.dataset else (cases, list(training))

    plan = plan_with(given, signal)
    before = PatchDataset(cases, training, given, seed)
    after = PatchDataset(*trained, plan, seed)
    cost = relative_cost(before, after, signal)
    steps = round(int(sys.argv[4]) / cost)
    torch.manual_seed(seed)
    with changed(signal.constants):
        trainer = make_trainer(plan, steps, seed)
        for number, batch in enumerate(batches(after, 0, steps, plan.batch_size, 0)):
            trainer.step(number, batch)

    # All see the same windows, whatever they were trained on.
    unseen = [
        plain(cases, held_out, given, WINDOWS["held out"]),
        plain(*all_cases(root, OTHER), given, WINDOWS["others"]),
    ]
    images, instances = (torch.cat(parts) for parts in zip(*unseen, strict=True))
    figures = measure(trainer.ema, images, instances)
    own = measure(trainer.ema, *plain(*trained, given, WINDOWS["own"]))
    figures |= {"AP, own": own["AP"]}
    print(
        f"cost={cost:.2f};steps={steps};"
        + ";".join(f"{name}={value:.4f}" for name, value in figures.items())
    )


def all_cases(root: Path, dataset: str) -> tuple[Path, list[str]]:
    """Where a dataset's cases are stored, and their names."""
    folder = preprocessed_folder(root, dataset)
    fingerprint = read_json(folder / "fingerprint.json", Fingerprint)
    return folder / "default" / "cases", [case.case for case in fingerprint.cases]


def plan_with(plan: Plan, signal: Signal) -> Plan:
    """The plan with a signal's changes, checked anew."""
    fields = plan.model_dump()
    for name, value in signal.plan.items():
        part, _, field = name.rpartition(".")
        (fields[part] if part else fields)[field] = value
    return Plan.model_validate(fields)


def make_trainer(plan: Plan, steps: int, seed: int) -> Trainer[MaskRCNN]:
    return Trainer(build_model(plan.network), plan.training, plan.batch_size, steps, seed, CPU)


def relative_cost(before: PatchDataset, after: PatchDataset, signal: Signal) -> float:
    """Processor time of a changed step, loading included, over one of today's, in turns."""
    sides = [(before, Signal()), (after, signal)]
    trainers = [make_trainer(dataset.plan, 1000, 0) for dataset, _ in sides]
    spent: list[list[float]] = [[], []]
    for number in range(WARMED + TIMED):
        for (dataset, change), trainer, times in zip(sides, trainers, spent, strict=True):
            size = dataset.plan.batch_size
            with changed(change.constants):
                started = time.process_time()
                first = number * size
                trainer.step(number, collate([dataset[first + i] for i in range(size)]))
            times.append(time.process_time() - started)
    today, changed_s = (median(times[WARMED:]) for times in spent)
    return changed_s / today


def plain(cases: Path, names: Sequence[str], plan: Plan, count: int) -> tuple[Tensor, Tensor]:
    """Windows as they are stored, and their instance maps."""
    dataset = PatchDataset(cases, names, plan, seed=1, augmented=False)
    samples = [dataset[i] for i in range(count)]
    return (
        torch.stack([sample[0] for sample in samples]),
        torch.stack([sample[1].instances for sample in samples]),
    )


@torch.no_grad()
def measure(model: MaskRCNN, images: Tensor, instances: Tensor) -> dict[str, float]:
    """Average precision over voxels, Dice over windows with a lesion, share of lesions found.

    A lesion is found where its highest smoothed probability exceeds all but `FALSE_PEAKS` peaks per
    window of those outside lesions.
    """
    with mixed_precision(CPU):
        dense = torch.cat([model.detect(part).dense for part in images.split(8)])
    truth, found = (instances > 0).flatten(1), (dense > 0.5).flatten(1)
    precision = average_precision_score(truth.flatten().numpy(), dense.flatten().numpy())
    holds = truth.any(dim=1)
    size = truth.sum(dim=1) + found.sum(dim=1)
    dice = (2 * (truth & found).sum(dim=1) / size.clamp_min(1))[holds].mean()
    smooth = F.avg_pool3d(dense[:, None], 3, 1, 1)
    near_lesion = F.max_pool3d((instances > 0).float()[:, None], 5, 1, 2) > 0
    peaks = (F.max_pool3d(smooth, 5, 1, 2) == smooth) & ~near_lesion
    false = smooth[peaks].sort(descending=True).values[int(FALSE_PEAKS * len(images))]
    best = torch.stack(
        [
            smooth[i, 0][instances[i] == lesion].max()
            for i in range(len(instances))
            for lesion in instances[i].unique().tolist()
            if 0 < lesion < UNBOXED
        ]
    )
    return {
        "AP": float(precision),
        "Dice": float(dice),
        "found": float((best > false).float().mean()),
    }


if __name__ == "__main__":
    main()
