"""One run of `tests.bench.study`: train a variant, predict the test scans.

python -m tests.bench.study_run ROOT VARIANT SEED STEPS
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from bonemet_auto.processor import tune_processor

tune_processor()

import torch  # noqa: E402

from bonemet_auto.checkpoint import Progress, load_checkpoint  # noqa: E402
from bonemet_auto.commands.fold_validation import validate_fold  # noqa: E402
from bonemet_auto.data.loader import PatchDataset, batches, collate  # noqa: E402
from bonemet_auto.files import preprocessed_folder, results_folder  # noqa: E402
from bonemet_auto.folds import fold_cases  # noqa: E402
from bonemet_auto.inference.export import write_case  # noqa: E402
from bonemet_auto.inference.predict import Prediction, predict_cases  # noqa: E402
from bonemet_auto.model.transfer import transfer_weights  # noqa: E402
from bonemet_auto.plan_schema import Plan  # noqa: E402
from bonemet_auto.schema import Fingerprint, Splits, read_json  # noqa: E402
from bonemet_auto.training import schedule  # noqa: E402
from bonemet_auto.training.log import TrainingLog  # noqa: E402
from bonemet_auto.training.loop import train  # noqa: E402
from bonemet_auto.training.trainer import Trainer  # noqa: E402
from tests.bench.cohorts import DATASET, held_out_scans  # noqa: E402
from tests.bench.constants import changed  # noqa: E402
from tests.bench.study import PREDICTED, run_folder  # noqa: E402
from tests.bench.variants import VARIANTS, Variant, build_variant  # noqa: E402

CPU = torch.device("cpu")
WARMED, TIMED = 3, 15


def main() -> None:
    root, name, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    variant = VARIANTS[name]
    torch.set_num_threads(1)
    folder = preprocessed_folder(root, DATASET)
    plan = read_json(folder / "default" / "plan.json", Plan)
    fingerprint = read_json(folder / "fingerprint.json", Fingerprint)
    training, held_out = fold_cases(read_json(folder / "splits.json", Splits), fingerprint, 0)
    cases = folder / "default" / "cases"
    full, dataset = (
        windows(cases, training, plan, item, seed) for item in (VARIANTS["full"], variant)
    )
    steps = round(int(sys.argv[4]) / relative_cost(variant, full, dataset))

    torch.manual_seed(seed)
    out = run_folder(root, name, seed)
    out.mkdir(parents=True, exist_ok=True)
    (out / "steps").write_text(str(steps))
    model = build_variant(variant, plan.network)
    if variant.pretrained:
        pretrained = results_folder(root, DATASET, "default") / "pretrained"
        transfer_weights(model, load_checkpoint(pretrained, CPU)["ema"])
    with changed(variant.constants):
        trainer = Trainer(model, plan.training, plan.batch_size, steps, seed, CPU)
        loader = batches(dataset, 0, steps, plan.batch_size, workers=0)
        average = train(trainer, loader, out, Progress(0, steps, 15, seed), TrainingLog(out, 0))
    point = validate_fold(average, plan, root / "raw" / DATASET, held_out, out, CPU)
    for found in predict_cases(held_out_scans(root), [average], plan, CPU):
        if not isinstance(found, Prediction):
            raise RuntimeError(found)
        write_case(out / PREDICTED, found.case, found.geometry, found.result, point)


def windows(
    cases: Path, names: Sequence[str], plan: Plan, variant: Variant, seed: int
) -> PatchDataset:
    """Training windows of a variant."""
    augmentation = plan.augmentation.model_copy(update={"planting": variant.planting})
    plan = plan.model_copy(update={"augmentation": augmentation})
    return PatchDataset(cases, names[: variant.cases], plan, seed)


def relative_cost(variant: Variant, full: PatchDataset, dataset: PatchDataset) -> float:
    """Processor time of a variant over that of the full network, loading included, in turns.

    The mean over a whole schedule.
    """
    total, spent = 1000, [0.0, 0.0]
    sides = [(VARIANTS["full"], full), (variant, dataset)]
    plan = full.plan
    trainers = [
        Trainer(build_variant(item, plan.network), plan.training, plan.batch_size, total, 0, CPU)
        for item, _ in sides
    ]
    for first in (0, total // 2 + 250):
        times: list[list[float]] = [[], []]
        for number in range(WARMED + TIMED):
            for side, ((item, given), trainer) in enumerate(zip(sides, trainers, strict=True)):
                samples = range(number * plan.batch_size, (number + 1) * plan.batch_size)
                with changed(item.constants):
                    started = time.process_time()
                    trainer.step(first + number, collate([given[i] for i in samples]))
                times[side].append(time.process_time() - started)
        for side, (item, _) in enumerate(sides):
            with changed(item.constants):
                share = schedule.DENSE_ONLY_SHARE
            spent[side] += (1 - share if first else share) * median(times[side][WARMED:])
    return spent[1] / spent[0]


if __name__ == "__main__":
    main()
