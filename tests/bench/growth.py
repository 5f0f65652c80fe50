"""How do the figures grow with time and with scans? A user's commands, one run after another.

    python -m tests.bench.growth ROOT --runs 40:10m 40:30m 40:90m 160:20m [--background CT ...]
    python -m tests.bench.growth ROOT --runs 40:15000 40:5000 --at-once 2

A run is a number of scans and a time budget or a number of steps. Trains fold 0 (four fifths of the
scans): for 40, of those of `tests.bench.cohorts`, for other numbers of medium phantoms of a seed of
their own. Predicts the test scans with each and prints the tables of docs/benchmarks.md, one for
each cohort. What is there already is not done again. Runs of so many steps may go at once, on a
thread each: a step on one thread takes far less than twice the time of one on two.
"""

import argparse
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from bonemet_auto.evaluation.evaluate import Evaluation, evaluate_folders
from bonemet_auto.files import results_folder
from bonemet_auto.inference.load import POINT_NAME
from tests.bench.cohorts import (
    DATASET,
    cases_of,
    held_out_reference,
    held_out_scans,
    make_cohorts,
    make_phantoms,
)
from tests.bench.consolidation_study import cell, run
from tests.bench.study import PREDICTED

SEED = 21
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
    scans, reference = gather(root), held_out_reference(root)
    for dataset in {dataset_of(name) for name in options.runs} - {DATASET}:
        make_training_phantoms(root, dataset)
    if options.at_once > 1:
        os.environ["OMP_NUM_THREADS"] = "1"
    with ThreadPoolExecutor(options.at_once) as pool:
        list(pool.map(lambda name: train_and_predict(root, name, scans), options.runs))
    for cohort, cases in cases_of(reference).items():
        found = {
            name: evaluate_folders(folder_of(root, name) / PREDICTED, reference, cases=cases)
            for name in options.runs
        }
        print_table(cohort, root, found)


def folder_of(root: Path, name: str) -> Path:
    return root / "growth" / name.replace(":", "_")


def gather(root: Path) -> Path:
    """One folder of all scans to predict."""
    scans = root / "growth" / "scans"
    scans.mkdir(parents=True, exist_ok=True)
    for case, path in held_out_scans(root).items():
        link = scans / f"{case}_0000.nii.gz"
        if not link.is_symlink():
            link.symlink_to(path.resolve())
    return scans


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
    number = int(dataset[7:10])
    make_phantoms(root, dataset, number, 0, SEED)
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
