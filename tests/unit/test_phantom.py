import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from bonemet_auto import images
from bonemet_auto.commands.common import EXIT_DONE, EXIT_REFUSED
from bonemet_auto.commands.phantom import main
from bonemet_auto.errors import UsageError
from bonemet_auto.files import sha256_file
from bonemet_auto.geometry import Geometry
from bonemet_auto.images import Volume
from bonemet_auto.phantom import plant_lesions, write_phantom_dataset
from bonemet_auto.phantom.background import bone_mask
from bonemet_auto.phantom.canvas import blank_canvas, capsule, coverage, ellipsoid, smooth_noise
from bonemet_auto.phantom.cohort import CaseRecipe, draw_recipes, make_case
from bonemet_auto.phantom.lesions import LEAST_CONTRAST_HU, draw_look
from bonemet_auto.phantom.scanner import VOXELS_PER_AXIS, orient


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): sha256_file(path) for path in files}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "Dataset001_Phantom"
    write_phantom_dataset(folder, 3, 2, seed=3, size="small", processes=1)
    return folder


@pytest.fixture(scope="module")
def slab() -> tuple[np.ndarray, np.ndarray]:
    """A noiseless block of spongy bone in muscle."""
    bone = np.zeros((50, 60, 60), dtype=bool)
    bone[8:42, 8:52, 8:52] = True
    return np.where(bone, 220.0, 55.0).astype(np.float32), bone


def test_same_call_gives_same_bytes_with_any_number_of_processes(cohort: Path, tmp_path: Path):
    again = tmp_path / "Dataset001_Phantom"
    write_phantom_dataset(again, 3, 2, seed=3, size="small", processes=2)
    assert digests(again) == digests(cohort)


def test_another_seed_gives_other_scans():
    first, second = (make_case(draw_recipes(1, 0, seed, "small")[0]) for seed in (0, 1))
    assert first.hu.shape != second.hu.shape or (first.hu != second.hu).any()


def test_case_json_lists_exactly_the_ids_of_the_map(cohort: Path):
    paths = sorted(cohort.glob("labelsT*/*.json"))
    assert len(paths) == 5
    for path in paths:
        record = json.loads(path.read_text())
        instances = images.read_instances(path.with_suffix(".nii.gz"))
        ids = set(np.unique(instances.array).tolist()) - {0}
        assert ids == {int(key) for key in record["instances"]} == set(range(1, len(ids) + 1))
        assert record["patient"] == max(record["instances"].values(), default=0)


def test_images_and_labels_share_a_grid_of_the_promised_size(cohort: Path):
    low, high = VOXELS_PER_AXIS["small"]
    for path in cohort.glob("imagesT*/*.nii.gz"):
        image = images.read_hu(path)
        label = path.parent.parent / path.parent.name.replace("images", "labels")
        instances = images.read_instances(label / path.name.replace("_0000", ""))
        assert image.geometry.mismatch(instances.geometry) is None
        assert all(low <= count <= high for count in image.array.shape)
        assert image.array.dtype == np.int16


def test_lesions_lie_mostly_in_bone_apart_and_whole(slab):
    hu, bone = slab
    instances, lesions = plant_lesions(
        hu.copy(), bone, (1.5, 1.0, 1.0), [True] * 4, np.random.default_rng(1)
    )
    assert len(lesions) >= 2
    for lesion in lesions:
        mask = instances == lesion.instance
        assert mask.any()
        assert bone[mask].mean() >= 0.6
        assert ndimage.label(mask)[1] == 1
        assert lesion.volume_mm3 == pytest.approx(mask.sum() * 1.5)


def test_every_lesion_differs_from_the_bone_around_it(slab):
    for seed in range(12):
        hu, bone = slab[0].copy(), slab[1]
        is_lung = bool(seed % 2)
        _, lesions = plant_lesions(hu, bone, (1.0,) * 3, [is_lung], np.random.default_rng(seed))
        for lesion in lesions:
            if lesion.look.matter != "mixed" and not lesion.look.has_rim:
                assert abs(lesion.contrast_hu) > 0.75 * LEAST_CONTRAST_HU


def test_planting_changes_only_the_neighbourhood_of_lesions(slab):
    before, bone = slab
    after = before.copy()
    noise = np.random.default_rng(5).normal(0, 20, before.shape).astype(np.float32)
    instances, lesions = plant_lesions(
        after, bone, (1.0, 1.0, 1.0), [False, True], np.random.default_rng(2), noise
    )
    away = ndimage.distance_transform_edt(instances == 0) > 4
    assert lesions
    assert (after != before).any()
    assert (after[away] == before[away]).all()


def test_scan_without_bone_gets_no_lesion():
    hu = np.zeros((20, 20, 20), dtype=np.float32)
    instances, lesions = plant_lesions(
        hu, hu > 1, (1.0, 1.0, 1.0), [True], np.random.default_rng(0)
    )
    assert not instances.any()
    assert lesions == ()


def test_look_follows_the_class_with_exceptions():
    rng = np.random.default_rng(0)
    lung = [draw_look(True, rng) for _ in range(400)]
    other = [draw_look(False, rng) for _ in range(400)]
    assert 0.85 < np.mean([look.is_ragged for look in lung]) < 0.95
    assert 0.05 < np.mean([look.is_ragged for look in other]) < 0.15
    assert np.mean([look.matter == "lytic" for look in lung]) > 0.65
    assert np.mean([look.matter == "blastic" for look in other]) > 0.45
    assert np.mean([look.breach_mm > 0 for look in lung]) > 0.45
    assert np.mean([look.breach_mm > 0 for look in other]) < 0.2


def recipes_by_patient(recipes: list[CaseRecipe]) -> dict[str, list[CaseRecipe]]:
    owned: dict[str, list[CaseRecipe]] = {}
    for recipe in recipes:
        owned.setdefault(recipe.patient_id, []).append(recipe)
    return owned


def test_patients_have_one_class_one_split_and_different_fields():
    owned = recipes_by_patient(draw_recipes(90, 36, 0, "small"))
    pairs = [cases for cases in owned.values() if len(cases) == 2]
    assert len(pairs) == 14
    assert all(len(cases) <= 2 for cases in owned.values())
    for first, second in pairs:
        assert first.region != second.region
        assert (first.split, first.is_lung) == (second.split, second.is_lung)
        assert bool(first.n_lesions) == bool(second.n_lesions)


def test_shares_of_healthy_and_lung_patients():
    owned = recipes_by_patient(draw_recipes(90, 0, 0, "small"))
    ill = [cases[0] for cases in owned.values() if cases[0].n_lesions]
    assert len(owned) - len(ill) == 12
    assert sum(recipe.is_lung for recipe in ill) == len(ill) // 2
    assert all(1 <= recipe.n_lesions <= 6 for recipe in ill)


def test_single_case_is_not_healthy():
    (recipe,) = draw_recipes(1, 0, 0, "small")
    assert make_case(recipe).lesions


@pytest.mark.parametrize("seed", range(8))
def test_flips_and_tilts_keep_every_voxel_in_its_place(seed: int):
    shape, spacing, low = (4, 5, 6), (2.0, 1.0, 0.5), (3.0, -7.0, 11.0)
    flips, geometry = orient(shape, spacing, low, np.random.default_rng(seed))
    index = [n - 1 if flip else 0 for flip, n in zip(flips, shape, strict=True)]
    assert geometry.index_to_lps(index) == pytest.approx(low)
    assert np.asarray(geometry.direction) @ np.asarray(geometry.direction).T == pytest.approx(
        np.eye(3), abs=1e-12
    )
    angles = np.abs(np.diag(np.asarray(geometry.direction)[:, ::-1]))
    assert (angles > np.cos(np.deg2rad(25))).all()


def test_background_keeps_its_grid_and_changes_only_near_lesions(tmp_path: Path):
    canvas = blank_canvas((40, 60, 60), (2.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    canvas.add_capsule(0, (30, 30, 5), (30, 30, 75), (14, 14))
    hu = 50 + 350 * coverage(canvas.bone_mm)
    tilt = ((0.0, 0.6, 0.8), (0.0, 0.8, -0.6), (1.0, 0.0, 0.0))
    geometry = Geometry((40, 60, 60), (2.0, 1.0, 1.0), (9.0, 8.0, 7.0), tilt)
    path = tmp_path / "bone of Zoë.nii.gz"
    images.write_volume(path, Volume(hu.astype(np.int16), geometry))
    recipe = draw_recipes(1, 0, 4, "small", [path])[0]
    case = make_case(recipe)
    assert case.lesions
    assert case.geometry.direction == pytest.approx(np.asarray(tilt), abs=1e-6)
    assert case.geometry.spacing_mm == pytest.approx((2.0, 1.0, 1.0))
    away = ndimage.distance_transform_edt(case.instances == 0, (2.0, 1.0, 1.0)) > 6
    untouched = make_case(replace(recipe, n_lesions=0))
    assert (case.hu != untouched.hu).any()
    assert (case.hu[away] == untouched.hu[away]).all()


def test_bone_mask_holds_marrow_but_not_the_canal():
    hu = np.full((24, 50, 50), 40, dtype=np.float32)
    rows, columns = np.indices((50, 50))
    ring = np.hypot(rows - 25, columns - 25)
    hu[:, (ring < 20) & (ring > 16)] = 700
    hu[:, ring <= 16] = 100
    assert bone_mask(hu, (1.0, 1.0, 1.0))[12, 25, 25]
    hu[:, ring <= 16] = 25
    assert not bone_mask(hu, (1.0, 1.0, 1.0))[12, 25, 25]


def test_distances_are_true_on_axis():
    x, y, z = (np.array([value], dtype=np.float32) for value in (7.0, 0.0, 0.0))
    assert capsule(x, y, z, (0, 0, -5), (0, 0, 5), (2.0, 2.0))[0] == pytest.approx(5.0)
    assert ellipsoid(x, y, z, (0, 0, 0), (4.0, 4.0, 4.0))[0] == pytest.approx(3.0)


def test_smooth_noise_has_unit_variance_and_repeats():
    fields = [
        smooth_noise(np.random.default_rng(0), (60, 60, 60), (2, 1, 1), (4, 4, 4)) for _ in (0, 1)
    ]
    assert (fields[0] == fields[1]).all()
    assert fields[0].std() == pytest.approx(1.0, abs=0.05)


def test_filled_folder_is_refused_and_overwrite_replaces_only_datasets(tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("keep me")
    with pytest.raises(UsageError, match="--overwrite"):
        write_phantom_dataset(out, 1, 0, 0, "small")
    assert main([str(out), "--overwrite"]) == EXIT_REFUSED
    assert (out / "thesis.txt").exists()
    (out / "dataset.json").write_text("{}")
    arguments = [str(out), "--overwrite", "--cases", "1", "--test-cases", "0", "--processes", "1"]
    assert main(arguments) == EXIT_DONE
    assert not (out / "thesis.txt").exists()
    assert json.loads((out / "dataset.json").read_text())["numTraining"] == 1


def test_dark_background_is_refused(tmp_path: Path):
    geometry = Geometry((8, 8, 8), (1.0, 1.0, 1.0))
    path = tmp_path / "air.nii.gz"
    images.write_volume(path, Volume(np.full((8, 8, 8), -900, dtype=np.int16), geometry))
    arguments = [str(tmp_path / "out"), "--cases", "1", "--test-cases", "0", "--background"]
    assert main([*arguments, str(path)]) == EXIT_REFUSED
