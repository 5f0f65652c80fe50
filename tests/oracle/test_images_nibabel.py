"""nibabel writes, we read: values, scale and place must be those that nibabel means."""

import numpy as np
import pytest

from bonemet_auto.errors import DataError
from bonemet_auto.geometry import Geometry
from bonemet_auto.images import Volume, read_geometry, read_hu, write_volume

nib = pytest.importorskip("nibabel")
pytestmark = pytest.mark.oracle

RAS_OF_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def random_affine(rng, *, flip):
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = rotation * rng.uniform(0.5, 5, 3)
    affine[:3, 0] *= -1 if flip else 1
    affine[:3, 3] = rng.uniform(-300, 300, 3)
    return affine


def lps_affine(geometry):
    """Affine from voxel (i, j, k) = (x, y, z) to LPS, by mapping the corners of a unit cell."""
    corners = geometry.index_to_lps([[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]])
    affine = np.eye(4)
    affine[:3, 3] = corners[0]
    affine[:3, :3] = (corners[1:] - corners[0]).T
    return affine


@pytest.mark.parametrize("seed", range(6))
def test_place_is_that_of_the_affine(tmp_path, seed):
    affine = random_affine(np.random.default_rng(seed), flip=bool(seed % 2))
    nib.save(nib.Nifti1Image(np.zeros((7, 6, 5), np.int16), affine), tmp_path / "a.nii.gz")
    geometry = read_geometry(tmp_path / "a.nii.gz")
    assert geometry.shape == (5, 6, 7)
    np.testing.assert_allclose(RAS_OF_LPS @ lps_affine(geometry), affine, atol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_what_we_write_lies_where_nibabel_says(tmp_path, seed):
    rng = np.random.default_rng(seed)
    axes, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    geometry = Geometry((4, 5, 6), (2.0, 0.7, 0.9), (1.0, -2.0, 3.0), tuple(map(tuple, axes)))
    array = rng.integers(0, 9, geometry.shape).astype(np.uint16)
    write_volume(tmp_path / "a.nii.gz", Volume(array, geometry))
    image = nib.load(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(image.affine, RAS_OF_LPS @ lps_affine(geometry), atol=1e-4)
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, array)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8"])
def test_types_byte_orders_and_scales_agree(tmp_path, order, dtype):
    values = np.arange(2 * 3 * 4).reshape(4, 3, 2)
    header = nib.Nifti1Header(endianness=order)
    header.set_data_dtype(np.dtype(order + dtype))
    image = nib.Nifti1Image(values.astype(dtype), np.eye(4), header)
    image.header.set_slope_inter(2.5, -1024.25)
    nib.save(image, tmp_path / "a.nii.gz")
    loaded = nib.load(tmp_path / "a.nii.gz")
    expected = np.clip(np.rint(np.asarray(loaded.dataobj, float)), -1024, 3071)
    np.testing.assert_array_equal(read_hu(tmp_path / "a.nii.gz").array, expected.T)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 1, 1)])
def test_one_slice_is_a_volume(tmp_path, shape):
    values = np.arange(20).reshape(shape).astype(np.int16)
    nib.save(nib.Nifti1Image(values, np.diag([2, 3, 4, 1])), tmp_path / "a.nii.gz")
    volume = read_hu(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(volume.array, values.reshape(4, 5).T[None])
    assert volume.geometry.spacing_mm[1:] == (3.0, 2.0)


def test_time_series_and_sheared_grids_are_refused(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6, 3), np.int16), np.eye(4)), tmp_path / "t.nii.gz")
    with pytest.raises(DataError, match=r"t.nii.gz is not three-dimensional: \(3, 6, 5, 4\)"):
        read_hu(tmp_path / "t.nii.gz")
    sheared = np.eye(4)
    sheared[0, 1] = 0.3
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), sheared)
    image.set_qform(None)
    nib.save(image, tmp_path / "s.nii.gz")
    with pytest.raises(DataError, match=r"s.nii.gz: its affine is sheared"):
        read_geometry(tmp_path / "s.nii.gz")
