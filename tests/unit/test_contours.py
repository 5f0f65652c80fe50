"""RTSTRUCT contours on the scan's grid: a voxel is in if its centre is."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bonemet_auto.commands.convert import main
from bonemet_auto.convert.contours import _fill, read_contours
from bonemet_auto.geometry import Geometry
from bonemet_auto.images import Volume, read_instances
from bonemet_auto.raw_dataset import read_case_labels
from tests.annotation_fakes import contour_of, edit, write_rtstruct
from tests.dicom_fakes import slices_of, write_series
from tests.unit.test_dicom import turned

SHAPE, SPACING_MM = (9, 40, 44), (3.0, 0.7, 0.8)


def grid(angle=0.0):
    return Geometry(SHAPE, SPACING_MM, (-20.5, 12.25, -400.0), turned(angle))


def circle(geometry, z, radius_mm, centre=(20.0, 22.0), corners=180):
    """A circle in the plane of a slice, as (N, 3) mm; `centre` is y, x in voxels."""
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    y = centre[0] + radius_mm * np.sin(angles) / geometry.spacing_mm[1]
    x = centre[1] + radius_mm * np.cos(angles) / geometry.spacing_mm[2]
    return geometry.index_to_lps(np.stack([np.full_like(y, z), y, x], axis=-1))


def polygon(geometry, z, corners_yx):
    return geometry.index_to_lps([(z, y, x) for y, x in corners_yx])


def study(folder, geometry, rois, **changes):
    volume = Volume(np.full(geometry.shape, 40, np.int16), geometry)
    write_series(folder / "ct", volume)
    return write_rtstruct(folder / "plan.dcm", slices_of(volume), rois, **changes)


def mask_of(path, geometry, number=1):
    found = np.zeros(geometry.shape, dtype=bool)
    found[tuple(read_contours(path, [number], geometry)[number].T)] = True
    return found


def distance_mm(geometry, centre=(20.0, 22.0)):
    """(Y, X) distance of each voxel's centre from a point of the plane."""
    y, x = np.indices(geometry.shape[1:])
    return np.hypot((y - centre[0]) * SPACING_MM[1], (x - centre[1]) * SPACING_MM[2])


@pytest.mark.parametrize("angle", [0, 17, 100])
def test_a_ball_holds_the_voxels_whose_centres_lie_in_it(tmp_path, angle):
    geometry = grid(angle)
    radii = {z: np.sqrt(10.0**2 - (3.0 * (z - 4)) ** 2) for z in range(1, 8)}
    contours = [circle(geometry, z, radius) for z, radius in radii.items()]
    path = study(tmp_path, geometry, {"GTV": ("GTV", contours)})
    found = mask_of(path, geometry)
    away = distance_mm(geometry)
    for z in range(SHAPE[0]):
        radius = radii.get(z, 0.0)
        clear = np.abs(away - radius) > radius * (1 - np.cos(np.pi / 180)) + 1e-3
        np.testing.assert_array_equal(found[z][clear], (away < radius)[clear])


def test_shapes_at_any_place_within_a_voxel_have_the_right_area_on_average(tmp_path):
    """No half voxel is lost or won: the mean over places is the polygon's own area."""
    geometry, rng, areas = grid(), np.random.default_rng(0), []
    for _ in range(400):
        points = circle(geometry, 2, 5.0, 20 + rng.uniform(-0.5, 0.5, 2), corners=24)
        yx = geometry.lps_to_index(points)[:, 1:]
        areas.append(len(_fill(2, [yx])))
    expected = 12 * np.sin(2 * np.pi / 24) * 5.0**2 / (0.7 * 0.8)
    assert np.mean(areas) == pytest.approx(expected, rel=0.004)


def test_holes_by_a_second_contour_and_by_a_keyhole_are_the_same(tmp_path):
    geometry = grid()
    outer, inner = circle(geometry, 4, 12.0), circle(geometry, 4, 5.0)
    keyhole = np.concatenate([outer, outer[:1], inner[::-1], inner[-1:]])
    rois = {"two": ("", [outer, inner]), "key": ("", [keyhole]), "whole": ("", [outer])}
    path = study(tmp_path, geometry, rois)
    two, key, whole = (mask_of(path, geometry, number)[4] for number in (1, 2, 3))
    away = distance_mm(geometry)
    hole = away < 5.0 * np.cos(np.pi / 180) - 1e-3
    np.testing.assert_array_equal(two[hole], False)
    np.testing.assert_array_equal(two, whole & ~(away < 5.0 - 0.01))
    cut = (np.indices(two.shape)[0] == 20) & whole
    np.testing.assert_array_equal(two[~cut], key[~cut])
    assert key[hole & cut].sum() <= 1


def test_contours_through_voxel_centres_keep_their_voxels(tmp_path):
    """As tools trace them that turn masks into contours; thin parts and single voxels too."""
    geometry = grid(30)
    square = polygon(geometry, 3, [(5, 5), (5, 9), (8, 9), (8, 5)])
    spike = polygon(geometry, 3, [(15, 5), (15, 9), (18, 9), (18, 12), (18, 9), (18, 5)])
    line = polygon(geometry, 3, [(25, 5), (25, 9), (25, 5)])
    single = polygon(geometry, 3, [(30, 5)])
    path = study(tmp_path, geometry, {"GTV": ("", [square, spike, line, single])})
    expected = np.zeros(SHAPE, dtype=bool)
    expected[3, 5:9, 5:10] = expected[3, 15:19, 5:10] = True
    expected[3, 18, 5:13] = expected[3, 25, 5:10] = expected[3, 30, 5] = True
    np.testing.assert_array_equal(mask_of(path, geometry), expected)


def test_a_contour_that_is_there_twice_counts_once(tmp_path):
    geometry = grid()
    ring = circle(geometry, 4, 8.0)
    path = study(tmp_path, geometry, {"a": ("", [ring, ring]), "b": ("", [ring])})
    np.testing.assert_array_equal(mask_of(path, geometry, 1), mask_of(path, geometry, 2))


def slow_fill(points):
    """Centres inside or on a polygon, one by one: crossings of a ray, and distance to each edge."""
    found = set()
    for y in range(-1, 14):
        for x in range(-1, 14):
            inside, on = False, False
            for (ay, ax), (by, bx) in zip(points, np.roll(points, -1, axis=0), strict=True):
                if (ay > y) != (by > y) and x < ax + (y - ay) * (bx - ax) / (by - ay):
                    inside = not inside
                length = (by - ay) ** 2 + (bx - ax) ** 2
                share = ((y - ay) * (by - ay) + (x - ax) * (bx - ax)) / (length or 1)
                share = min(max(share, 0), 1)
                foot = ay + share * (by - ay), ax + share * (bx - ax)
                on |= np.hypot(y - foot[0], x - foot[1]) < 1e-9
            if inside or on:
                found.add((y, x))
    return found


@settings(deadline=None, max_examples=60)
@given(arrays(np.int64, st.tuples(st.integers(1, 9), st.just(2)), elements=st.integers(0, 24)))
def test_any_polygon_is_filled_as_a_slow_reference_does(halves):
    """Corners on centres and on voxel faces; any self-crossing."""
    points = halves / 2
    pixels = _fill(7, [points])
    assert (pixels[:, 0] == 7).all() and len(np.unique(pixels, axis=0)) == len(pixels)
    assert {(int(y), int(x)) for _, y, x in pixels} == slow_fill(points)


def convert(source, out, *flags):
    return main([str(source), str(out), *flags])


def only_case(out):
    (path,) = (out / "labelsTr").glob("*.json")
    return read_instances(out / "labelsTr" / f"{path.stem}.nii.gz"), read_case_labels(path)


def test_rois_become_instances_and_organs_and_margins_do_not(tmp_path):
    geometry = grid(20)
    ball = [circle(geometry, z, 4.0, (12, 12)) for z in (2, 3, 4)]
    other = [circle(geometry, z, 3.0, (30, 30)) for z in (5, 6)]
    rois = {
        "BODY": ("EXTERNAL", [circle(geometry, z, 13.0) for z in range(9)]),
        "PTV": ("PTV", [circle(geometry, z, 6.0, (12, 12)) for z in (2, 3, 4)]),
        "both": ("GTV", ball + other),
        "third": ("", [circle(geometry, 7, 3.0, (12, 30))]),
        "never drawn": ("GTV", []),
    }
    path = study(tmp_path / "src", geometry, rois)
    assert convert(tmp_path / "src", tmp_path / "o1", "--lung", "both") == 0
    drawn, labels = only_case(tmp_path / "o1")
    assert labels.instances == {1: 1, 2: 1, 3: None}
    np.testing.assert_array_equal(
        drawn.array > 0, mask_of(path, geometry, 3) | mask_of(path, geometry, 4)
    )
    assert convert(tmp_path / "src", tmp_path / "o2", "--lesions", "ptv") == 0
    np.testing.assert_array_equal(
        only_case(tmp_path / "o2")[0].array > 0, mask_of(path, geometry, 2)
    )
    assert convert(tmp_path / "src", tmp_path / "o3", "--instances", "regions") == 0
    assert len(only_case(tmp_path / "o3")[1].instances) == 2


def test_contours_that_skip_slices_are_told(tmp_path, caplog):
    geometry = grid()
    study(tmp_path / "src", geometry, {"a": ("", [circle(geometry, z, 5.0) for z in (1, 4, 7)])})
    assert convert(tmp_path / "src", tmp_path / "o") == 0
    assert "ROI 1 is drawn on every 3. slice at most" in caplog.text


def off_plane(geometry):
    points = circle(geometry, 4, 8.0)
    return [points + np.outer(points[:, 0] - points[:, 0].mean(), (0, 0, 0.2))]


HARMED = {
    "off plane": (off_plane, "leave the plane of the slices by"),
    "between": (lambda g: [circle(g, 3.5, 8.0)], "0.50 of a slice away from the nearest"),
    "beyond the slices": (lambda g: [circle(g, 9, 8.0)], "reaches beyond the CT"),
    "beyond the edge": (lambda g: [circle(g, 4, 8.0, (3, 3))], "reaches beyond the CT"),
    "too small": (lambda g: [circle(g, 4, 0.1, (20.5, 22.5))], "no voxel centre lies within"),
}


@pytest.mark.parametrize("name", HARMED)
def test_contours_that_are_not_on_the_scan_are_refused(tmp_path, name):
    make, expected = HARMED[name]
    geometry = grid()
    study(tmp_path / "src", geometry, {"Doe": ("GTV", make(geometry))})
    assert convert(tmp_path / "src", tmp_path / "o") == 3
    (failed,) = json.loads((tmp_path / "o" / "failed_cases.json").read_text())
    assert expected in failed["reason"] and "ROI 1" in failed["reason"]
    assert "Doe" not in failed["reason"]


def test_places_that_are_rounded_are_on_the_slice(tmp_path):
    geometry = grid(10)
    exact = study(tmp_path / "a", geometry, {"a": ("", [circle(geometry, 4, 8.0)])})
    rough = study(tmp_path / "b", geometry, {"a": ("", [circle(geometry, 4, 8.0).round(1)])})
    different = mask_of(exact, geometry) ^ mask_of(rough, geometry)
    assert different[4].sum() < 0.03 * mask_of(exact, geometry).sum()
    assert not np.delete(different, 4, axis=0).any()


def test_open_contours_are_refused_and_marks_passed_over(tmp_path):
    geometry = grid()
    contours = [circle(geometry, 4, 8.0), circle(geometry, 6, 8.0)]
    path = study(tmp_path / "src", geometry, {"a": ("", contours)})

    def change(kind):
        def set_kind(item):
            item.ROIContourSequence[0].ContourSequence[1].ContourGeometricType = kind

        return set_kind

    edit(path, change("POINT"))
    assert convert(tmp_path / "src", tmp_path / "o1") == 0
    assert np.unique(only_case(tmp_path / "o1")[0].array.nonzero()[0]).tolist() == [4]
    edit(path, change("OPEN_PLANAR"))
    assert convert(tmp_path / "src", tmp_path / "o2") == 3
    assert "ROI 1 has an open contour" in (tmp_path / "o2" / "failed_cases.json").read_text()


@pytest.mark.parametrize("left", ["frame of reference", "images of contours"])
def test_a_structure_set_that_names_no_series_is_matched_all_the_same(tmp_path, left):
    geometry = grid()
    path = study(tmp_path / "src", geometry, {"a": ("", [circle(geometry, 4, 8.0)])})

    def forget(item):
        frame = item.ReferencedFrameOfReferenceSequence[0]
        del frame.RTReferencedStudySequence
        if left == "images of contours":
            del item.ReferencedFrameOfReferenceSequence, item.FrameOfReferenceUID
            image = contour_of([])
            image.ReferencedSOPInstanceUID = "1.2.3.4.5"
            item.ROIContourSequence[0].ContourSequence[0].ContourImageSequence = [image]

    edit(path, forget)
    assert convert(tmp_path / "src", tmp_path / "o") == 0
    other = Volume(np.zeros(geometry.shape, np.int16), geometry)
    write_series(tmp_path / "src" / "other", other, seed=4, series="1.2.3.8")
    expected = 3 if left == "frame of reference" else 0
    assert convert(tmp_path / "src", tmp_path / "o2") == expected
    if expected:
        assert "refers to 2 series" in (tmp_path / "o2" / "failed_cases.json").read_text()


@pytest.mark.parametrize("broken", ["no ROI number", "odd numbers", "truncated"])
def test_damaged_structure_sets_are_named(tmp_path, broken):
    geometry = grid()
    path = study(tmp_path / "src", geometry, {"a": ("", [circle(geometry, 4, 8.0)])})

    def harm(item):
        if broken == "no ROI number":
            del item.StructureSetROISequence[0].ROINumber
        else:
            item.ROIContourSequence[0].ContourSequence[0].ContourData = ["1"] * 8

    if broken == "truncated":
        path.write_bytes(path.read_bytes()[:-400])
    else:
        edit(path, harm)
    assert convert(tmp_path / "src", tmp_path / "o") == 3
    assert "RTSTRUCT is damaged" in (tmp_path / "o" / "failed_cases.json").read_text()
