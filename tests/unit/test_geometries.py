"""One patient scanned in 42 ways: the same lesions, at the same places, of the same size.

The scene is a function of the place in the patient, so that any grid can sample it; lesions have
edges as soft as a scanner makes them. The network sees what is brighter than 400 HU.
"""

from itertools import product

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from bonemet_auto.geometry import Geometry
from bonemet_auto.images import Volume
from bonemet_auto.inference.predict import predict_volume
from tests.unit.inference_fakes import LESION_HU, TISSUE_HU, BlobNetwork, make_plan

CPU = torch.device("cpu")
PLAN = make_plan((32, 40, 40), (1.5, 1.2, 1.2))
MIDDLE_MM = np.array([30.0, -120.0, 500.0])
FIELD_MM = 66.0
EDGE_MM, SEEN_HU = 1.5, 400
LESIONS = {
    "ball": (np.array([-11.0, 9.0, 4.0]), np.array([9.0, 9.0, 9.0])),
    "ellipsoid": (np.array([12.0, -10.0, -6.0]), np.array([13.0, 8.0, 10.0])),
}
"""Centre beside the middle, and semi-axes, in LPS mm."""

SPACINGS_MM = [
    (1.0, 1.0, 1.0), (3.0, 0.8, 0.8), (1.5, 1.5, 1.5), (0.8, 0.8, 3.0), (2.0, 0.7, 1.1),
    (0.7, 0.7, 0.7),
]  # fmt: skip
UPRIGHT = np.eye(3)[::-1]
TURNED = Rotation.from_euler("zyx", (12, -9, 17), degrees=True).as_matrix()
LYING = Rotation.from_euler("zyx", (70, 40, -35), degrees=True).as_matrix()
FAR_MM = np.array([4000.0, -9000.0, 20000.0])
# Axes z, y, x of the array in the patient; how far the scene is moved with the patient; and what is
# cut off (or added) before and behind along each axis, mm.
PLACES = {
    "upright": (UPRIGHT, 0, ((0, 0), (0, 0), (0, 0))),
    "flipped": (UPRIGHT * [[-1], [1], [-1]], 0, ((0, 0), (0, 0), (0, 0))),
    "permuted": (UPRIGHT[[2, 0, 1]] * [[1], [-1], [1]], 0, ((0, 0), (0, 0), (0, 0))),
    "oblique": (UPRIGHT @ TURNED.T, 0, ((0, 0), (0, 0), (0, 0))),
    "lying far away": (UPRIGHT @ LYING.T, FAR_MM, ((0, 0), (0, 0), (0, 0))),
    "cropped": (UPRIGHT, 0, ((9.3, 6.1), (4.7, 8.9), (3.3, 1.7))),
    "padded": (UPRIGHT, 0, ((-17, -4.9), (-31.3, 0), (0, -23.9))),
}


def scanned(spacing_mm, place):
    """The scene as a scan of these voxels; its middle is no voxel's middle."""
    axes, moved_mm, cuts_mm = PLACES[place]
    low, high = np.array(cuts_mm).T
    start_mm, stop_mm = low - FIELD_MM / 2, FIELD_MM / 2 - high
    shape = tuple(np.rint((stop_mm - start_mm) / spacing_mm).astype(int).tolist())
    origin = MIDDLE_MM + moved_mm + (start_mm + np.multiply(spacing_mm, 0.5)) @ axes
    grid = Geometry(shape, spacing_mm, tuple(origin.tolist()), tuple(map(tuple, axes.tolist())))
    places = grid.index_to_lps(np.moveaxis(np.indices(shape), 0, -1)) - MIDDLE_MM - moved_mm
    hu = np.full(shape, float(TISSUE_HU))
    for centre, axes_mm in LESIONS.values():
        reached = np.linalg.norm((places - centre) / axes_mm, axis=-1)
        depth_mm = (1 - reached) * axes_mm.min()
        hu += (LESION_HU - TISSUE_HU) / (1 + np.exp(-depth_mm / (EDGE_MM / 2)))
    return Volume(np.rint(hu).astype(np.int16), grid)


def found(spacing_mm, place):
    """(2, 3) centroids beside the scene's middle and (2,) volumes, by place from right to left."""
    result = predict_volume(scanned(spacing_mm, place), [BlobNetwork()], PLAN, CPU)
    lesions = sorted(result.lesions, key=lambda lesion: lesion.centroid_lps_mm[0])
    centroids = np.array([lesion.centroid_lps_mm for lesion in lesions])
    return centroids - MIDDLE_MM - PLACES[place][1], [lesion.volume_mm3 for lesion in lesions]


def seen_mm3(axes_mm):
    """Volume above the network's threshold, which lies a little inside the middle of the edge."""
    share = (SEEN_HU - TISSUE_HU) / (LESION_HU - TISSUE_HU)
    depth_mm = EDGE_MM / 2 * np.log(share / (1 - share))
    return 4 / 3 * np.pi * np.prod(axes_mm * (1 - depth_mm / axes_mm.min()))


@pytest.fixture(scope="module")
def usual():
    return found((1.0, 1.0, 1.0), "upright")


def test_the_usual_scan_shows_the_lesions_as_they_are(usual):
    centroids, volumes = usual
    for lesion, centroid, volume in zip(LESIONS.values(), centroids, volumes, strict=True):
        np.testing.assert_allclose(centroid, lesion[0], atol=0.3)
        assert volume == pytest.approx(seen_mm3(lesion[1]), rel=0.03)


@pytest.mark.parametrize(("spacing_mm", "place"), list(product(SPACINGS_MM, PLACES)))
def test_other_grids_show_the_same_lesions(usual, spacing_mm, place):
    centroids, volumes = found(spacing_mm, place)
    assert centroids.shape == (2, 3)
    assert np.linalg.norm(centroids - usual[0], axis=1).max() < 1
    np.testing.assert_allclose(volumes, usual[1], rtol=0.03)
