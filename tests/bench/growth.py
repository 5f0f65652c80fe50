"""How do the figures grow with time and with scans? A user's commands, one run after another.

    python -m tests.bench.growth ROOT --runs 40:10m 40:30m 40:90m 160:20m [--background CT ...]
    python -m tests.bench.growth ROOT --runs 40:15000 40:5000 --at-once 2

A run is a number of scans and a time budget or a number of steps. Trains fold 0 (four fifths of the
scans): for 40, of the medium phantoms that `tests.bench.study` makes, for other numbers of medium
phantoms of a seed of their own. Predicts with each the 16 test phantoms of the former, the 24
others of `tests.bench.dense_study` and, with `--background`, 8 real CTs with planted lesions.
Prints the tables of docs/benchmarks.md: the 16, all 40, the planted. What is there already is not
done again. Runs of so many steps may go at once, on a thread each: a step on one thread takes far
less than twice the time of one on two.
"""

import argparse
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from bonemet_auto.evaluation.evaluate import Evaluation, evaluate_folders
from bonemet_auto.files import results_folder
from bonemet_auto.inference.load import POINT_NAME
from tests.bench.consolidation_study import cell, run
from tests.bench.dense_study import OTHER, make_other_phantoms
from tests.bench.inference_study import join_references, join_scans
from tests.bench.study import COHORTS, DATASET, make_cohorts

PLANTED = COHORTS["planted"]
PREDICTED = "predicted"
SEED = 21
SHOWN = {
    "the same 16 phantoms": (DATASET,),
    "those and 24 others": (DATASET, OTHER),
    "real CTs with planted lesions": (PLANTED,),
}
FIGURES = {
    "patient DSC at the fold's threshold": ("segmentation", "dsc"),
    "lesion sensitivity at it": ("detection", "sensitivity_iou_0.1"),
    "FP per scan at it": ("detection", "fp_per_scan"),
    "sensitivity at 1 FP per scan": ("detection", "sensitivity_at_1_fp"),
    "sensitivity at 2 FP per scan": ("detection", "sensitivity_at_2_fp"),
    "CPM": ("detection", "cpm"),
    "AP .1": ("detection", "ap_iou_0.1"),
    "AP .5": ("detection", "ap_iou_0.5"),
    "DSC of the lesions found": ("lesion", "dsc_matched"),
    "lesion source AUC": ("lesion", "source_auc"),
    "patient AUC": ("patient", "auc"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--runs", nargs="+", default=["40:10m", "40:30m", "40:90m", "160:20m"])
    parser.add_argument("--background", type=Path, nargs="+", default=[])
    parser.add_argument("--at-once", type=int, default=1, help="runs beside each other")
    options = parser.parse_args()
    root = options.root
    make_cohorts(root, options.background)
    make_other_phantoms(root)
    scans, reference = gather(root, bool(options.background))
    for dataset in {dataset_of(name) for name in options.runs} - {DATASET}:
        make_training_phantoms(root, dataset)
    if options.at_once > 1:
        os.environ["OMP_NUM_THREADS"] = "1"
    with ThreadPoolExecutor(options.at_once) as pool:
        list(pool.map(lambda name: train_and_predict(root, name, scans), options.runs))
    for title, names in SHOWN.items():
        cases = [path.stem for path in reference.glob("*.json") if path.stem.startswith(names)]
        if cases:
            found = {
                name: evaluate_folders(folder_of(root, name) / PREDICTED, reference, cases=cases)
                for name in options.runs
            }
            print_table(f"{title}: {len(cases)} scans", root, found)


def folder_of(root: Path, name: str) -> Path:
    return root / "growth" / name.replace(":", "_")


def gather(root: Path, planted: bool) -> tuple[Path, Path]:
    """One folder of all scans to predict and one of their labels."""
    sets = {DATASET: "Ts", OTHER: "Tr"} | ({PLANTED: "Ts"} if planted else {})
    scans, reference = root / "growth" / "scans", root / "growth" / "reference"
    if not reference.is_dir():
        scans.mkdir(parents=True, exist_ok=True)
        for case, path in join_scans(root, sets).items():
            (scans / f"{case}_0000.nii.gz").symlink_to(path.resolve())
        join_references(root, sets, reference)
    return scans, reference


def train_and_predict(root: Path, name: str, scans: Path) -> None:
    """One fold, in a root of its own, so that others may train beside it, and its predictions."""
    out, fold, length = folder_of(root, name), fold_of(root, name), name.split(":")[1]
    out.mkdir(exist_ok=True)
    for part in ("raw", "preprocessed"):
        if not (out / part).is_symlink():
            (out / part).symlink_to((root / part).resolve())
    if not (fold / POINT_NAME).is_file():
        steps = ["--iterations", length, "--workers", 0]
        until = steps if length.isdecimal() else ["--time-budget", length]
        run("bonemet_train", dataset_of(name), 0, "--root", out, "--overwrite", *until)
    if not (out / PREDICTED / "run_report.json").is_file():
        run("bonemet_predict", "-i", scans, "-o", out / PREDICTED, "-m", fold)


def dataset_of(name: str) -> str:
    n_scans = int(name.split(":")[0])
    return DATASET if n_scans == 40 else f"Dataset{n_scans:03d}_Phantoms"


def fold_of(root: Path, name: str) -> Path:
    return results_folder(folder_of(root, name), dataset_of(name), "default") / "fold_0"


def make_training_phantoms(root: Path, dataset: str) -> None:
    """As many scans as the dataset's number, none of them a test scan, and their plan."""
    number, raw = int(dataset[7:10]), root / "raw" / dataset
    if not raw.is_dir():
        flags = ["--size", "medium", "--cases", number, "--test-cases", 0, "--seed", SEED]
        run("bonemet_phantom", raw, *flags)
    run("bonemet_plan_and_preprocess", "-d", number, "--root", root, "--planner", "fast")


def print_table(title: str, root: Path, found: dict[str, Evaluation]) -> None:
    heads = []
    for name in found:
        steps = pd.read_csv(fold_of(root, name) / "metrics.csv")["step"].max()
        n_scans, length = name.split(":")
        taken = f"{steps} steps" if length.isdecimal() else f"{length}, {steps} steps"
        heads.append(f"{n_scans} scans, {taken}")
    print(f"\n{title}\n| | " + " | ".join(heads) + " |\n" + "| --- " * (len(heads) + 1) + "|")
    for name, (group, figure) in FIGURES.items():
        cells = [cell(evaluation.figures[group][figure]) for evaluation in found.values()]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
