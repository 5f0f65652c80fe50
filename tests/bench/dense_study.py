"""What limits a short training? The dense branch alone, one change at a time, at equal cost.

    python -m tests.bench.dense_study ROOT --steps 600 --seeds 0
    python -m tests.bench.dense_study ROOT --steps 3000 --seeds 0 1 --only today "no paste"

Steps are today's: a change that makes them dearer gets fewer, as measured in turns. Every change of
`tests.bench.signals` trains on fold 0 of the medium phantoms that `tests.bench.study` makes, two
runs at a time with one thread each, and looks at fixed plain windows: of its training cases, and of
phantoms that no run has trained on (the fold's validation cases and 24 more, seed 3). Appends to
docs/benchmarks/signals.csv; `--table` prints the table of docs/benchmarks.md from it.
"""

import argparse
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pandas as pd

from bonemet_auto.files import preprocessed_folder
from bonemet_auto.plan_schema import Plan
from bonemet_auto.schema import read_json, write_json
from tests.bench.cohorts import DATASET, OTHER, make_cohorts, make_phantoms
from tests.bench.signals import MORE, SIGNALS
from tests.bench.study import commit

CSV = Path(__file__).parents[2] / "docs" / "benchmarks" / "signals.csv"
SHOWN = ("cost", "AP", "Dice", "found", "AP, own")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--steps", type=int, default=600, help="of today's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", default=list(SIGNALS), choices=list(SIGNALS))
    parser.add_argument("--table", action="store_true", help="only print what is there")
    options = parser.parse_args()
    if not options.table:
        make_cohorts(options.root)
        make_others(options.root, OTHER, 24, seed=3)
        if any(SIGNALS[name].dataset for name in options.only):
            make_others(options.root, MORE, 128, seed=21)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda run: start(options, *run), product(options.seeds, options.only)))
    print_table(options.steps)


def make_others(root: Path, dataset: str, cases: int, seed: int) -> None:
    """More phantoms, preprocessed with the plan of the study's own."""
    make_phantoms(root, dataset, cases, 0, seed)
    plan_file = Path("default") / "plan.json"
    plan = read_json(preprocessed_folder(root, DATASET) / plan_file, Plan)
    folder = preprocessed_folder(root, dataset)
    (folder / "default").mkdir(parents=True, exist_ok=True)
    write_json(folder / plan_file, plan.model_copy(update={"dataset": dataset}))
    command = ["bonemet_plan_and_preprocess", "-d", dataset, "--root", str(root), "--keep-plan"]
    subprocess.run(command, check=True)


def start(options: argparse.Namespace, seed: int, signal: str) -> None:
    """One run in a process of its own, on one thread; its row joins the others'."""
    command = [sys.executable, "-m", "tests.bench.dense_study_run", str(options.root), signal]
    command += [str(seed), str(options.steps)]
    began = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures = dict(part.split("=") for part in done.stdout.split("\n")[-2].split(";"))
    row = {"commit": commit(), "signal": signal, "seed": seed, "budget": options.steps}
    CSV.parent.mkdir(exist_ok=True)
    pd.DataFrame([row | figures]).to_csv(CSV, mode="a", header=not CSV.exists(), index=False)
    print(f"{signal}, seed {seed}: {figures}, {(time.perf_counter() - began) / 60:.1f} min")


def print_table(budget: int) -> None:
    """Mean over the seeds of each signal, and how far it is from today's on the same seeds."""
    rows = pd.read_csv(CSV).query("budget == @budget").set_index(["signal", "seed"])
    rows = rows[~rows.index.duplicated(keep="last")]
    print("| | steps | " + " | ".join(SHOWN) + " | AP to today's |\n" + "| --- " * 8 + "|")
    for signal in rows.index.get_level_values("signal").unique():
        mine = rows.loc[signal]
        cells = [f"{mine['steps'].mean():.0f}", *(f"{mine[name].mean():.3f}" for name in SHOWN)]
        gains = (mine["AP"] - rows.loc["today"]["AP"]).dropna()
        each = ", ".join(f"{gain:+.3f}" for gain in gains)
        print(f"| {signal} | " + " | ".join(cells) + f" | {each} |")


if __name__ == "__main__":
    main()
