"""Time and memory of `bonemet_evaluate` on cohorts of clinical size, masks made on the fly.

    python -m tests.bench.bench_evaluate [--cases 371] [--processes 2] [--keep FOLDER]

Each case is a map of 350 to 450 slices of 512x512 voxels (1.0 x 0.75 x 0.75 mm) with 0 to 12
lesions of 4 to 60 mm along a spine, a prediction that moves, swells or misses them and adds false
positives, and 20 candidates. Making them is not timed; the command is run as a user runs it, and
memory is the peak of what all its processes hold together. Processor time stays comparable where
other work runs beside it.
"""

import argparse
import json
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from bonemet_auto.evaluation.pairing import lesion_volumes
from bonemet_auto.geometry import Geometry
from bonemet_auto.images import Volume, write_volume
from tests.bench.bench_preprocess import ONE_THREAD, watched

SPACING_MM = (1.0, 0.75, 0.75)
Ball = tuple[np.ndarray, np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=371)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="folder for the cases; used again if it is there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = options.keep or Path(name)
        start = time.perf_counter()
        with ProcessPoolExecutor(options.processes) as pool:
            list(pool.map(write_case, [folder] * options.cases, range(options.cases)))
        made_s = time.perf_counter() - start
        command = ["bonemet_evaluate", "--pred", str(folder / "pred"), "--ref", str(folder / "ref")]
        command += ["--out", str(folder / "out"), "--processes", str(options.processes)]
        before = os.times()
        peak, elapsed_s, output = watched(command, ONE_THREAD)
        after = os.times()
        cpu_s = sum(after[2:4]) - sum(before[2:4])
    lesions = output.splitlines()[0]
    print(f"{lesions}; made in {made_s:.0f} s")
    print("| processes | time, s | processor time, s | peak, GiB |\n| --- | --- | --- | --- |")
    print(f"| {options.processes} | {elapsed_s:.0f} | {cpu_s:.0f} | {peak:.2f} |")


def write_case(folder: Path, number: int) -> None:
    if (folder / "pred" / f"case_{number:03d}.json").is_file():
        return
    rng = np.random.default_rng([17, number])
    shape = (int(rng.integers(350, 451)), 512, 512)
    lesions = [drawn_lesion(rng, shape) for _ in range(rng.integers(0, 13))]
    found = [moved(rng, lesion) for lesion in lesions if rng.random() < 0.8]
    found += [drawn_lesion(rng, shape) for _ in range(rng.poisson(0.5))]
    candidates = [drawn_lesion(rng, shape, 12) for _ in range(20)]
    case = f"case_{number:03d}"
    ids = write_map(folder / "ref" / f"{case}.nii.gz", shape, lesions, 1)
    classes = {"instances": {str(each): int(rng.integers(2)) for each in ids}}
    (folder / "ref" / f"{case}.json").write_text(json.dumps(classes), encoding="utf-8")
    below = folder / "pred" / "candidates"
    ids = write_map(below / f"{case}.nii.gz", shape, candidates, len(found) + 1)
    write_record(below / f"{case}.json", case, ids, rng, None)
    ids = write_map(folder / "pred" / f"{case}.nii.gz", shape, found, 1)
    patient = {"probability": float(rng.random()), "label": int(rng.integers(2)), "threshold": 0.5}
    write_record(folder / "pred" / f"{case}.json", case, ids, rng, patient)


def drawn_lesion(rng: np.random.Generator, shape: tuple[int, int, int], largest: int = 30) -> Ball:
    """Centre (voxels) and radii (mm) of an ellipsoid in or beside the spine."""
    radius = 2 * (largest / 2) ** rng.random()
    centre = [rng.uniform(60, shape[0] - 60), rng.normal(330, 30), rng.normal(256, 60)]
    return np.clip(centre, 50, 460), radius * rng.uniform(0.7, 1.4, 3)


def moved(rng: np.random.Generator, lesion: Ball) -> Ball:
    centre, radii = lesion
    return centre + rng.normal(0, 0.15, 3) * radii, radii * rng.uniform(0.8, 1.2, 3)


def write_map(path: Path, shape: tuple[int, int, int], balls: list[Ball], first: int) -> list[int]:
    """Write an instance map; the ids that are left where lesions cover each other."""
    instances = np.zeros(shape, np.uint16)
    for number, (centre, radii) in enumerate(balls, start=first):
        half = np.ceil(radii / SPACING_MM).astype(int) + 1
        low, high = centre.astype(int) - half, centre.astype(int) + half + 1
        place = tuple(slice(max(0, a), b) for a, b in zip(low, high, strict=True))
        grid = np.ogrid[place]
        inside = sum(
            ((axis - c) * mm / r) ** 2
            for axis, c, mm, r in zip(grid, centre, SPACING_MM, radii, strict=True)
        )
        instances[place][inside[tuple(slice(n) for n in instances[place].shape)] <= 1] = number
    write_volume(path, Volume(instances, Geometry(shape, SPACING_MM)))
    return list(lesion_volumes(instances))


def write_record(
    path: Path, case: str, ids: list[int], rng: np.random.Generator, patient: dict | None
) -> None:
    below = patient is None
    lesions = [
        {
            "id": each, "score": float(rng.random()) * 0.5 + (0 if below else 0.5),
            "p_lung_metastasis": float(rng.random()), "volume_mm3": 1.0,
            "box_voxel_zyx": [0, 0, 0, 1, 1, 1], "centroid_lps_mm": [0, 0, 0],
            "corners_lps_mm": [],
        }
        for each in ids
    ]  # fmt: skip
    record = {
        "format_version": 1, "case": case, "lesions": lesions, "patient": patient,
        "score_threshold": 0.5, "warnings": [],
    }  # fmt: skip
    path.write_text(json.dumps(record), encoding="utf-8")


if __name__ == "__main__":
    main()
