"""A scan the same way up whatever its file does, and lesions back where they were."""

from itertools import permutations, product

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from bonemet_auto.geometry import Geometry
from bonemet_auto.images import Volume
from bonemet_auto.inference.drawn import describe_drawn
from bonemet_auto.inference.open import open_model
from bonemet_auto.inference.predict import predict_volume
from bonemet_auto.upright import turn_of, upright, upright_view
from tests.cohort import GEOMETRY, make_scan
from tests.tiny_model import write_model

CPU = torch.device("cpu")
POSES = list(product(permutations(range(3)), product((False, True), repeat=3)))


def posed(volume, order, flips):
    """The same scan, stored with its axes in another order and direction."""
    geometry = volume.geometry
    axes = [axis for axis, flipped in enumerate(flips) if flipped]
    corner = [0, 0, 0]
    for axis, flipped in zip(order, flips, strict=True):
        corner[axis] = geometry.shape[axis] - 1 if flipped else 0
    signs = np.where(flips, -1, 1)[:, None]
    direction = np.asarray(geometry.direction)[list(order)] * signs
    return Volume(
        np.flip(volume.array.transpose(order), axes),
        Geometry(
            tuple(geometry.shape[axis] for axis in order),
            tuple(geometry.spacing_mm[axis] for axis in order),
            tuple(geometry.index_to_lps(corner).tolist()),
            tuple(map(tuple, direction.tolist())),
        ),
    )


def turned(volume, degrees, origin_mm=(0.0, 0.0, 0.0)):
    """The same voxels of a patient who lies obliquely, somewhere else."""
    rotation = Rotation.from_euler("zyx", degrees, degrees=True).as_matrix()
    geometry = volume.geometry
    direction = tuple(map(tuple, (np.asarray(geometry.direction) @ rotation.T).tolist()))
    return Volume(volume.array, Geometry(geometry.shape, geometry.spacing_mm, origin_mm, direction))


def scan(seed=0):
    return Volume(make_scan(np.random.default_rng(seed))[0], GEOMETRY)


@pytest.mark.parametrize(("order", "flips"), POSES)
def test_every_pose_stands_up_again(order, flips):
    volume = scan()
    stored = posed(volume, order, flips)
    for again in (upright(stored), upright_view(stored)):
        np.testing.assert_array_equal(again.array, volume.array)
        assert volume.geometry.mismatch(again.geometry) is None
        assert again.geometry.orientation == "LPS"
    assert np.shares_memory(upright_view(stored).array, stored.array)
    assert upright(stored).array.flags.c_contiguous


@settings(deadline=None)
@given(st.sampled_from(POSES), st.tuples(*[st.floats(-180, 180)] * 3), st.integers(0, 99))
def test_a_voxel_stays_where_it_is_in_the_patient(pose, degrees, seed):
    rng = np.random.default_rng(seed)
    volume = turned(
        Volume(rng.permutation(60).reshape(3, 4, 5), Geometry((3, 4, 5), (3, 2, 1))), degrees
    )
    volume = posed(volume, *pose)
    stood = upright(volume)
    places = [
        {
            int(value): item.geometry.index_to_lps(index)
            for index, value in np.ndenumerate(item.array)
        }
        for item in (volume, stood)
    ]
    for value, place in places[0].items():
        np.testing.assert_allclose(places[1][value], place, atol=1e-6)


@settings(deadline=None)
@given(st.sampled_from(POSES), st.tuples(*[st.floats(-40, 40)] * 3))
def test_a_crop_comes_back_to_the_voxels_that_it_was_cut_from(pose, degrees):
    volume = posed(turned(scan(), degrees), *pose)
    turn = turn_of(volume.geometry)
    stood = upright(volume).array
    region = (slice(1, 5), slice(2, 4), slice(3, 9))
    crop, start = turn.back(stood[region], tuple(edge.start for edge in region))
    own = tuple(slice(begin, begin + size) for begin, size in zip(start, crop.shape, strict=True))
    np.testing.assert_array_equal(volume.array[own], crop)


def test_simpleitk_would_turn_it_alike():
    volume = posed(scan(), (2, 0, 1), (True, False, True))
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.array))
    image.SetDirection(np.asarray(volume.geometry.direction)[::-1].T.flatten().tolist())
    expected = sitk.GetArrayFromImage(sitk.DICOMOrient(image, "LPS"))
    np.testing.assert_array_equal(upright(volume).array, expected)


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory):
    return open_model(write_model(tmp_path_factory.mktemp("model") / "model"), CPU)


def physical(volume, result):
    """Lesions as they lie in the patient, best first."""
    found = []
    for lesion in result.lesions:
        inside = volume.array[lesion.region][lesion.mask]
        assert inside.mean() == pytest.approx(lesion.mean_hu), "the mask lies on its own voxels"
        middle = np.argwhere(lesion.mask).mean(axis=0) + lesion.start
        place = volume.geometry.index_to_lps(middle)
        np.testing.assert_allclose(place, lesion.centroid_lps_mm, atol=1e-6)
        found.append((lesion.score, lesion.p_lung, lesion.volume_mm3, *lesion.centroid_lps_mm))
    return np.array(found)


@pytest.mark.parametrize(("order", "flips"), POSES[1::2])
def test_the_same_lesions_are_found_in_every_pose(ensemble, order, flips):
    """The network is not symmetric: turned the other way it would see something else."""
    volume = scan()
    usual = physical(volume, predict_volume(volume, ensemble.models, ensemble.plan, CPU))
    other = posed(volume, order, flips)
    found = physical(other, predict_volume(other, ensemble.models, ensemble.plan, CPU))
    assert len(usual)
    np.testing.assert_allclose(found, usual, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "degrees", [(20, 0, 0), (0, 30, 0), (-10, 15, 25), (90, 0, 0), (0, 180, 90)]
)
def test_oblique_patients_are_found_where_they_lie(ensemble, degrees):
    volume = scan()
    usual = predict_volume(volume, ensemble.models, ensemble.plan, CPU).lesions
    other = turned(volume, degrees, (3000.0, -2000.0, 9000.0))
    found = predict_volume(other, ensemble.models, ensemble.plan, CPU).lesions
    assert physical(other, predict_volume(other, ensemble.models, ensemble.plan, CPU)).size
    if max(map(abs, degrees)) < 45:
        for one, two in zip(usual, found, strict=True):
            np.testing.assert_array_equal(one.mask, two.mask)
            assert one.start == two.start


def test_drawn_lesions_keep_their_estimates_in_another_pose(ensemble):
    hu, ids = make_scan(np.random.default_rng(0))
    usual = describe_drawn(Volume(hu, GEOMETRY), ids, ensemble.models, ensemble.plan, CPU)
    pose = ((1, 2, 0), (True, True, False))
    other, drawn = posed(Volume(hu, GEOMETRY), *pose), posed(Volume(ids, GEOMETRY), *pose)
    found = describe_drawn(other, drawn.array, ensemble.models, ensemble.plan, CPU)
    for number, lesion in usual.items():
        assert found[number].p_lung == pytest.approx(lesion.p_lung, abs=1e-5)
        assert found[number].centroid_lps_mm == pytest.approx(lesion.centroid_lps_mm)
        np.testing.assert_array_equal(
            drawn.array[found[number].region] == number, found[number].mask
        )
