import gzip

import numpy as np
import pytest

from bonemet_auto.errors import DataError
from bonemet_auto.geometry import Geometry
from bonemet_auto.images import (
    Volume,
    find_images,
    read_geometry,
    read_hu,
    read_instances,
    strip_ending,
    write_volume,
)

COS, SIN = float(np.cos(0.3)), float(np.sin(0.3))
OBLIQUE = Geometry(
    (5, 6, 7),
    (3.0, 1.5, 0.7),
    (10.0, -20.0, 30.0),
    ((0.0, SIN, COS), (0.0, COS, -SIN), (-1.0, 0.0, 0.0)),
)


def noise(dtype=np.int16, low=-1000, high=1500):
    return np.random.default_rng(0).integers(low, high, OBLIQUE.shape).astype(dtype)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_a_volume_comes_back_with_its_values_and_place(tmp_path, ending):
    path = tmp_path / f"Fräulein 1{ending}"
    write_volume(path, Volume(noise(), OBLIQUE))
    volume = read_hu(path)
    np.testing.assert_array_equal(volume.array, noise())
    assert OBLIQUE.mismatch(volume.geometry) is None
    assert read_geometry(path) == volume.geometry
    assert volume.array.dtype == np.int16


def test_equal_volumes_give_equal_bytes_without_name_or_time(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz"):
        write_volume(tmp_path / name, Volume(noise(), OBLIQUE))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii.gz", "b.nii.gz"]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint16, np.int32, np.float32, np.float64])
def test_hu_of_any_type_are_rounded_and_saturated(tmp_path, dtype):
    values = {"i": [-100, 7, 90], "u": [0, 7, 200], "f": [-5000.4, 7.6, 1e9]}[np.dtype(dtype).kind]
    write_volume(
        tmp_path / "a.nii.gz",
        Volume(np.array([[values]], dtype), Geometry((1, 1, 3), (1.0, 1.0, 1.0))),
    )
    expected = np.clip(np.rint(values), -1024, 3071)
    np.testing.assert_array_equal(read_hu(tmp_path / "a.nii.gz").array[0, 0], expected)


def test_values_beyond_int16_saturate_and_do_not_wrap(tmp_path):
    grid = Geometry((1, 1, 2), (1.0, 1.0, 1.0))
    write_volume(tmp_path / "a.nrrd", Volume(np.array([[[60000, 5]]], np.uint16), grid))
    np.testing.assert_array_equal(read_hu(tmp_path / "a.nrrd").array[0, 0], [3071, 5])


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_instance_maps_of_every_type_are_read_alike(tmp_path, dtype):
    ids = noise(np.dtype(dtype), 0, 4)
    write_volume(tmp_path / "a.nii.gz", Volume(ids, OBLIQUE))
    read = read_instances(tmp_path / "a.nii.gz").array
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read, ids)


@pytest.mark.parametrize(
    ("value", "said"), [(1.5, "fractional instance id 1.5"), (-1.0, "-1"), (70000.0, "70000")]
)
def test_values_that_are_no_ids_are_refused(tmp_path, value, said):
    path = tmp_path / "map.nii.gz"
    write_volume(path, Volume(np.full(OBLIQUE.shape, value, np.float32), OBLIQUE))
    with pytest.raises(DataError, match=said) as refused:
        read_instances(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("where", [0.02, 0.3, 0.6, 0.98])
def test_a_truncated_gzip_is_refused_wherever_it_ends(tmp_path, where):
    path = tmp_path / "cut.nii.gz"
    write_volume(path, Volume(noise(), OBLIQUE))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(where * len(whole))])
    with pytest.raises(DataError, match="cut.nii.gz is truncated"):
        read_hu(path)


def test_a_short_payload_inside_a_sound_gzip_is_refused(tmp_path):
    path = tmp_path / "short.nii.gz"
    write_volume(path, Volume(noise(), OBLIQUE))
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))
    with pytest.raises(DataError, match="short.nii.gz is truncated: 771 bytes .* promises 772"):
        read_hu(path)


def test_a_gzip_of_several_members_and_a_misnamed_plain_file_are_read(tmp_path):
    path = tmp_path / "a.nii.gz"
    write_volume(path, Volume(noise(), OBLIQUE))
    plain = gzip.decompress(path.read_bytes())
    for content in (gzip.compress(plain[:400]) + gzip.compress(plain[400:]), plain):
        path.write_bytes(content)
        np.testing.assert_array_equal(read_hu(path).array, noise())


@pytest.mark.parametrize("name", ["e.nii", "e.nii.gz", "e.nrrd", "e.mha"])
@pytest.mark.parametrize("content", [b"", b"hello", b"\0" * 400])
def test_files_that_are_no_images_are_refused_by_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        read_hu(tmp_path / name)


def test_a_missing_image_is_refused(tmp_path):
    with pytest.raises(DataError, match="gone.nii.gz"):
        read_hu(tmp_path / "gone.nii.gz")


@pytest.mark.parametrize(
    ("name", "case"),
    [("a.nii.gz", "a"), ("A.NII.GZ", "A"), ("b.1.nii", "b.1"), ("ä c.Nrrd", "ä c"), ("d.mha", "d")],
)
def test_endings_are_stripped_in_any_case(name, case):
    assert strip_ending(name) == case


def test_other_endings_are_refused():
    with pytest.raises(DataError, match="scan.png"):
        strip_ending("scan.png")


def test_images_are_found_by_case_in_order(tmp_path):
    for name in ("b_0000.nii.gz", "a b.NRRD", "notes.txt", ".hidden.nii.gz", "Ü_0000.mha"):
        (tmp_path / name).touch()
    (tmp_path / "folder.nii.gz").mkdir()
    assert list(find_images(tmp_path)) == ["a b", "b", "Ü"]
    assert find_images(tmp_path / "b_0000.nii.gz") == {"b": tmp_path / "b_0000.nii.gz"}


def test_no_image_and_two_images_of_a_case_are_refused(tmp_path):
    with pytest.raises(DataError, match="holds no image"):
        find_images(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        find_images(tmp_path / "gone")
    for name in ("a.nii.gz", "a_0000.nrrd"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match="case 'a' has two images"):
        find_images(tmp_path)
