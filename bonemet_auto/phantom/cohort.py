"""A whole synthetic dataset on disk: patients, cases, files."""

import logging
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bonemet_auto import images
from bonemet_auto.errors import UsageError
from bonemet_auto.geometry import Geometry
from bonemet_auto.images import Volume
from bonemet_auto.phantom.background import bone_mask, draw_background, noise_sd
from bonemet_auto.phantom.canvas import Array, blank_canvas
from bonemet_auto.phantom.lesions import PlantedLesion, plant_lesions
from bonemet_auto.phantom.patient import draw_patient
from bonemet_auto.phantom.pelvis import draw_pelvis
from bonemet_auto.phantom.scanner import (
    REGIONS,
    Region,
    Size,
    blur,
    draw_window,
    orient,
    scanner_noise,
)
from bonemet_auto.phantom.spine import draw_spine, place_vertebrae
from bonemet_auto.phantom.tissue import compose, soft_tissue
from bonemet_auto.schema import POSITIVE_CLASS_NAME, CaseLabels, DatasetInfo, write_json

HEALTHY_SHARE = 0.15
TWO_CASES_SHARE = 1 / 8
LESION_COUNT_SHARES = (0.3, 0.25, 0.18, 0.13, 0.08, 0.06)

_N_WINDOWS = 6
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaseRecipe:
    """All that decides a case; equal recipes give equal bytes."""

    name: str
    split: str
    patient_id: str
    patient_seed: np.random.SeedSequence
    case_seed: np.random.SeedSequence
    is_lung: bool
    n_lesions: int
    region: Region
    size: Size
    background: Path | None


@dataclass(frozen=True)
class Case:
    """One synthetic scan on the grid it is written on."""

    hu: npt.NDArray[np.int16]
    instances: npt.NDArray[np.uint16]
    geometry: Geometry
    lesions: tuple[PlantedLesion, ...]


def write_phantom_dataset(
    folder: Path,
    n_cases: int,
    n_test_cases: int,
    seed: int,
    size: Size,
    backgrounds: Sequence[Path] = (),
    processes: int = 2,
) -> None:
    """Write a raw dataset folder of synthetic CTs with bone lesions.

    Equal arguments give equal bytes, whatever `processes` is. One patient in eight owns two cases
    of different fields; no patient is in both training and test.

    Args:
        folder: becomes the dataset; must be empty or absent.
        n_cases: training cases.
        n_test_cases: test cases.
        seed: drives everything.
        size: `small` (64 to 96 voxels an axis), `medium` (96 to 128) or `clinical` (a trunk).
        backgrounds: CTs to plant lesions into, instead of synthetic anatomy.
        processes: cases made at the same time.

    Raises:
        UsageError: the folder holds files, or no training case is asked for.
        DataError: a background cannot be read or shows no bone.
    """
    if n_cases < 1 or n_test_cases < 0:
        raise UsageError(f"{n_cases} training and {n_test_cases} test cases asked: give 1 or more.")
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty. Give a new folder, or --overwrite to replace it.")
    recipes = draw_recipes(n_cases, n_test_cases, seed, size, backgrounds)
    info = DatasetInfo(
        name=folder.name.split("_", 1)[-1],
        channel_names={"0": "CT"},
        labels={"other": 0, POSITIVE_CLASS_NAME: 1},
        num_training=n_cases,
    )
    write_json(folder / "dataset.json", info)
    for done, line in enumerate(_make_all(folder, recipes, processes), start=1):
        _log.info("[%d/%d] %s", done, len(recipes), line)


def _make_all(folder: Path, recipes: Sequence[CaseRecipe], processes: int) -> Iterator[str]:
    """Write all cases, in order; yield a line on each."""
    if processes < 2 or len(recipes) < 2:
        yield from (write_case(folder, recipe) for recipe in recipes)
        return
    # Forked children may hang on thread pools of their parent, so they start afresh.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        yield from pool.map(partial(write_case, folder), recipes)


def draw_recipes(
    n_cases: int, n_test_cases: int, seed: int, size: Size, backgrounds: Sequence[Path] = ()
) -> list[CaseRecipe]:
    """Share cases out to patients, classes, lesion counts and regions; training cases first."""
    root = np.random.SeedSequence(seed)
    plan_seed, patient_root, case_root = root.spawn(3)
    rng = np.random.default_rng(plan_seed)
    patients = _draw_patients(n_cases, "Tr", rng) + _draw_patients(n_test_cases, "Ts", rng)
    patient_seeds = patient_root.spawn(len(patients))
    case_seeds = case_root.spawn(n_cases + n_test_cases)
    recipes: list[CaseRecipe] = []
    for number, (patient, patient_seed) in enumerate(zip(patients, patient_seeds, strict=True)):
        order = rng.permutation(len(REGIONS))
        for visit in range(patient.n_cases):
            index = len(recipes)
            recipes.append(
                CaseRecipe(
                    name=f"case_{index:03d}",
                    split=patient.split,
                    patient_id=f"P{number:03d}",
                    patient_seed=patient_seed,
                    case_seed=case_seeds[index],
                    is_lung=patient.is_lung,
                    n_lesions=0 if patient.is_healthy else _draw_count(rng),
                    region=REGIONS[order[visit]],
                    size=size,
                    background=backgrounds[int(rng.integers(len(backgrounds)))]
                    if backgrounds
                    else None,
                )
            )
    return recipes


@dataclass(frozen=True)
class _PatientPlan:
    split: str
    n_cases: int
    is_healthy: bool
    is_lung: bool


def _draw_patients(n_cases: int, split: str, rng: np.random.Generator) -> list[_PatientPlan]:
    """Fixed shares in a random order, so that a small cohort is as mixed as a large one."""
    n_pairs = round(n_cases * TWO_CASES_SHARE / (1 + TWO_CASES_SHARE))
    n_patients = n_cases - n_pairs
    n_healthy = round(n_patients * HEALTHY_SHARE)
    ill = np.arange(n_patients - n_healthy) % 2 == 0
    is_lung = np.concatenate([ill, np.zeros(n_healthy, dtype=bool)])
    is_healthy = np.arange(n_patients) >= len(ill)
    order, owners = rng.permutation(n_patients), rng.permutation(n_patients)[:n_pairs]
    return [
        _PatientPlan(split, 2 if place in owners else 1, bool(is_healthy[who]), bool(is_lung[who]))
        for place, who in enumerate(order)
    ]


def _draw_count(rng: np.random.Generator) -> int:
    return int(rng.choice(len(LESION_COUNT_SHARES), p=LESION_COUNT_SHARES)) + 1


def write_case(folder: Path, recipe: CaseRecipe) -> str:
    """Make one case and write its image, label map and classes; return a line on it."""
    case = make_case(recipe)
    labels = folder / f"labels{recipe.split}"
    image = folder / f"images{recipe.split}" / f"{recipe.name}_0000.nii.gz"
    images.write_volume(image, Volume(case.hu, case.geometry))
    images.write_volume(labels / f"{recipe.name}.nii.gz", Volume(case.instances, case.geometry))
    classes = {lesion.instance: int(lesion.is_lung) for lesion in case.lesions}
    record = CaseLabels(
        instances=classes,
        patient=1 if any(classes.values()) else 0,
        patient_id=recipe.patient_id,
    )
    write_json(labels / f"{recipe.name}.json", record)
    where = recipe.background.name if recipe.background else recipe.region
    return f"{recipe.name}: {where}, {case.hu.shape} voxels, {len(classes)} lesions"


def make_case(recipe: CaseRecipe) -> Case:
    """Make one case in memory; redraws the window where no lesion found room."""
    rng = np.random.default_rng(recipe.case_seed)
    make = _scan_of_background if recipe.background else _scan_of_body
    for _ in range(_N_WINDOWS):
        case = make(recipe, rng)
        if case.lesions or not recipe.n_lesions:
            break
    return case


def _scan_of_body(recipe: CaseRecipe, rng: np.random.Generator) -> Case:
    """Draw a body's window, plant lesions, scan it."""
    patient = draw_patient(np.random.default_rng(recipe.patient_seed))
    shape, spacing_mm, low_mm = draw_window(recipe.size, recipe.region, patient.scale, rng)
    canvas = blank_canvas(shape, spacing_mm, low_mm)
    vertebrae = place_vertebrae(patient)
    draw_spine(canvas, patient, vertebrae)
    draw_pelvis(canvas, patient)
    soft_hu = soft_tissue(canvas, patient, vertebrae, spacing_mm, rng)
    hu = compose(canvas, soft_hu, patient, spacing_mm, rng)
    classes = [recipe.is_lung] * recipe.n_lesions
    instances, lesions = plant_lesions(hu, canvas.bone_mm < 0, spacing_mm, classes, rng)
    hu = blur(hu, spacing_mm, float(rng.uniform(0.3, 0.6)))
    hu += scanner_noise(rng, shape, float(rng.uniform(12, 35)), float(rng.uniform(0.5, 0.9)))
    whole = _to_hu(hu)
    flips, geometry = orient(shape, spacing_mm, low_mm, rng)
    turn = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
    return Case(
        np.ascontiguousarray(whole[turn]),
        np.ascontiguousarray(instances[turn]),
        geometry,
        lesions,
    )


def _scan_of_background(recipe: CaseRecipe, rng: np.random.Generator) -> Case:
    """Vary a real CT and plant lesions into its bone."""
    assert recipe.background is not None
    hu, geometry = draw_background(recipe.background, rng)
    bone = bone_mask(hu, geometry.spacing_mm)
    noise = scanner_noise(rng, geometry.shape, noise_sd(hu), 0.7)
    classes = [recipe.is_lung] * recipe.n_lesions
    instances, lesions = plant_lesions(hu, bone, geometry.spacing_mm, classes, rng, noise)
    return Case(_to_hu(hu), instances, geometry, lesions)


def _to_hu(values: Array) -> npt.NDArray[np.int16]:
    low, high = images.HU_RANGE
    return np.clip(np.rint(values), low, high).astype(np.int16)
