"""What do five folds and their consolidation add to a single fold? Held-out phantoms.

    python -m tests.bench.consolidation_study ROOT [--steps 1200] [--test-cases 24]

Makes cohorts in ROOT on the spot (40 training phantoms of size medium, seed 0, and test phantoms of
a seed of their own), trains five folds, consolidates them, and predicts the test phantoms with each
fold, with all five by the mean of their thresholds, and with the consolidated model. Prints the
table of docs/benchmarks.md. What is there already is not done again.
"""

import argparse
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from bonemet_auto.evaluation.bootstrap import Figure
from bonemet_auto.evaluation.evaluate import evaluate_folders

TRAINING, TEST = "Dataset001_Med", "Dataset009_Test"
FOLDS = range(5)
FIGURES = {
    "patient DSC": ("segmentation", "dsc"),
    "lesion DSC (missed 0)": ("lesion", "dsc_all"),
    "sens. at the threshold": ("detection", "sensitivity_iou_0.1"),
    "FP per scan there": ("detection", "fp_per_scan"),
    "sens. 1 FP": ("detection", "sensitivity_at_1_fp"),
    "CPM": ("detection", "cpm"),
    "lesion source AUC": ("lesion", "source_auc"),
    "lesion source Brier": ("lesion", "source_brier"),
    "patient AUC": ("patient", "auc"),
    "patient Brier": ("patient", "brier"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--test-cases", type=int, default=24)
    options = parser.parse_args()
    root, began = options.root, time.monotonic()
    make_cohorts(root, options.test_cases)
    train(root, options.steps)
    results = root / "results" / TRAINING / "default"
    if not (results / "model").is_dir():
        run("bonemet_consolidate", "1", "--root", root)
    models: dict[str, list[object]] = {
        f"fold {fold}": ["-d", 1, "-f", fold, "--root", root] for fold in FOLDS
    }
    models["five folds"] = ["-d", 1, "-f", *FOLDS, "--root", root]
    models["consolidated"] = ["-m", results / "model"]
    print("| | " + " | ".join(FIGURES) + " |\n" + "| --- " * (len(FIGURES) + 1) + "|")
    for name, which in models.items():
        out = root / "study" / name.replace(" ", "_")
        if not (out / "run_report.json").is_file():
            run("bonemet_predict", "-i", root / "raw" / TEST / "imagesTs", "-o", out, *which)
        figures = evaluate_folders(out, root / "raw" / TEST / "labelsTs").figures
        cells = [cell(figures[group][figure]) for group, figure in FIGURES.values()]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    print(f"{(time.monotonic() - began) / 60:.0f} minutes")


def make_cohorts(root: Path, test_cases: int) -> None:
    medium: Sequence[object] = ["--size", "medium"]
    cohorts: dict[str, Sequence[object]] = {
        TRAINING: ["--cases", 40, "--seed", 0],
        TEST: ["--cases", 2, "--test-cases", test_cases, "--seed", 11],
    }
    for name, flags in cohorts.items():
        if not (root / "raw" / name).is_dir():
            run("bonemet_phantom", root / "raw" / name, *medium, *flags)
    run("bonemet_plan_and_preprocess", "-d", 1, "--root", root, "--planner", "fast")


def train(root: Path, steps: int) -> None:
    """Train the folds that are not finished, one after the other."""
    for fold in FOLDS:
        folder = root / "results" / TRAINING / "default" / f"fold_{fold}"
        if not (folder / "operating_point.json").is_file():
            flags = ["--overwrite"] if folder.exists() else []
            run("bonemet_train", 1, fold, "--root", root, "--iterations", steps, *flags)


def cell(figure: Figure) -> str:
    if figure.value is None:
        return "-"
    interval = "" if figure.low is None else f" ({figure.low:.2f}-{figure.high:.2f})"
    return f"{figure.value:.3f}{interval}"


def run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True, capture_output=True)


if __name__ == "__main__":
    main()
