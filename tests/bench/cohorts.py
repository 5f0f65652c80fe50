"""Scans made on the spot that studies train on and are measured with."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from bonemet_auto.images import find_images
from bonemet_auto.schema import CaseLabels, read_json, write_json

DATASET, PLANTED, OTHER = "Dataset001_Med", "Dataset002_Planted", "Dataset003_Val"
COHORTS = {"16 phantoms": (DATASET,), "40 phantoms": (DATASET, OTHER), "planted CTs": (PLANTED,)}
"""Test scans whose figures are shown, by the datasets that they come from."""

PHANTOMS = {DATASET: "Ts", OTHER: "Tr"}
"""Which part of a dataset is predicted: no network trains on `OTHER`."""


def make_cohorts(root: Path, background: Sequence[Path] = ()) -> None:
    """Datasets and the plan of the training cohort, unless they are there.

    Medium phantoms: 40 to train on and 16 test scans, seed 0; 24 other test scans, seed 3. With
    `background` also 8 real CTs with planted lesions.
    """
    make_phantoms(root, DATASET, 40, 16, 0)
    make_phantoms(root, OTHER, 24, 0, 3)
    if background:
        make_phantoms(root, PLANTED, 2, 8, 5, "--background", *map(str, background))
    plan = ["bonemet_plan_and_preprocess", "-d", "1", "--root", str(root), "--planner", "fast"]
    subprocess.run(plan, check=True)


def make_phantoms(
    root: Path, dataset: str, cases: int, test_cases: int, seed: int, *flags: str
) -> None:
    """Medium phantoms, unless they are there."""
    raw = root / "raw" / dataset
    if not raw.is_dir():
        numbers = ["--cases", str(cases), "--test-cases", str(test_cases), "--seed", str(seed)]
        command = ["bonemet_phantom", str(raw), "--size", "medium", *numbers, *flags]
        subprocess.run(command, check=True)


def held_out_scans(root: Path) -> dict[str, Path]:
    """Images of all test scans that are there, by dataset and case."""
    planted = {PLANTED: "Ts"} if (root / "raw" / PLANTED).is_dir() else {}
    return join_scans(root, PHANTOMS | planted)


def held_out_reference(root: Path) -> Path:
    """One folder of the labels of all test scans."""
    out = root / "reference"
    if not out.is_dir():
        planted = {PLANTED: "Ts"} if (root / "raw" / PLANTED).is_dir() else {}
        join_references(root, PHANTOMS | planted, out)
    return out


def cases_of(reference: Path) -> dict[str, list[str]]:
    """Cases of each of the `COHORTS` that are there."""
    names = sorted(path.stem for path in reference.glob("*.json"))
    cohorts = {
        cohort: [name for name in names if name.startswith(datasets)]
        for cohort, datasets in COHORTS.items()
    }
    return {cohort: cases for cohort, cases in cohorts.items() if cases}


def join_scans(root: Path, sets: dict[str, str]) -> dict[str, Path]:
    """Images of several datasets, by dataset and case; `sets` names the part (Tr or Ts) of each."""
    return {
        f"{name}_{case}": path
        for name, part in sets.items()
        for case, path in find_images(root / "raw" / name / f"images{part}").items()
    }


def join_references(root: Path, sets: dict[str, str], out: Path) -> Path:
    """One folder of labels for the same datasets, whose patients are others."""
    out.mkdir()
    for name, part in sets.items():
        for labels in sorted((root / "raw" / name / f"labels{part}").glob("*.json")):
            record = read_json(labels, CaseLabels)
            patient = {"patient_id": f"{name}_{record.patient_id}"}
            write_json(out / f"{name}_{labels.name}", record.model_copy(update=patient))
            image = labels.with_suffix(".nii.gz")
            (out / f"{name}_{image.name}").symlink_to(image.resolve())
    return out
