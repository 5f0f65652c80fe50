"""Prediction of one clinical CT: memory, time by stage, and nnU-Net's predictor beside it.

    python -m tests.bench.clinical FOLD_FOLDER FOLDER --nnunet PYTHON

Makes a phantom of 400x512x512 voxels (1.0 x 0.8 x 0.8 mm, 12 lesions) in FOLDER if it is not there,
and predicts it with `bonemet_predict`, each run in a process of its own: with the fold, with an
ensemble of five copies of it, and with the fold planned at the scan's own spacing (windows without
overlap and mirrors there: memory does not depend on them). PYTHON is that of an environment with
`nnunetv2==2.8.1`: its predictor runs a plain U-Net, with weights as they come, of as many flops per
window, on the same voxel grid with the same windows. There few windows are run for the time of one,
on volumes of full size; what a whole prediction takes is reckoned from it.
One thread, and seconds of CPU time: those of a busy machine are longer by the clock. Last, four
scans with and without the threads that read ahead and write behind, on two cores, by the clock; in
the second row a pause of 50 ms per forward stands for a network on another device.
Prints the tables of docs/benchmarks.md.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np

from bonemet_auto.geometry import Index, Triple
from bonemet_auto.images import Volume, write_volume
from bonemet_auto.phantom import cohort
from bonemet_auto.result_schema import CaseCost, RunReport
from bonemet_auto.schema import read_json

SHAPE, SPACING_MM = (400, 512, 512), (1.0, 0.8, 0.8)
SEED, LESIONS, FOLDS = 7, 12, 5
CASE = "clinical"
EXPORT = ("merge", "describe", "draw", "write")
PREDICT = "from bonemet_auto.commands.predict import main; raise SystemExit(main())"
CPU_CLOCK = """
import time, types
import bonemet_auto.inference.cost as cost
cost.time = types.SimpleNamespace(perf_counter=time.process_time)
"""
ELSEWHERE = """
import time, torch
from bonemet_auto.model import mask_rcnn
def detect(self, images):
    time.sleep(0.05)
    nothing = [images.new_zeros(0, 6) for _ in images]
    return mask_rcnn.Detections(torch.zeros_like(images[:, 0]), nothing, [x[:, 0] for x in nothing])
mask_rcnn.MaskRCNN.detect = detect
"""
ONE_AFTER_ANOTHER = """
from concurrent.futures import Future
from bonemet_auto.inference import ahead
class Now:
    def __init__(self, _): pass
    def submit(self, work, *given):
        done = Future(); done.set_result(work(*given)); return done
    def shutdown(self, **_): pass
ahead.ThreadPoolExecutor = Now
"""
FEW_WINDOWS = ("--overlap", "0", "--no-mirrors")
FLOPS_TOLERANCE = 0.05


class Spent(NamedTuple):
    """What a process took: peak GiB, CPU seconds, seconds by the clock."""

    gib: float
    cpu_s: float
    wall_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("fold", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--nnunet", type=Path)
    parser.add_argument("--only", nargs="*", default=["ours", "ahead"], choices=["ours", "ahead"])
    options = parser.parse_args()
    scans = options.folder / "scans"
    if not (scans / f"{CASE}_0000.nii.gz").is_file():
        make_scan(options.folder)
    if options.nnunet:
        compare_nnunet(options.fold, scans, options.folder, options.nnunet)
    if "ours" in options.only:
        compare_folds(options.fold, scans, options.folder)
    if "ahead" in options.only:
        compare_ahead(options.fold, scans, options.folder)


def make_scan(folder: Path) -> None:
    """A trunk on the grid of a usual CT, with its lesions."""

    def window(*given: Any) -> tuple[Index, Triple, Triple]:
        scale = given[2]
        centre_mm = np.array([0.0, -55.0, 120.0]) * scale
        x, y, z = (centre_mm - np.multiply(SHAPE, SPACING_MM)[::-1] / 2).tolist()
        return SHAPE, SPACING_MM, (x, y, z)

    patient_seed, case_seed = np.random.SeedSequence(SEED).spawn(2)
    recipe = cohort.CaseRecipe(
        CASE, "Ts", "P000", patient_seed, case_seed, is_lung=True, n_lesions=LESIONS,
        region="lumbar", size="clinical", background=None,
    )  # fmt: skip
    with patch.object(cohort, "draw_window", window):
        case = cohort.make_case(recipe)
    write_volume(folder / "scans" / f"{CASE}_0000.nii.gz", Volume(case.hu, case.geometry))
    write_volume(folder / "labels" / f"{CASE}.nii.gz", Volume(case.instances, case.geometry))
    print(f"{len(case.lesions)} lesions planted")


def compare_folds(fold: Path, scans: Path, folder: Path) -> None:
    """Table of memory and time by stage."""
    one, five, fine = (folder / name for name in ("one", "five", "fine"))
    for number in range(FOLDS):
        copy_fold(fold, five / f"fold_{number}")
    copy_fold(fold, one / "fold_0")
    copy_fold(fold, fine / "fold_0", spacing_mm=SPACING_MM)
    runs = {
        "one fold": (one, ()),
        "five folds": (five, ()),
        "one fold, 1.0 x 0.8 x 0.8 mm": (fine, FEW_WINDOWS),
    }
    stages = ("read", "preprocess", "network", *EXPORT)
    print(f"| | peak, GiB | {' | '.join(stages)} | export, % | CPU, s | forwards | left out, % |")
    print("| --- " * (len(stages) + 6) + "|")
    for name, (model, flags) in runs.items():
        spent, cost = predict(model, scans, folder / "out", flags)
        seconds = [cost.seconds.get(stage, 0.0) for stage in stages]
        export = sum(seconds[stages.index(EXPORT[0]) :]) / sum(seconds)
        print(
            f"| {name} | {spent.gib:.2f} | {' | '.join(f'{s:.1f}' for s in seconds)} "
            f"| {100 * export:.1f} | {spent.cpu_s:.0f} | {forwards(model, cost.windows, flags)} "
            f"| {100 * cost.windows_left_out / (cost.windows + cost.windows_left_out):.0f} |",
            flush=True,
        )


def forwards(model: Path, windows: int, flags: Sequence[str]) -> int:
    """Windows times folds times mirrors of the first stage."""
    axes = json.loads(next(model.glob("fold_*/plan.json")).read_text())["inference"]["mirror_axes"]
    mirrors = 1 if "--no-mirrors" in flags else 2 ** len(axes)
    return windows * mirrors * len(list(model.glob("fold_*")))


def copy_fold(fold: Path, target: Path, **changes: object) -> None:
    """A fold at another place, with another plan."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in ("checkpoint_last.pt", "operating_point.json"):
        shutil.copy(fold / name, target / name)
    plan = json.loads((fold / "plan.json").read_text())
    (target / "plan.json").write_text(json.dumps(plan | changes))


def predict(
    model: Path, scans: Path, out: Path, flags: Sequence[str] = ()
) -> tuple[Spent, CaseCost]:
    """Run `bonemet_predict`; what it took, and its own account of the first case."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-c", CPU_CLOCK + PREDICT, "-i", scans, "-o", out, "-m", model]
    spent = run([str(part) for part in (*command, "-device", "cpu", *flags)], out.parent / "log")
    costs = read_json(out / "run_report.json", RunReport).costs
    return spent, next(iter(costs.values()))


def run(command: Sequence[str], log: Path, threads: int = 1) -> Spent:
    """Run a command in a process of its own, its output in a file."""
    began_s = time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "nnUNet_def_n_proc": str(threads)}
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text()}")
    cpu_s = used.ru_utime + used.ru_stime
    return Spent(used.ru_maxrss / 2**20, cpu_s, time.perf_counter() - began_s)


def compare_ahead(fold: Path, scans: Path, folder: Path) -> None:
    """Four cases with and without the threads around the networks."""
    four, model = folder / "four", folder / "one"
    four.mkdir(exist_ok=True)
    copy_fold(fold, model / "fold_0")
    image = next(scans.iterdir())
    for number in range(4):
        (four / f"case_{number}_0000.nii.gz").unlink(missing_ok=True)
        (four / f"case_{number}_0000.nii.gz").symlink_to(image.resolve())
    given = ["-i", four, "-o", folder / "out", "-m", model, "-device", "cpu", "--overwrite"]
    print("\n| four scans | one after another, s | side by side, s | ratio | peaks, GiB |")
    print("| --- | --- | --- | --- | --- |")
    for name, network in {"on this processor": "", "network elsewhere": ELSEWHERE}.items():
        apart, together = (
            run([sys.executable, "-c", network + threads + PREDICT, *map(str, given), *FEW_WINDOWS],
                folder / "log", threads=2)
            for threads in (ONE_AFTER_ANOTHER, "")
        )  # fmt: skip
        print(
            f"| {name} | {apart.wall_s:.0f} | {together.wall_s:.0f} "
            f"| {together.wall_s / apart.wall_s:.2f} | {apart.gib:.2f}, {together.gib:.2f} |",
            flush=True,
        )


def compare_nnunet(fold: Path, scans: Path, folder: Path, python: Path) -> None:
    """Their predictor beside ours: time per forward, memory, and the rest; as ratios."""
    model, log = folder / "one", folder / "log"
    copy_fold(fold, model / "fold_0")
    plan, flops = json.loads((fold / "plan.json").read_text()), flops_per_window(fold)
    spent, cost = predict(model, scans, folder / "out", FEW_WINDOWS)
    seconds = {name: cost.seconds[name] for name in ("read", "preprocess", "network")}
    own_export_s = sum(cost.seconds[name] for name in EXPORT)
    task = {"plan": plan, "flops": flops, "tolerance": FLOPS_TOLERANCE, "folder": str(folder)}
    (folder / "task.json").write_text(json.dumps(task))
    script = Path(__file__).with_name("clinical_nnunet.py")
    other_spent = run([str(python), str(script), str(folder / "task.json")], log)
    other = json.loads(log.read_text().strip().splitlines()[-1])
    each_s = seconds["network"] / cost.windows
    other_each_s = other["network_s"] / other["forwards"]
    whole = planned_forwards(model, scans)
    before_s = seconds["read"] + seconds["preprocess"]
    rows = {
        "Gflop per window": (flops / 1e9, other["flops"] / 1e9, ".2f"),
        "s per forward": (each_s, other_each_s, ".4f"),
        "read and preprocess, s": (before_s, other["preprocess_s"], ".1f"),
        "export, s": (own_export_s, other["export_s"], ".1f"),
        "peak, GiB": (spent.gib, other_spent.gib, ".2f"),
        "forwards": (whole, other["planned_forwards"], "d"),
        "reckoned: read to export, s": (
            before_s + whole * each_s + own_export_s,
            other["preprocess_s"] + other["planned_forwards"] * other_each_s + other["export_s"],
            ".0f",
        ),
    }
    print("\n| | ours | nnU-Net 2.8.1 | ratio |\n| --- | --- | --- | --- |")
    for name, (mine, theirs, form) in rows.items():
        print(f"| {name} | {mine:{form}} | {theirs:{form}} | {theirs / mine:.2f} |", flush=True)


def planned_forwards(model: Path, scans: Path) -> int:
    """Forwards of the first stage as a user calls it, without running them."""
    from bonemet_auto.images import read_hu
    from bonemet_auto.inference.predict import prepare_scan
    from bonemet_auto.plan_schema import Plan

    plan = read_json(next(model.glob("fold_*/plan.json")), Plan)
    return forwards(model, prepare_scan(read_hu(next(scans.iterdir())), plan).cost.windows, ())


def flops_per_window(fold: Path) -> int:
    """Of our network with all that it does in a first-stage forward, multiplications and sums."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from bonemet_auto.inference.load import load_fold

    plan, model, _ = load_fold(fold, torch.device("cpu"))
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model.detect(torch.randn(1, 1, *plan.patch_size))
    return int(counter.get_total_flops())


if __name__ == "__main__":
    main()
