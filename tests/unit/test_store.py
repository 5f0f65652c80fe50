"""The case store gives back what it was given, and says so when it cannot."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from bonemet_auto import store
from bonemet_auto.errors import DataError
from bonemet_auto.geometry import Geometry, Index
from bonemet_auto.schema import GeometryRecord, StoredCase

RANDOM = np.random.default_rng(3)


def meta_for(shape: Index, case: str = "Fälle 1") -> StoredCase:
    return StoredCase(
        case=case,
        patient_id="p",
        input_hash="0",
        original=GeometryRecord.of(Geometry(shape, (1.0, 1.0, 1.0))),
        crop_start=(0, 0, 0),
        crop_shape=shape,
        shape=shape,
        spacing_mm=(1.0, 1.0, 1.0),
        lesions=(),
        patient_label=None,
        bone_voxels=(),
    )


def stored(folder: Path, shape: Index) -> tuple[np.ndarray, np.ndarray]:
    hu = RANDOM.integers(-1024, 3072, shape).astype(np.int16)
    instances = RANDOM.integers(0, 60000, shape).astype(np.uint16)
    store.write_case(folder, hu, instances, meta_for(shape))
    return hu, instances


@pytest.mark.parametrize("shape", [(1, 16, 17), (40, 33, 131), (1, 1, 1)])
def test_a_case_comes_back_as_it_was(tmp_path: Path, shape: Index):
    hu, instances = stored(tmp_path, shape)
    case = store.open_case(tmp_path, "Fälle 1")
    assert case.meta.model_copy(update={"sha256": {}}) == meta_for(shape)
    for given, back in zip((hu, instances), case.read(), strict=True):
        assert back.dtype == given.dtype
        np.testing.assert_array_equal(back, given)


def test_checksums_are_those_of_the_files(tmp_path: Path):
    stored(tmp_path, (5, 6, 7))
    store.write_checksums(tmp_path, [store.read_meta(tmp_path, "Fälle 1")])
    lines = (tmp_path / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    listed = dict(line.split("  ", 1)[::-1] for line in lines)
    assert sorted(listed) == ["Fälle 1.b2nd", "Fälle 1.json", "Fälle 1_seg.b2nd"]
    for name, digest in listed.items():
        assert digest == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


def test_a_window_equals_numpy_padding_wherever_it_lies(tmp_path: Path):
    shape = (9, 34, 20)
    hu, instances = stored(tmp_path, shape)
    case = store.open_case(tmp_path, "Fälle 1")
    margin = 50
    padded_hu = np.pad(hu, margin, constant_values=-1024)
    padded_instances = np.pad(instances, margin)
    for _ in range(60):
        size = RANDOM.integers(1, 40, 3)
        start = np.array([RANDOM.integers(-45, n + 10) for n in shape])
        where = tuple(slice(s + margin, s + margin + n) for s, n in zip(start, size, strict=True))
        got_hu, got_instances = case.crop(tuple(start.tolist()), tuple(size.tolist()))
        np.testing.assert_array_equal(got_hu, padded_hu[where])
        np.testing.assert_array_equal(got_instances, padded_instances[where])


def test_a_non_contiguous_array_is_stored_right(tmp_path: Path):
    hu = RANDOM.integers(-1000, 1000, (5, 6, 7)).astype(np.int16)[::-1, ::2]
    store.write_case(tmp_path, hu, np.zeros(hu.shape, np.uint16), meta_for(hu.shape))
    np.testing.assert_array_equal(store.open_case(tmp_path, "Fälle 1").read()[0], hu)


def test_json_appears_only_after_the_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stored(tmp_path, (4, 4, 4))
    whole = store._write_array

    def killed_at_the_instance_map(path: Path, array: np.ndarray) -> None:
        if path.name.endswith("_seg.b2nd"):
            raise KeyboardInterrupt
        whole(path, array)

    monkeypatch.setattr(store, "_write_array", killed_at_the_instance_map)
    with pytest.raises(KeyboardInterrupt):
        stored(tmp_path, (4, 4, 4))
    assert not (tmp_path / "Fälle 1.json").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("name", ["Fälle 1.b2nd", "Fälle 1_seg.b2nd", "Fälle 1.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty"])
def test_a_damaged_file_is_named_with_the_cure(tmp_path: Path, name: str, damage: str):
    stored(tmp_path, (20, 20, 20))
    path = tmp_path / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(
            path.read_bytes()[: path.stat().st_size // 2] if damage == "truncated" else b""
        )
    with pytest.raises(DataError, match=r"(?s)Fälle 1.*bonemet_plan_and_preprocess"):
        store.open_case(tmp_path, "Fälle 1").read()


def test_arrays_of_another_shape_than_the_json_are_refused(tmp_path: Path):
    zeros = np.zeros((3, 4, 5), np.int16)
    store.write_case(tmp_path, zeros, zeros.astype(np.uint16), meta_for((3, 4, 6)))
    with pytest.raises(DataError, match=r"\(3, 4, 5\).*\(3, 4, 6\)"):
        store.open_case(tmp_path, "Fälle 1")
