"""A tiny raw dataset for tests: a bone column in soft tissue in air, with lesions in the bone."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bonemet_auto.geometry import Geometry
from bonemet_auto.images import Volume, write_volume

SHAPE = (14, 18, 20)
GEOMETRY = Geometry(SHAPE, (2.5, 1.5, 1.5), (-10.0, 20.0, -300.0))
LABELS = {"other": 0, "lung_metastasis": 1}


def write_cohort(folder: Path, n_cases: int = 6, seed: int = 0) -> Path:
    """Write a dataset folder of `n_cases` patients; odd ones have lung metastasis.

    Every case has two lesions, except that from five cases on the last one has none.
    """
    write_dataset_json(folder, n_cases)
    for number in range(n_cases):
        hu, instances = make_scan(np.random.default_rng([seed, number]))
        classes: dict[int, int | None] = {1: number % 2, 2: number % 2}
        if n_cases >= 5 and number == n_cases - 1:
            instances[:], classes = 0, {}
        write_case(folder, f"case_{number:03d}", hu, instances, classes)
    return folder


def make_scan(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """HU (int16) and instance ids (uint16) of shape `SHAPE`: a lytic and a dense lesion."""
    hu = np.full(SHAPE, -1000.0)
    hu[:, 2:16, 2:18] = 40
    hu[:, 5:12, 6:14] = 500
    instances = np.zeros(SHAPE, np.uint16)
    shift = int(rng.integers(0, 3))
    instances[2 : 5 + shift, 6:9, 7:10] = 1
    instances[9:12, 8:11, 9 : 11 + shift] = 2
    hu[instances == 1], hu[instances == 2] = 120, 900
    return np.rint(hu + rng.normal(0, 15, SHAPE)).astype(np.int16), instances


def write_dataset_json(folder: Path, n_cases: int) -> None:
    """Write `dataset.json` with the classes `LABELS`."""
    folder.mkdir(parents=True, exist_ok=True)
    info = {
        "name": "Tiny",
        "channel_names": {"0": "CT"},
        "labels": LABELS,
        "file_ending": ".nii.gz",
        "numTraining": n_cases,
    }
    (folder / "dataset.json").write_text(json.dumps(info), encoding="utf-8")


def write_case(
    folder: Path,
    case: str,
    hu: np.ndarray,
    instances: np.ndarray | None,
    classes: Mapping[int, int | None],
    geometry: Geometry | None = None,
    part: str = "Tr",
    **patient: str | int | None,
) -> None:
    """Write one case; `patient` holds the optional keys of its JSON (`patient`, `patient_id`)."""
    if geometry is None:
        geometry = Geometry(hu.shape, GEOMETRY.spacing_mm, GEOMETRY.origin_lps_mm)
    write_volume(folder / f"images{part}" / f"{case}_0000.nii.gz", Volume(hu, geometry))
    if instances is None:
        return
    write_volume(folder / f"labels{part}" / f"{case}.nii.gz", Volume(instances, geometry))
    labels = {"instances": {str(key): value for key, value in classes.items()}, **patient}
    (folder / f"labels{part}" / f"{case}.json").write_text(json.dumps(labels), encoding="utf-8")
