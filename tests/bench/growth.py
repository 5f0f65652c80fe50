"""How do the figures grow with time and with scans? A user's commands, one run after another.

    python -m tests.bench.growth ROOT --runs 40:10m 40:30m 40:90m 160:20m [--background CT ...]

A run is a number of scans and a time budget. Trains fold 0 (four fifths of the scans): for 40, of
the medium phantoms that `tests.bench.study` makes, for other numbers of medium phantoms of a seed
of their own. Predicts with each the 16 test phantoms of the former, the 24 others of
`tests.bench.dense_study` and, with `--background`, 8 real CTs with planted lesions. Prints the
tables of docs/benchmarks.md: the 16, all 40, the planted. What is there already is not done again.
"""

import argparse
import shutil
from pathlib import Path

import pandas as pd

from bonemet_auto.evaluation.evaluate import Evaluation, evaluate_folders
from bonemet_auto.files import results_folder
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
    options = parser.parse_args()
    root = options.root
    make_cohorts(root, options.background)
    make_other_phantoms(root)
    scans, reference = gather(root, bool(options.background))
    for name in options.runs:
        train_and_predict(root, name, scans)
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
    """One fold, copied to where later runs leave it alone, and its predictions."""
    out = folder_of(root, name)
    n_scans, budget = name.split(":")
    if not (out / "fold_0").is_dir():
        number, dataset = 1, DATASET
        if n_scans != "40":
            number, dataset = int(n_scans), f"Dataset{int(n_scans):03d}_Phantoms"
            make_training_phantoms(root, dataset, number)
        train = ["bonemet_train", number, 0, "--root", root, "--time-budget", budget]
        run(*train, "--overwrite")
        shutil.copytree(results_folder(root, dataset, "default") / "fold_0", out / "fold_0")
    if not (out / PREDICTED / "run_report.json").is_file():
        run("bonemet_predict", "-i", scans, "-o", out / PREDICTED, "-m", out / "fold_0")


def make_training_phantoms(root: Path, dataset: str, n_scans: int) -> None:
    """So many scans for training, none of them a test scan, planned and preprocessed."""
    raw = root / "raw" / dataset
    if not raw.is_dir():
        flags = ["--size", "medium", "--cases", n_scans, "--test-cases", 0, "--seed", SEED]
        run("bonemet_phantom", raw, *flags)
    run("bonemet_plan_and_preprocess", "-d", n_scans, "--root", root, "--planner", "fast")


def print_table(title: str, root: Path, found: dict[str, Evaluation]) -> None:
    heads = []
    for name in found:
        metrics = pd.read_csv(folder_of(root, name) / "fold_0" / "metrics.csv")
        n_scans, budget = name.split(":")
        heads.append(f"{n_scans} scans, {budget}, {metrics['step'].max()} steps")
    print(f"\n{title}\n| | " + " | ".join(heads) + " |\n" + "| --- " * (len(heads) + 1) + "|")
    for name, (group, figure) in FIGURES.items():
        cells = [cell(evaluation.figures[group][figure]) for evaluation in found.values()]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
