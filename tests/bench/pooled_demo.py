"""Run the demo with several seeds and evaluate all held-out cases together.

    python tests/bench/pooled_demo.py FOLDER --seeds 0 1 2

Prints wall-clock time and peak memory of each run, each table, and the pooled one.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from bonemet_auto.evaluation.evaluate import evaluate_folders
from bonemet_auto.evaluation.table import format_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pool-only", action="store_true", help="the runs are there already")
    options = parser.parse_args()
    for seed in options.seeds:
        out = options.folder / f"seed_{seed}"
        if not options.pool_only:
            run_demo(out, seed)
        pool(out, f"seed{seed}_", options.folder / "pooled")
    print(f"\npooled over seeds {options.seeds}")
    pooled = options.folder / "pooled"
    print(format_table(evaluate_folders(pooled / "predictions", pooled / "labelsTs")))


def run_demo(out: Path, seed: int) -> None:
    """One demo in a process of its own."""
    start = "from bonemet_auto.commands.demo import main; raise SystemExit(main())"
    command = [sys.executable, "-c", start, "--out", str(out), "--seed", str(seed), "--overwrite"]
    began = time.perf_counter()
    subprocess.run(command, check=True)
    minutes = (time.perf_counter() - began) / 60
    peak_gib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"seed {seed}: {minutes:.1f} min, largest process so far {peak_gib:.2f} GiB")


def pool(demo: Path, prefix: str, pooled: Path) -> None:
    """Link one demo's held-out cases and predictions into the pooled folders, names made unique."""
    raw = demo / "raw" / "Dataset001_Phantom"
    for source, name in (
        (raw / "labelsTs", "labelsTs"),
        (demo / "predictions", "predictions"),
        (demo / "predictions" / "candidates", "predictions/candidates"),
    ):
        target = pooled / name
        target.mkdir(parents=True, exist_ok=True)
        for path in sorted(source.glob("case_*")):
            link = target / f"{prefix}{path.name}"
            link.unlink(missing_ok=True)
            if path.suffix == ".json":
                link.write_text(renamed(path, prefix))
            else:
                link.symlink_to(path.resolve())
    (pooled / "dataset.json").write_text((raw / "dataset.json").read_text())


def renamed(path: Path, prefix: str) -> str:
    """The JSON of a case with its case or patient id made unique."""
    content = json.loads(path.read_text())
    for key in ("case", "patient_id"):
        if key in content:
            content[key] = prefix + content[key]
    return json.dumps(content)


if __name__ == "__main__":
    main()
