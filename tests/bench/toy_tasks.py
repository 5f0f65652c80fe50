"""Can the network tell shape, pattern and size? Four toy cohorts, as its peers publish them.

    python -m tests.bench.toy_tasks FOLDER --time-budget 8m

Objects lie in noise; their two kinds stand for the two sources. `hole`: cubes, or cubes with a
hole (as nnDetection's toy). After the Medical Detection Toolkit: `ring`: discs or rings; `pattern`:
the same, but annotated alike, so that only the inside tells; `size`: balls of 12 or 16 voxels.
40 training and 16 test volumes each; the README's commands on defaults, training for the budget;
prints average precision at IoU .1 and, over the objects found, the share of the right kind.
"""

import argparse
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bonemet_auto.evaluation.evaluate import evaluate_folders
from bonemet_auto.geometry import Geometry
from tests.cohort import write_case, write_dataset_json

SHAPE, SPACING_MM = (48, 80, 80), (1.5, 1.5, 1.5)
TRAINING, TEST = 40, 16
BACKGROUND_HU, OBJECT_HU, NOISE_HU = 250.0, 350.0, 60.0
APART_VOXEL = 3
TRIES = 200

Bool = npt.NDArray[np.bool_]
Task = Callable[[np.random.Generator, bool], tuple[Bool, Bool]]
"""Draws an object of one of two kinds in a small box: where it is bright, what is annotated."""


def hole(rng: np.random.Generator, second: bool) -> tuple[Bool, Bool]:
    edge = int(rng.integers(9, 17))
    cube = np.ones((edge,) * 3, bool)
    if second:
        third = edge // 3
        inner = slice(third, edge - third)
        cube[inner, inner, inner] = False
    return cube, cube


def ring(rng: np.random.Generator, second: bool) -> tuple[Bool, Bool]:
    disc, bright = disc_and_ring(rng, second)
    return bright, bright if second else disc


def pattern(rng: np.random.Generator, second: bool) -> tuple[Bool, Bool]:
    disc, bright = disc_and_ring(rng, second)
    return bright, disc


def disc_and_ring(rng: np.random.Generator, second: bool) -> tuple[Bool, Bool]:
    """A disc, and what is bright of it."""
    radius, height = rng.uniform(5, 9), int(rng.integers(6, 11))
    width = 2 * int(radius) + 1
    y, x = np.indices((width, width)) - int(radius)
    distance = np.hypot(y, x)
    inner = radius / 2 if second else -1.0
    disc, bright = distance <= radius, (distance <= radius) & (distance > inner)
    shape = (height, width, width)
    return np.broadcast_to(disc, shape), np.broadcast_to(bright, shape)


def size(_rng: np.random.Generator, second: bool) -> tuple[Bool, Bool]:
    diameter = 16 if second else 12
    grid = np.indices((diameter,) * 3) - (diameter - 1) / 2
    ball = np.linalg.norm(grid, axis=0) <= diameter / 2
    return ball, ball


TASKS: dict[str, Task] = {"hole": hole, "ring": ring, "pattern": pattern, "size": size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--time-budget", default="8m")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    options = parser.parse_args()
    for number, name in enumerate(TASKS, start=1):
        if name in options.tasks:
            began = time.perf_counter()
            precision, right, n = run(options.folder, number, name, options.time_budget)
            minutes = (time.perf_counter() - began) / 60
            line = f"AP@.1 {precision:.3f}, right kind {right:.3f} of {n} found"
            print(f"{name}: {line}, {minutes:.1f} min in all", flush=True)


def run(root: Path, number: int, name: str, budget: str) -> tuple[float, float, int]:
    """AP at IoU .1, share of the right kind among the objects found, and their number."""
    dataset = f"Dataset{number:03d}_{name.capitalize()}"
    raw, out = root / "raw" / dataset, root / "predictions" / dataset
    if not raw.is_dir():
        write_cohort(raw, TASKS[name], number)
    d, at = str(number), ["--root", str(root)]
    train = ["bonemet_train", d, "0", "--time-budget", budget, "--overwrite"]
    predict = ["bonemet_predict", "-i", str(raw / "imagesTs"), "-o", str(out), "-d", d, "-f", "0"]
    plan = ["bonemet_plan_and_preprocess", "-d", d, "--planner", "fast"]
    for command in (plan, train, predict):
        subprocess.run([*command, *at], check=True)
    found = evaluate_folders(out, raw / "labelsTs")
    precision = found.figures["detection"]["ap_iou_0.1"].value
    told = found.lesions.dropna(subset=["is_lung", "p_lung_metastasis"])
    right = (told["p_lung_metastasis"] > 0.5) == told["is_lung"].astype(bool)
    return float(precision or 0.0), float(right.mean()), len(told)


def write_cohort(raw: Path, task: Task, seed: int) -> None:
    write_dataset_json(raw, TRAINING)
    for number in range(TRAINING + TEST):
        rng = np.random.default_rng([seed, number])
        hu, instances, classes = make_volume(task, rng)
        part = "Tr" if number < TRAINING else "Ts"
        name = f"case_{number:03d}"
        write_case(raw, name, hu, instances, classes, Geometry(SHAPE, SPACING_MM), part)


def make_volume(
    task: Task, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint16], dict[int, int]]:
    """Up to four objects apart from each other, in noise; HU, instances and kinds."""
    hu = np.full(SHAPE, BACKGROUND_HU)
    instances = np.zeros(SHAPE, np.uint16)
    taken = np.zeros(SHAPE, bool)
    classes: dict[int, int] = {}
    wanted = int(rng.integers(1, 5))
    for _ in range(TRIES):
        if len(classes) == wanted:
            break
        second = bool(rng.random() < 0.5)
        bright, annotated = task(rng, second)
        start = [int(rng.integers(0, s - b)) for s, b in zip(SHAPE, bright.shape, strict=True)]
        box = tuple(slice(s, s + n) for s, n in zip(start, bright.shape, strict=True))
        if taken[box].any():
            continue
        wide = tuple(slice(max(0, s.start - APART_VOXEL), s.stop + APART_VOXEL) for s in box)
        taken[wide] = True
        hu[box][bright] = OBJECT_HU
        classes[len(classes) + 1] = int(second)
        instances[box][annotated] = len(classes)
    hu += rng.normal(0, NOISE_HU, SHAPE)
    return np.rint(hu).astype(np.int16), instances, classes


if __name__ == "__main__":
    main()
