"""One run of `tests.bench.study`: train a variant, predict the test cohorts.

python -m tests.bench.study_run ROOT VARIANT SEED CORE_SECONDS
"""

import sys
import time
from pathlib import Path
from statistics import median

from bonemet_auto.processor import tune_processor

tune_processor()

import torch  # noqa: E402

from bonemet_auto.checkpoint import Progress, load_checkpoint  # noqa: E402
from bonemet_auto.commands.fold_validation import validate_fold  # noqa: E402
from bonemet_auto.data.loader import PatchDataset, batches  # noqa: E402
from bonemet_auto.files import preprocessed_folder, results_folder  # noqa: E402
from bonemet_auto.folds import fold_cases  # noqa: E402
from bonemet_auto.images import find_images  # noqa: E402
from bonemet_auto.inference.export import write_case  # noqa: E402
from bonemet_auto.inference.predict import Prediction, predict_cases  # noqa: E402
from bonemet_auto.model.transfer import transfer_weights  # noqa: E402
from bonemet_auto.plan_schema import AugmentationPlan, Plan  # noqa: E402
from bonemet_auto.schema import Fingerprint, Splits, read_json  # noqa: E402
from bonemet_auto.training import schedule  # noqa: E402
from bonemet_auto.training.loop import train  # noqa: E402
from bonemet_auto.training.trainer import Trainer  # noqa: E402
from tests.bench.study import DATASET, cohorts_of, run_folder  # noqa: E402
from tests.bench.variants import VARIANTS, Variant, WithoutDense, build_variant  # noqa: E402

CPU = torch.device("cpu")
TIMED = 10


def main() -> None:
    root, name, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    variant = VARIANTS[name]
    torch.set_num_threads(1)
    if issubclass(variant.network, WithoutDense):
        # There is no dense branch to wait for.
        schedule.DENSE_ONLY_SHARE, schedule.RAMP_SHARE = 0.0, 1e-6
    folder = preprocessed_folder(root, DATASET)
    plan = read_json(folder / "default" / "plan.json", Plan)
    fingerprint = read_json(folder / "fingerprint.json", Fingerprint)
    training, held_out = fold_cases(read_json(folder / "splits.json", Splits), fingerprint, 0)
    augmentation = AugmentationPlan(planting=variant.planting)
    plan = plan.model_copy(update={"augmentation": augmentation})
    chosen = list(training)[: variant.cases]
    dataset = PatchDataset(folder / "default" / "cases", chosen, plan, seed)
    steps = int(float(sys.argv[4]) / step_seconds(variant, plan, dataset))

    torch.manual_seed(seed)
    out = run_folder(root, name, seed)
    out.mkdir(parents=True, exist_ok=True)
    (out / "steps").write_text(str(steps))
    model = build_variant(variant, plan.network)
    if variant.pretrained:
        pretrained = results_folder(root, DATASET, "default") / "pretrained"
        transfer_weights(model, load_checkpoint(pretrained, CPU)["ema"])
    progress = Progress(0, steps, 15, seed)
    average = train(model, plan, dataset, out, progress, CPU, 0, resume=False)
    point = validate_fold(average, plan, root / "raw" / DATASET, held_out, out, CPU)
    for cohort, reference in cohorts_of(root).items():
        images = find_images(reference.parent / "imagesTs")
        for found in predict_cases(images, [average], plan, CPU):
            if not isinstance(found, Prediction):
                raise RuntimeError(found)
            write_case(out / cohort, found.case, found.geometry, found.result, point)


def step_seconds(variant: Variant, plan: Plan, dataset: PatchDataset) -> float:
    """Processor seconds of a step over a whole schedule, loading included."""
    total = 1000
    trainer = Trainer(build_variant(variant, plan.network), plan.training, 4, total, 0, CPU)
    spent = []
    for first in (0, total // 2):
        loader = iter(batches(dataset, 0, 3 + TIMED, plan.batch_size, 0))
        times = []
        for number in range(3 + TIMED):
            before = time.process_time()
            trainer.step(first + number, next(loader))
            times.append(time.process_time() - before)
        spent.append(median(times[3:]))
    share = schedule.DENSE_ONLY_SHARE
    return share * spent[0] + (1 - share) * spent[1]


if __name__ == "__main__":
    main()
