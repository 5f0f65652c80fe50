"""Resampling and preprocessing beside nnU-Net's own functions, in the same run.

    python -m tests.bench.bench_preprocess resample --nnunet PYTHON
    python -m tests.bench.bench_preprocess cohort RAW_DATASET --nnunet PYTHON [--processes 2]

PYTHON is the interpreter of an environment that holds nnunetv2 (and numpy). `resample` brings one
generated CT of 300x512x512 voxels with 41 lesions from 1.5 to 1.0 mm along z, on one core, and
stores it. `cohort` converts a raw dataset of ours to nnU-Net's layout and lets both preprocess it.
Memory is the peak of what all processes of a run hold together.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

SHAPE, STORED = (300, 512, 512), (450, 512, 512)
LESIONS = 41
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("resample", "cohort", "worker"))
    parser.add_argument("dataset", type=Path, nargs="?")
    parser.add_argument("--nnunet", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.what == "worker":
        ours(options.dataset, options.out)
    elif options.what == "resample":
        compare_resampling(options.nnunet)
    else:
        compare_cohorts(options.dataset, options.nnunet, options.processes)


def compare_resampling(nnunet: Path | None) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hu, ids = generated_ct()
        np.save(folder / "hu.npy", hu)
        np.save(folder / "ids.npy", ids)
        module = [sys.executable, "-m", "tests.bench.bench_preprocess", "worker"]
        runs = {"ours": [*module, str(folder), "--out", str(folder / "ours")]}
        if nnunet:
            script = folder / "theirs.py"
            script.write_text(THEIRS)
            runs["nnU-Net"] = [str(nnunet), str(script), str(folder)]
        print("| | resample and store, s | peak, GiB |\n| --- | --- | --- |")
        for who, command in runs.items():
            peak, _, output = watched(command, ONE_THREAD)
            print(f"| {who} | {json.loads(output.splitlines()[-1]):.1f} | {peak:.2f} |", flush=True)
        print("\n" + accuracy(hu, np.load(folder / "ours.npy")))


def generated_ct() -> tuple[np.ndarray, np.ndarray]:
    """HU and instance ids: a noisy cylinder with bone, and balls of 3 to 14 voxels in it."""
    random = np.random.default_rng(0)
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    from_axis = ((y - 256) / 200) ** 2 + ((x - 256) / 240) ** 2
    hu = np.where(from_axis < 1, 50, -1000) + 0 * z
    hu = np.where(((y - 330) / 60) ** 2 + ((x - 256) / 60) ** 2 < 1, 400, hu)
    ids = np.zeros(SHAPE, np.uint16)
    for number in range(1, LESIONS + 1):
        centre, radius = random.integers((20, 290, 216), (280, 370, 296)), random.uniform(3, 14)
        where = tuple(slice(c - 15, c + 16) for c in centre)
        offsets = np.ogrid[-15:16, -15:16, -15:16]
        ids[where][sum(o**2 for o in offsets) < radius**2] = number
    noise = random.normal(0, 20, SHAPE).astype(np.float32)
    return np.rint(hu + noise).clip(-1024, 3071).astype(np.int16), ids


def ours(folder: Path, out: Path) -> None:
    from bonemet_auto.geometry import Geometry
    from bonemet_auto.resample import GridMap, resample_hu, resample_instances
    from bonemet_auto.schema import GeometryRecord, StoredCase
    from bonemet_auto.store import write_case

    hu, ids = np.load(folder / "hu.npy"), np.load(folder / "ids.npy")
    meta = StoredCase(
        case="case", patient_id="case", input_hash="", crop_start=(0, 0, 0), crop_shape=SHAPE,
        original=GeometryRecord.of(Geometry(SHAPE, (1.5, 1.0, 1.0))), shape=STORED,
        spacing_mm=(1.0, 1.0, 1.0), lesions=(), patient_label=None, bone_voxels=(),
    )  # fmt: skip
    start = time.perf_counter()
    stored = resample_hu(hu, STORED)
    del hu
    write_case(out, stored, resample_instances(ids, GridMap((0, 0, 0), SHAPE, STORED)), meta)
    elapsed = time.perf_counter() - start
    np.save(folder / "ours.npy", stored[:, 200:264, 200:264])
    print(elapsed)


THEIRS = """
import sys, time
import numpy as np
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

folder = sys.argv[1]
hu, ids = np.load(folder + "/hu.npy"), np.load(folder + "/ids.npy")
shape, old, new = (450, 512, 512), (1.5, 1.0, 1.0), (1.0, 1.0, 1.0)
start = time.perf_counter()
data = hu[None].astype(np.float32)
data = resample_data_or_seg_to_shape(data, shape, old, new, is_seg=False, order=3, order_z=0)
seg = ids[None].astype(np.int16)
seg = resample_data_or_seg_to_shape(seg, shape, old, new, is_seg=True, order=1, order_z=0)
nnUNetDatasetBlosc2.save_case(data, seg.astype(np.int16), {}, folder + "/theirs")
print(time.perf_counter() - start)
"""


def accuracy(hu: np.ndarray, stored: np.ndarray) -> str:
    """Our cubic resampling against `skimage.transform.resize` of order 3, before rounding."""
    from skimage.transform import resize

    from bonemet_auto.resample import resample_cubic

    column = hu[:, 200:264, 200:264].astype(np.float64)
    shape = (STORED[0], *column.shape[1:])
    theirs = resize(column, shape, 3, mode="edge", clip=False, anti_aliasing=False)
    exact = resample_cubic(column, shape)
    rounded = np.abs(stored - np.rint(exact).clip(-1024, 3071)).max()
    return (
        f"largest difference from skimage order 3: {np.abs(exact - theirs).max():.4f} HU; "
        f"stored values differ from the rounded ones by {rounded:.0f} HU at most"
    )


def compare_cohorts(dataset: Path, nnunet: Path | None, processes: int) -> None:
    """Both preprocess the same scans to the same spacing."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "raw").mkdir()
        (root / "raw" / dataset.name).symlink_to(dataset.resolve())
        number = dataset.name[7:10]
        plan = [
            sys.executable,
            "-c",
            "from bonemet_auto.commands.plan_and_preprocess import main; raise SystemExit(main())",
        ]
        plan += ["-d", number, "--root", str(root), "-np", str(processes), "--planner", "fast"]
        print("| | s | peak, GiB |\n| --- | --- | --- |")
        peak, elapsed, _ = watched(plan)
        print(f"| ours: check, plan, preprocess | {elapsed:.1f} | {peak:.2f} |", flush=True)
        if nnunet:
            for step, (peak, elapsed) in run_nnunet(root, dataset, nnunet, processes).items():
                print(f"| nnU-Net: {step} | {elapsed:.1f} | {peak:.2f} |", flush=True)


def run_nnunet(
    root: Path, dataset: Path, nnunet: Path, processes: int
) -> dict[str, tuple[float, float]]:
    """Peak GiB and seconds of each of its three commands."""
    folders = {key: root / key for key in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    target = folders["nnUNet_raw"] / dataset.name
    for part in ("imagesTr", "labelsTr"):
        (target / part).mkdir(parents=True)
        for path in (dataset / part).glob("*.nii.gz"):
            (target / part / path.name).symlink_to(path.resolve())
    count = len(list((target / "labelsTr").iterdir()))
    most = 32
    labels = {"background": 0} | {f"lesion{n}": n for n in range(1, most)}
    about = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": count}
    (target / "dataset.json").write_text(json.dumps(about | {"file_ending": ".nii.gz"}))
    plan_path = next((root / "preprocessed" / dataset.name).glob("default/plan.json"))
    spacing = json.loads(plan_path.read_text())["spacing_mm"]
    environment = {key: str(path) for key, path in folders.items()}
    scripts, number = nnunet.parent, dataset.name[7:10]
    commands = {
        "fingerprint": ["nnUNetv2_extract_fingerprint", "-d", number, "-np", str(processes)],
        "plan": ["nnUNetv2_plan_experiment", "-d", number, "-overwrite_target_spacing"],
        "preprocess": ["nnUNetv2_preprocess", "-d", number, "-c", "3d_fullres"],
    }
    commands["plan"] += map(str, spacing)
    commands["preprocess"] += ["-np", str(processes)]
    return {
        step: watched([str(scripts / command[0]), *command[1:]], environment)[:2]
        for step, command in commands.items()
    }


def watched(
    command: list[str], environment: dict[str, str] | None = None
) -> tuple[float, float, str]:
    """Run a command; peak GiB of it and its children together, seconds, and what it printed."""
    started = time.perf_counter()
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | (environment or {}),
    ) as process:
        peaks, done = [0], threading.Event()

        def sample() -> None:
            while not done.wait(0.05):
                peaks.append(tree_bytes(process.pid))

        watcher = threading.Thread(target=sample)
        watcher.start()
        output, errors = process.communicate()
        done.set()
        watcher.join()
    if process.returncode not in (0, 3):
        raise SystemExit(f"{' '.join(command)} failed:\n{errors}")
    return max(peaks) / 2**30, time.perf_counter() - started, output


def tree_bytes(root: int) -> int:
    """Memory of a process and all below it, shared pages divided among those that share them."""
    parents, total = {}, 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int(
                    (entry / "stat").read_text().rsplit(")", 1)[1].split()[1]
                )
            except OSError:
                continue
    family = {root}
    while grown := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= grown
    for pid in family:
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        lines = (line.split() for line in rollup.splitlines() if line.startswith("Pss:"))
        total += sum(int(line[1]) * 1024 for line in lines)
    return total


if __name__ == "__main__":
    main()
