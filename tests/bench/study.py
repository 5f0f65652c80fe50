"""Which parts of the network, and which ways to train it, pay? Equal cost, paired seeds.

    python -m tests.bench.study ROOT --table parts --steps 700 --seeds 0 1
    python -m tests.bench.study ROOT --table few --steps 400 --seeds 0 1

Makes the scans of `tests.bench.cohorts` in ROOT, trains every variant of a table of
`tests.bench.variants` on fold 0 with every seed, two at a time with one thread each, predicts the
test scans and appends one row per run and cohort to docs/benchmarks/studies.csv: commit, seed,
budget and figures. The budget is in steps of the full network: a variant whose steps cost less
takes more of them, as measured in turns. `--print` prints the tables of docs/benchmarks.md from
what is there: each cohort, and the paired differences to the first variant.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pandas as pd

from bonemet_auto.evaluation.cohort import read_cohort
from bonemet_auto.evaluation.comparison import Difference, Differences, compare_cohorts
from bonemet_auto.evaluation.evaluate import Evaluation, evaluate_cohort, evaluate_folders
from tests.bench.cohorts import cases_of, held_out_reference, make_cohorts
from tests.bench.variants import TABLES

PREDICTED = "predicted"
CSV = Path(__file__).parents[2] / "docs" / "benchmarks" / "studies.csv"
FIGURES = {
    "patient DSC": ("segmentation", "dsc"),
    "lesion DSC (missed 0)": ("lesion", "dsc_all"),
    "sens. 1/8 FP": ("detection", "sensitivity_at_0.125_fp"),
    "sens. 1 FP": ("detection", "sensitivity_at_1_fp"),
    "sens. 8 FP": ("detection", "sensitivity_at_8_fp"),
    "CPM": ("detection", "cpm"),
    "AP .1": ("detection", "ap_iou_0.1"),
    "AP .3": ("detection", "ap_iou_0.3"),
    "AP .5": ("detection", "ap_iou_0.5"),
    "lesion source AUC": ("lesion", "source_auc"),
    "patient AUC": ("patient", "auc"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--table", choices=list(TABLES), default="parts")
    parser.add_argument("--steps", type=int, default=700, help="of the full network")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--background", type=Path, nargs="+", default=[])
    parser.add_argument("--print", action="store_true", help="only print what is there")
    options = parser.parse_args()
    options.variants = list(TABLES[options.table])
    if not options.print:
        make_cohorts(options.root, options.background)
        if options.table == "few":
            pretrain(options.root, options.steps)
        runs = list(product(options.seeds, options.variants))
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda run: start(options, *run), runs))
        append_rows(options, runs)
    print_tables(options)


def pretrain(root: Path, steps: int) -> None:
    """Weights of a pretraining of so many steps."""
    command = ["bonemet_pretrain", "1", "--root", str(root), "--overwrite"]
    subprocess.run([*command, "--iterations", str(steps)], check=True)


def start(options: argparse.Namespace, seed: int, variant: str) -> None:
    """One run in a process of its own, on one thread."""
    command = [sys.executable, "-m", "tests.bench.study_run", str(options.root), variant]
    command += [str(seed), str(options.steps)]
    began = time.perf_counter()
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    print(f"{variant}, seed {seed}: {(time.perf_counter() - began) / 60:.1f} min", flush=True)


def run_folder(root: Path, variant: str, seed: int) -> Path:
    return root / "study" / variant.replace(" ", "_") / f"seed_{seed}"


def commit() -> str:
    git = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()


def append_rows(options: argparse.Namespace, runs: list[tuple[int, str]]) -> None:
    rows, reference = [], held_out_reference(options.root)
    for (seed, variant), (cohort, cases) in product(runs, cases_of(reference).items()):
        folder = run_folder(options.root, variant, seed)
        found = evaluate_folders(folder / PREDICTED, reference, cases=cases)
        steps = int((folder / "steps").read_text())
        row = {"commit": commit(), "variant": variant, "seed": seed, "cohort": cohort}
        row |= {"budget": f"{options.steps} steps", "steps": steps}
        rows.append(row | {name: value_of(found, name) for name in FIGURES})
    CSV.parent.mkdir(exist_ok=True)
    pd.DataFrame(rows).to_csv(
        CSV, mode="a", header=not CSV.exists(), index=False, float_format="%.3f"
    )


def value_of(found: Evaluation, name: str) -> float | None:
    group, figure = FIGURES[name]
    return found.figures[group][figure].value


def print_tables(options: argparse.Namespace) -> None:
    """Means over seeds with the first seed's intervals, and the differences of that seed."""
    reference = held_out_reference(options.root)
    for cohort, cases in cases_of(reference).items():
        read = {
            variant: [
                read_cohort(run_folder(options.root, variant, seed) / PREDICTED, reference, cases)
                for seed in options.seeds
            ]
            for variant in options.variants
        }
        found = {variant: [evaluate_cohort(item) for item in read[variant]] for variant in read}
        print_table(cohort, {variant: cells(found[variant]) for variant in found})
        first, *others = options.variants
        less = {other: compare_cohorts(read[other][0], read[first][0]) for other in others}
        title = f"{cohort}, less {first}, seed {options.seeds[0]}"
        print_table(title, {other: differences(less[other]) for other in others})


def print_table(title: str, columns: Mapping[str, Mapping[str, str]]) -> None:
    """A column of cells for each variant, a row for each of the `FIGURES`."""
    print(f"\n{title}\n| | " + " | ".join(columns) + " |\n| --- |" + " --- |" * len(columns))
    for name in FIGURES:
        print(f"| {name} | " + " | ".join(column[name] for column in columns.values()) + " |")


def cells(found: list[Evaluation]) -> dict[str, str]:
    return {name: cell(found, name) for name in FIGURES}


def cell(found: list[Evaluation], name: str) -> str:
    values = [value for item in found if (value := value_of(item, name)) is not None]
    if not values:
        return "-"
    group, figure = FIGURES[name]
    first = found[0].figures[group][figure]
    each = ", ".join(f"{value:.2f}" for value in values)
    interval = "" if first.low is None else f"; {first.low:.2f}-{first.high:.2f}"
    return f"{sum(values) / len(values):.2f} ({each}{interval})"


def differences(less: Differences) -> dict[str, str]:
    return {name: difference(less[group][figure]) for name, (group, figure) in FIGURES.items()}


def difference(item: Difference) -> str:
    if item.difference is None:
        return "-"
    interval = "" if item.low is None else f" ({item.low:+.3f} to {item.high:+.3f})"
    return f"{item.difference:+.3f}{interval}"


if __name__ == "__main__":
    main()
