"""From files to the case store, and never twice."""

import json
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest

import planners
from bonemet_auto import preprocess
from bonemet_auto.geometry import Geometry
from bonemet_auto.images import Volume, write_volume
from bonemet_auto.plan_schema import Target
from bonemet_auto.preprocess import body_crop, normalise, preprocess_dataset, to_plan_grid
from bonemet_auto.raw_dataset import RawCase, RawDataset
from bonemet_auto.schema import CaseFingerprint, DatasetInfo, Fingerprint, LesionFingerprint
from bonemet_auto.store import open_case

SPACING = (2.0, 1.0, 1.0)
SHAPE = (20, 48, 40)


def phantom_arrays() -> tuple[np.ndarray, np.ndarray]:
    hu = np.full(SHAPE, -1000, np.int16)
    hu[2:18, 8:40, 6:34] = 40
    hu[4:16, 18:30, 14:28] = 400
    instances = np.zeros(SHAPE, np.uint16)
    instances[6:9, 20:25, 16:22], instances[12, 27, 25] = 1, 4
    return hu, instances


def dataset(folder: Path, names: list[str]) -> tuple[RawDataset, Fingerprint]:
    hu, instances = phantom_arrays()
    cases, known = [], []
    for name in names:
        raw = RawCase(
            name, folder / f"{name}_0000.nii.gz", folder / f"{name}.nii.gz",
            folder / f"{name}.json", False,
        )  # fmt: skip
        write_volume(raw.image, Volume(hu, Geometry(SHAPE, SPACING)))
        write_volume(raw.label, Volume(instances, Geometry(SHAPE, SPACING)))
        raw.labels_json.write_text(json.dumps({"instances": {"1": 1, "4": None}}))
        cases.append(raw)
        lesion = LesionFingerprint(
            instance=1,
            source=1,
            volume_mm3=90,
            size_mm=(6, 5, 6),
            share_outside_bone=0,
            touching=(),
        )
        known.append(
            CaseFingerprint(
                case=name, patient_id=f"P {name}", input_hash=f"hash {name}", shape=SHAPE,
                spacing_mm=SPACING, lesions=(lesion,), patient_label=1, orientation="LPS",
                body_histogram=(), bone_histogram=(0,) * 256,
                lesion_histogram=(0,) * 256,
            )
        )  # fmt: skip
    labels = {"other": 0, "lung_metastasis": 1}
    info = DatasetInfo(name="X", channel_names={"0": "CT"}, labels=labels, num_training=len(names))
    return (
        RawDataset(folder, info, tuple(cases), ()),
        Fingerprint(dataset="Dataset001_X", cases=tuple(known)),
    )


def make_plan(fingerprint: Fingerprint, spacing=(1.5, 1.5, 1.5)):
    plan = planners.plan_fast(fingerprint, Target(device="cpu", memory_gb=6), "p")
    return plan.model_copy(update={"spacing_mm": spacing})


def test_a_stored_case_says_where_it_lies(tmp_path: Path):
    data, fingerprint = dataset(tmp_path, ["a b ü"])
    assert preprocess_dataset(data, fingerprint, make_plan(fingerprint), tmp_path / "c", 1) == []
    case = open_case(tmp_path / "c", "a b ü")
    hu, instances = case.read()
    meta = case.meta
    assert meta.shape == hu.shape == instances.shape
    exact = np.multiply(meta.crop_shape, SPACING) / meta.shape
    np.testing.assert_allclose(meta.spacing_mm, exact)
    np.testing.assert_allclose(meta.spacing_mm, 1.5, rtol=0.05)
    assert [(item.instance, item.is_lung) for item in meta.lesions] == [(1, True), (4, None)]
    for lesion in meta.lesions:
        found = np.argwhere(instances == lesion.instance)
        assert lesion.box_voxel_zyx == (*found.min(0), *(found.max(0) + 1))
        assert lesion.volume_voxel == len(found)
    assert 0 < len(meta.bone_voxels) <= 512
    assert np.mean([hu[voxel] for voxel in meta.bone_voxels]) > 300
    assert meta.patient_id == "P a b ü" and meta.original.shape == SHAPE


def test_a_second_run_does_nothing_and_another_spacing_everything(tmp_path: Path, monkeypatch):
    data, fingerprint = dataset(tmp_path, ["a", "b"])
    plan, folder = make_plan(fingerprint), tmp_path / "c"
    preprocess_dataset(data, fingerprint, plan, folder, 1)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    done = []
    monkeypatch.setattr(preprocess, "_run", lambda job: done.append(job.case.case))
    preprocess_dataset(data, fingerprint, plan, folder, 1)
    assert done == []
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    (folder / "b_seg.b2nd").unlink()
    preprocess_dataset(data, fingerprint, plan, folder, 1)
    assert done == ["b"]
    preprocess_dataset(data, fingerprint, make_plan(fingerprint, (2.0, 2.0, 2.0)), folder, 1)
    assert done == ["b", "a", "b"]


def test_bytes_do_not_depend_on_the_run(tmp_path: Path):
    data, fingerprint = dataset(tmp_path, ["a"])
    plan = make_plan(fingerprint)
    for folder in ("c", "d"):
        preprocess_dataset(data, fingerprint, plan, tmp_path / folder, 1)
    for name in ("a.json", "a.b2nd", "a_seg.b2nd", "SHA256SUMS"):
        assert (tmp_path / "c" / name).read_bytes() == (tmp_path / "d" / name).read_bytes()


def test_the_original_grid_is_the_scans_own(tmp_path: Path):
    data, fingerprint = dataset(tmp_path, ["a"])
    _, instances = phantom_arrays()
    noisy = Geometry(SHAPE, SPACING, (1e-3, 0.0, 0.0))
    write_volume(data.training[0].label, Volume(instances, noisy))
    assert preprocess_dataset(data, fingerprint, make_plan(fingerprint), tmp_path / "c", 1) == []
    original = open_case(tmp_path / "c", "a").meta.original
    assert original.origin_lps_mm == (0.0, 0.0, 0.0)


def test_lesions_of_which_next_to_nothing_is_left_are_named(tmp_path: Path, caplog):
    data, fingerprint = dataset(tmp_path, ["a"])
    coarse = make_plan(fingerprint, (9.0, 9.0, 9.0))
    assert preprocess_dataset(data, fingerprint, coarse, tmp_path / "c", 1) == []
    stored = open_case(tmp_path / "c", "a").meta.lesions
    assert [lesion.instance for lesion in stored] == [1, 4]
    assert "a: lesions [1, 4] have fewer than 4 voxels" in caplog.text
    caplog.clear()
    fine = make_plan(fingerprint, (0.7, 0.7, 0.7))
    preprocess_dataset(data, fingerprint, fine, tmp_path / "d", 1)
    assert "fewer than" not in caplog.text


def test_a_bad_case_is_named_and_the_others_are_done_in_processes(tmp_path: Path):
    data, fingerprint = dataset(tmp_path, ["a", "bad"])
    data.training[1].image.write_bytes(b"nothing")
    failed = preprocess_dataset(data, fingerprint, make_plan(fingerprint), tmp_path / "c", 2)
    assert [item.case for item in failed] == ["bad"]
    assert "bad_0000" in failed[0].reason
    assert {path.stem for path in (tmp_path / "c").glob("*.json")} == {"a"}


def test_a_dead_worker_names_its_case_after_a_second_try_alone(monkeypatch):
    tried = []

    class DyingPool:
        """Dies of case 1 whenever it is given it."""

        def __init__(self, processes: int) -> None:
            self.alone = processes == 1

        def __enter__(self):
            return self

        def __exit__(self, *error: object) -> None:
            return None

        def submit(self, work, job):
            from concurrent.futures import Future

            tried.append((job.case.case, self.alone))
            future = Future()
            if job.case.case == "1":
                future.set_exception(BrokenProcessPool())
            else:
                future.set_result(None)
            return future

    class Job:
        def __init__(self, i: int) -> None:
            self.case = RawCase(str(i), Path(), Path(), Path(), False)

    monkeypatch.setattr(preprocess, "_pool", DyingPool)
    outcomes = list(preprocess._in_processes([Job(i) for i in range(5)], 2))
    assert [item.case for item in outcomes if item] == ["1"]
    assert "memory" in [item.reason for item in outcomes if item][0]
    assert ("1", True) in tried
    assert {name for name, _ in tried} == set("01234")


def test_the_crop_keeps_every_part_of_the_body():
    hu = np.full((30, 60, 60), -1000, np.int16)
    hu[4:20, 10:40, 8:24], hu[6:26, 12:30, 40:56] = 0, 0
    start, shape = body_crop(hu, (4.0, 2.0, 2.0))
    assert (np.asarray(start) <= (4, 10, 8)).all()
    assert (np.add(start, shape) >= (26, 40, 56)).all()
    assert shape[1] < 40
    whole = ((0, 0, 0), (30, 60, 60))
    assert body_crop(np.full_like(hu, -1000), (4.0, 2.0, 2.0)) == whole
    assert body_crop(np.full_like(hu, 30), (4.0, 2.0, 2.0)) == whole


def test_a_kept_box_survives_the_crop():
    hu = np.full((20, 40, 40), -1000, np.int16)
    hu[5:10, 10:20, 10:20] = 50
    planned = to_plan_grid(hu, (2.0, 2.0, 2.0), (2.0, 2.0, 2.0), ((15, 30, 30), (2, 3, 4)))
    assert (np.add(planned.crop_start, planned.crop_shape) >= (17, 33, 34)).all()


def test_the_same_spacing_changes_no_voxel():
    hu, _ = phantom_arrays()
    planned = to_plan_grid(hu, SPACING, SPACING)
    where = tuple(
        slice(s, s + n) for s, n in zip(planned.crop_start, planned.crop_shape, strict=True)
    )
    np.testing.assert_array_equal(planned.hu, hu[where])


def test_normalise_clips_before_it_scales():
    values = np.array([-1024, -100, 300, 3000], np.int16)
    result = normalise(values, (-100.0, 900.0), 300.0, 200.0)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, [-2, -2, 0, 3])


def test_the_memory_of_a_worker_follows_the_largest_case(tmp_path: Path):
    _, fingerprint = dataset(tmp_path, ["a", "b"])
    coarse, fine = (make_plan(fingerprint, (edge,) * 3) for edge in (2.0, 1.0))
    needed = preprocess.preprocessing_bytes(fingerprint, coarse)
    assert preprocess.preprocessing_bytes(fingerprint, fine) > needed > 300e6
    large = fingerprint.cases[1].model_copy(update={"shape": tuple(10 * n for n in SHAPE)})
    grown = fingerprint.model_copy(update={"cases": (fingerprint.cases[0], large)})
    more = preprocess.preprocessing_bytes(grown, coarse) - needed
    assert more == pytest.approx(999 * (needed - 300e6), rel=0.01)
