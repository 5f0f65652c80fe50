"""DICOM series: which slices make a volume, in which order, and what is refused."""

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from bonemet_auto.dicom import find_studies, read_pixels
from bonemet_auto.errors import DataError
from bonemet_auto.geometry import Geometry
from bonemet_auto.images import Volume
from bonemet_auto.scans import read_scan
from tests.dicom_fakes import slices_of, write_series, write_slices

SHAPE, SPACING_MM = (7, 6, 9), (2.5, 0.7, 0.8)


def turned(angle_deg):
    """Axes z, y, x turned around x: an oblique stack without tilt."""
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    return ((0.0, float(-s), float(c)), (0.0, float(c), float(s)), (1.0, 0.0, 0.0))


AXIAL = turned(0)


def scan(direction=AXIAL, shape=SHAPE, seed=0):
    values = np.random.default_rng(seed).integers(-1000, 2000, shape).astype(np.int16)
    return Volume(values, Geometry(shape, SPACING_MM, (-30.5, 12.25, -400.0), direction))


def only_series(folder):
    (study,) = find_studies(folder)
    assert not study.others
    return study.series


@pytest.mark.parametrize("angle", [0, 20, 100])
def test_slices_of_any_order_and_name_make_the_volume_that_they_were(tmp_path, angle):
    volume = scan(turned(angle))
    write_series(tmp_path / "deep" / "er", volume)
    found = read_scan(only_series(tmp_path))
    np.testing.assert_array_equal(found.array, volume.array)
    assert volume.geometry.mismatch(found.geometry) is None


def test_the_grid_is_that_of_simpleitk(tmp_path):
    """An axial stack whose positions fall, as most scanners send it, on another reader."""
    write_series(tmp_path, scan(turned(12)))
    series = only_series(tmp_path)
    image = sitk.ReadImage([str(path) for path in series.files])
    found = series.geometry
    np.testing.assert_allclose(image.GetSpacing()[::-1], found.spacing_mm, atol=1e-5)
    np.testing.assert_allclose(image.GetOrigin(), found.origin_lps_mm, atol=1e-5)
    axes = np.reshape(image.GetDirection(), (3, 3)).T[::-1]
    np.testing.assert_allclose(axes, found.direction, atol=1e-5)


def test_rescaling_is_applied_and_saturates(tmp_path):
    volume = scan()
    write_series(tmp_path, volume, RescaleSlope="2", RescaleIntercept="-2048")
    found = read_scan(only_series(tmp_path)).array
    np.testing.assert_array_equal(found, np.clip(2 * volume.array, -1024, 3071))


def test_a_slice_that_was_copied_twice_counts_once(tmp_path):
    write_series(tmp_path / "a", scan(), seed=1)
    write_series(tmp_path / "b", scan(), seed=2)
    assert read_scan(only_series(tmp_path)).array.shape == SHAPE


def test_one_slice_is_a_volume_as_thick_as_it_says(tmp_path):
    write_series(tmp_path, scan(shape=(1, 6, 9)))
    assert read_scan(only_series(tmp_path)).geometry.spacing_mm == pytest.approx(SPACING_MM)


def test_positions_that_are_rounded_are_no_gap(tmp_path):
    def rounded(z):
        return ["-30.5", "12.25", f"{-400 + 2.5 * z + 0.1 * (-1) ** z:.1f}"]

    write_series(tmp_path, scan(), ImagePositionPatient=rounded)
    assert only_series(tmp_path).fault is None


def without(*numbers):
    return lambda slices: [item for z, item in enumerate(slices) if z not in numbers]


def moved(change):
    def move(slices):
        for z, item in enumerate(slices):
            x, y, height = (float(v) for v in item.ImagePositionPatient)
            item.ImagePositionPatient = [f"{v:.6f}" for v in change(z, x, y, height)]
        return slices

    return move


def changed(**values):
    def change(slices):
        for name, value in values.items():
            if value is None:
                delattr(slices[2], name)
            else:
                setattr(slices[2], name, value)
        return slices

    return change


def all_changed(**values):
    def change(slices):
        for item in slices:
            for name, value in values.items():
                setattr(item, name, value)
        return slices

    return change


FAULTS = {
    "missing slice": (without(3), "1 slice is missing: 5.00 mm between slices 3 and 4 of 6"),
    "missing slices": (without(2, 3), "2 slices are missing: 7.50 mm between slices 2 and 3 of 5"),
    "uneven": (
        moved(lambda z, x, y, h: (x, y, h + (0.8 if z > 3 else 0))),
        "not evenly spaced: 3.30 mm between slices 4 and 5 of 7, 2.50 mm elsewhere",
    ),
    "two phases": (
        lambda slices: [*slices, *slices_of(scan(seed=1), series="1.2.3.4", SOPInstanceUID=_other)],
        "7 of 14 slices lie where another one lies",
    ),
    "gantry tilt": (
        moved(lambda z, x, y, h: (x, y + 0.5 * z, h)),
        "stacked at 11.3 degrees (gantry tilt)",
    ),
    "MR": (all_changed(Modality="MR"), "no CT: modality MR"),
    "several modalities": (changed(Modality="PT"), "modality CT, PT"),
    "multi-frame": (all_changed(NumberOfFrames="5"), "multi-frame"),
    "localizer": (all_changed(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "localizer"),
    "colour": (all_changed(SamplesPerPixel=3), "colour"),
    "no rescale": (changed(RescaleSlope=None), "lack RescaleSlope"),
    "no position": (changed(ImagePositionPatient=None), "lack ImagePositionPatient"),
    "no area": (all_changed(PixelSpacing=["0", "0.7"]), "impossible orientation or pixel spacing"),
    "no direction": (
        all_changed(ImageOrientationPatient=["0"] * 6),
        "impossible orientation or pixel spacing",
    ),
    "axes that are none": (
        all_changed(ImageOrientationPatient=["1", "0", "0"]),
        "headers that make no sense",
    ),
    "other size": (changed(Rows=5), "several sizes"),
    "other spacing": (changed(PixelSpacing=["0.9", "0.9"]), "several pixel spacings"),
    "other orientation": (
        changed(ImageOrientationPatient=["0", "1", "0", "1", "0", "0"]),
        "several orientations",
    ),
    "other scale": (changed(RescaleIntercept="-1000"), "several scales"),
}


def _other(z):
    return f"1.2.3.4.9{z + 1}"


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_not_one_regular_volume_is_refused_with_its_reason(tmp_path, name):
    harm, expected = FAULTS[name]
    write_slices(tmp_path, harm(list(slices_of(scan()))))
    series = only_series(tmp_path)
    assert expected in series.fault
    assert series.geometry is None
    with pytest.raises(DataError, match="slices|series|Export|Give"):
        read_pixels(series)


@pytest.mark.parametrize("cut_bytes", [1, 60])
def test_a_truncated_slice_is_refused(tmp_path, cut_bytes):
    write_series(tmp_path, scan())
    victim = sorted(tmp_path.iterdir())[2]
    victim.write_bytes(victim.read_bytes()[:-cut_bytes])
    assert "1 of 7 slices are truncated" in only_series(tmp_path).fault


def test_reasons_hold_nothing_that_tells_who_it_is(tmp_path):
    for number, (harm, _) in enumerate(FAULTS.values()):
        folder = tmp_path / "Doe Jane" / str(number)
        write_slices(folder, harm(list(slices_of(scan()))))
        fault = only_series(folder).fault
        assert not any(text in fault for text in ("Doe", "4711", "1.2.3", "1950", str(tmp_path)))


def test_of_a_study_the_sound_series_of_most_slices_is_taken(tmp_path):
    write_series(tmp_path, scan(), seed=1, series="1.1", SeriesNumber=9)
    write_series(tmp_path, scan(), seed=2, series="1.2", SeriesNumber=4)
    write_series(tmp_path, scan(shape=(3, 6, 9)), seed=3, series="1.3", SeriesNumber=1)
    write_slices(tmp_path, without(4)(slices_of(scan(shape=(30, 6, 9)), series="1.4")), seed=4)
    write_series(tmp_path, scan(), seed=5, study="7.7", series="1.5")
    first, second = find_studies(tmp_path)
    assert (first.series.series_uid, first.series.fault) == ("1.2", None)
    assert [other.series_uid for other in first.others] == ["1.3", "1.4", "1.1"]
    assert (second.series.study_uid, second.others) == ("7.7", ())


def test_a_study_of_nothing_sound_keeps_the_reason_of_its_largest_series(tmp_path):
    write_slices(tmp_path, without(4)(slices_of(scan(), series="1.4")), seed=4)
    write_series(tmp_path, scan(shape=(2, 6, 9)), seed=5, series="1.5", Modality="MR")
    (study,) = find_studies(tmp_path)
    assert "missing" in study.series.fault


def test_a_file_that_may_not_be_read_is_passed_over(tmp_path, monkeypatch):
    write_series(tmp_path, scan())
    victim = sorted(tmp_path.iterdir())[0]
    plain_open = type(victim).open

    def guarded(path, *given):
        if path == victim:
            raise PermissionError(f"{path}: not yours")
        return plain_open(path, *given)

    monkeypatch.setattr(type(victim), "open", guarded)
    assert len(only_series(tmp_path).files) == SHAPE[0] - 1


def test_other_files_are_passed_over(tmp_path, caplog):
    write_series(tmp_path, scan())
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "short").write_bytes(b"\0" * 130)
    (tmp_path / "broken").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40)
    (tmp_path / "empty").touch()
    assert len(only_series(tmp_path).files) == SHAPE[0]
    assert "damaged DICOM header: 1 files" in caplog.text
