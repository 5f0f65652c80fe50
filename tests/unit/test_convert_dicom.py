"""DICOM studies with SEG or RTSTRUCT become raw datasets, voxel by voxel, and nobody is named."""

import json
import shutil
import stat

import numpy as np
import pytest
from highdicom import PixelMeasuresSequence, PlaneOrientationSequence, PlanePositionSequence

from bonemet_auto.commands import predict
from bonemet_auto.commands.convert import main
from bonemet_auto.geometry import Geometry
from bonemet_auto.images import Volume, read_hu, read_instances, write_volume
from bonemet_auto.integrity import inspect_dataset
from bonemet_auto.raw_dataset import open_raw_dataset, read_case_labels
from bonemet_auto.result_schema import PrivateStudies
from bonemet_auto.schema import read_json
from tests.annotation_fakes import ORGAN, edit, write_seg
from tests.cohort import GEOMETRY, make_scan
from tests.dicom_fakes import slices_of, write_series, write_slices
from tests.tiny_model import write_model
from tests.unit.test_dicom import turned

IDENTIFYING = ("Doe", "4711", "1.2.3", "1950")


def scan(angle=0.0, seed=0):
    geometry = Geometry(GEOMETRY.shape, (2.5, 1.5, 1.25), (-30.5, 12.25, -400.0), turned(angle))
    return Volume(make_scan(np.random.default_rng(seed))[0], geometry)


def two_lesions(seed=0):
    """Instance ids, and (Z, Y, X, 2) masks of them."""
    ids = make_scan(np.random.default_rng(seed))[1]
    return ids, np.stack([ids == 1, ids == 2], axis=-1)


def study(folder, seg=True, seed=0, angle=0.0, **tags):
    """A CT series with a SEG beside it; gives its slices."""
    volume = scan(angle, seed)
    write_series(folder / "ct", volume, seed=seed, **tags)
    slices = list(slices_of(volume, **tags))
    if seg:
        write_seg(folder / "seg.dcm", slices, two_lesions(seed)[1])
    return slices


def convert(source, out, *flags):
    return main([str(source), str(out), *map(str, flags)])


def only_case(out):
    """Image, instance map, labels of the only case."""
    (path,) = (out / "labelsTr").glob("*.json")
    image = read_hu(out / "imagesTr" / f"{path.stem}_0000.nii.gz")
    return image, read_instances(out / "labelsTr" / f"{path.stem}.nii.gz"), read_case_labels(path)


def failures(out):
    return json.loads((out / "failed_cases.json").read_text())


@pytest.mark.parametrize(
    ("kind", "angle"),
    [("BINARY", 0), ("BINARY", 20), ("BINARY", 100), ("LABELMAP", 20), ("FRACTIONAL", 0)],
)
def test_segments_become_instances_voxel_by_voxel(tmp_path, kind, angle):
    slices = study(tmp_path / "src", seg=False, angle=angle)
    ids, masks = two_lesions()
    values = masks
    if kind == "FRACTIONAL":
        values = np.where(masks, [0.9, 0.5], 0.4)
    write_seg(tmp_path / "src" / "seg.dcm", slices, values, kind=kind)
    assert convert(tmp_path / "src", tmp_path / "Dataset001_X") == 0
    image, drawn, labels = only_case(tmp_path / "Dataset001_X")
    np.testing.assert_array_equal(image.array, np.maximum(scan().array, -1024))
    np.testing.assert_array_equal(drawn.array, ids)
    assert scan(angle).geometry.mismatch(image.geometry) is None
    assert image.geometry.mismatch(drawn.geometry) is None
    assert labels.instances == {1: None, 2: None}
    assert labels.patient_id.startswith("patient_") and "4711" not in labels.patient_id


def own_grid(masks, start, axes, spacing=(2.5, 1.5, 1.25), angle=0.0):
    """For highdicom: masks on a grid of their own, from voxel `start` along signed array axes."""
    geometry = scan(angle).geometry
    steps = np.zeros((3, 3))
    for row, axis in enumerate(axes):
        steps[row, abs(axis) - 1] = np.sign(axis)
    lps = np.asarray(geometry.direction)
    towards = steps @ lps
    numbers = [np.asarray(start) + n * steps[0] for n in range(len(masks))]
    orders = [abs(axis) - 1 for axis in axes]
    return {
        "plane_positions": [
            PlanePositionSequence("PATIENT", geometry.index_to_lps(number).round(6))
            for number in numbers
        ],
        "plane_orientation": PlaneOrientationSequence(
            "PATIENT", (*towards[2].round(9), *towards[1].round(9))
        ),
        "pixel_measures": PixelMeasuresSequence(
            [spacing[orders[1]], spacing[orders[2]]], spacing[orders[0]]
        ),
    }


@pytest.mark.parametrize(
    ("start", "axes", "take"),
    [
        ((0, 0, 0), (1, 2, 3), lambda m: m),
        ((2, 3, 4), (1, 2, 3), lambda m: m[2:13, 3:14, 4:17]),
        ((13, 17, 19), (-1, -2, -3), lambda m: m[::-1, ::-1, ::-1]),
        ((0, 17, 0), (1, -2, 3), lambda m: m[:, ::-1]),
        ((0, 0, 0), (3, 1, 2), lambda m: m.transpose(2, 0, 1, 3)),
    ],
    ids=["same", "cut out", "turned around", "flipped", "sagittal"],
)
def test_segments_with_a_grid_of_their_own(tmp_path, start, axes, take):
    slices = study(tmp_path / "src", seg=False, angle=15)
    ids, masks = two_lesions()
    taken = take(masks)
    given = own_grid(taken, start, axes, angle=15)
    write_seg(tmp_path / "src" / "seg.dcm", slices, taken, **given)
    assert convert(tmp_path / "src", tmp_path / "Dataset001_X") == 0
    np.testing.assert_array_equal(only_case(tmp_path / "Dataset001_X")[1].array, ids)


@pytest.mark.parametrize(
    ("start", "spacing", "message"),
    [
        ((0.4, 0, 0), (2.5, 1.5, 1.25), "another grid"),
        ((0, 0.5, 0), (2.5, 1.5, 1.25), "another grid"),
        ((0, 0, 0), (2.5, 1.6, 1.25), "another grid"),
        ((12, 0, 0), (2.5, 1.5, 1.25), "segment 1 reaches beyond the CT"),
    ],
)
def test_segments_on_other_voxels_are_refused(tmp_path, start, spacing, message):
    slices = study(tmp_path / "src", seg=False)
    masks = two_lesions()[1]
    given = own_grid(masks, start, (1, 2, 3), spacing)
    write_seg(tmp_path / "src" / "seg.dcm", slices, masks, **given)
    assert convert(tmp_path / "src", tmp_path / "Dataset001_X") == 3
    assert message in failures(tmp_path / "Dataset001_X")[0]["reason"]


def test_our_own_segmentation_comes_back_as_it_went(tmp_path):
    model = write_model(tmp_path / "model")
    source = tmp_path / "src"
    study(source, seg=False)
    ids = two_lesions()[0]
    ids[0, 0, 0] = 1  # a second piece: still the same lesion
    write_volume(tmp_path / "mask.nii.gz", Volume(ids, scan().geometry))
    flags = ["--lesions", str(tmp_path / "mask.nii.gz"), "--formats", "dicom"]
    where = ["-m", str(model), "-i", str(source), "-o", str(tmp_path / "out")]
    assert predict.main([*where, *flags]) == 0
    shutil.copytree(tmp_path / "out_dicom", source / "results")
    assert convert(source, tmp_path / "Dataset001_X") == 0
    np.testing.assert_array_equal(only_case(tmp_path / "Dataset001_X")[1].array, ids)


@pytest.mark.parametrize(
    ("flag", "tracked", "expected"),
    [
        ("auto", False, 3), ("auto", True, 2), ("regions", False, 2), ("components", True, 3),
    ],
)  # fmt: skip
def test_pieces_of_a_segment(tmp_path, flag, tracked, expected):
    slices = study(tmp_path / "src", seg=False)
    ids, masks = two_lesions()
    masks[0, 0, 0, 0] = True
    write_seg(tmp_path / "src" / "seg.dcm", slices, masks, tracked=tracked)
    assert convert(tmp_path / "src", tmp_path / "Dataset001_X", "--instances", flag) == 0
    _, drawn, labels = only_case(tmp_path / "Dataset001_X")
    assert len(labels.instances) == drawn.array.max() == expected
    np.testing.assert_array_equal(drawn.array > 0, masks.any(axis=-1))


def test_what_is_no_lesion_is_left_out(tmp_path):
    slices = study(tmp_path / "src", seg=False)
    ids, masks = two_lesions()
    body = np.ones((*ids.shape, 1), dtype=bool)
    all_masks = np.concatenate([body, masks, body], axis=-1)
    labels = [("Femur", ORGAN), "Met 1", "Met 2", "Doe^Jane"]
    write_seg(tmp_path / "src" / "seg.dcm", slices, all_masks, labels)
    for number, (flags, expected) in enumerate(
        [
            (("--exclude", "doe*"), ids),
            (("--lesions", "MET*"), ids),
            (("--lesions", "Met 2"), ids == 2),
            (("--lesions", "Met*", "--exclude", "*1"), ids == 2),
        ]
    ):
        out = tmp_path / f"Dataset00{number}_X"
        assert convert(tmp_path / "src", out, *flags) == 0
        np.testing.assert_array_equal(only_case(out)[1].array, expected)
    assert convert(tmp_path / "src", tmp_path / "Dataset009_X") == 3
    (failed,) = failures(tmp_path / "Dataset009_X")
    assert "segment 2 lies 100% within other lesions, mostly segment 4" in failed["reason"]


def test_a_few_shared_voxels_go_to_the_smaller_lesion(tmp_path, caplog):
    slices = study(tmp_path / "src", seg=False)
    masks = np.zeros((*GEOMETRY.shape, 2), dtype=bool)
    masks[2:8, 5:9, 5:9, 0] = masks[7:10, 5:9, 5:9, 1] = True
    write_seg(tmp_path / "src" / "seg.dcm", slices, masks)
    assert convert(tmp_path / "src", tmp_path / "Dataset001_X") == 0
    drawn = only_case(tmp_path / "Dataset001_X")[1].array
    np.testing.assert_array_equal(drawn == 2, masks[..., 1])
    np.testing.assert_array_equal(drawn == 1, masks[..., 0] & ~masks[..., 1])
    assert "16 voxels are in two lesions" in caplog.text


def cohort(folder):
    """Two patients, the first with two studies."""
    for number, (patient, uid) in enumerate([("A1", "1.7"), ("A1", "1.8"), ("B2", "1.9")]):
        study(folder / str(number), seed=number, study=uid, series=f"{uid}.1", PatientID=patient)
    return folder


def test_sources_by_patient_study_and_label(tmp_path, caplog):
    source = cohort(tmp_path / "src")
    table = tmp_path / "sources.csv"
    table.write_text(
        "patient_id;study_uid;label;source\n"
        "A1;;GTV-1;lung_metastasis\n"
        ";1.8;gtv-2;other\n"
        "B2;;;unknown\n"
        "C3;;;other\n"
    )
    out = tmp_path / "Dataset001_X"
    assert convert(source, out, "--sources", table) == 0
    private = read_json(tmp_path / "Dataset001_X_private.json", PrivateStudies)
    found = {
        private.studies[path.stem].study_uid: read_case_labels(path)
        for path in (out / "labelsTr").glob("*.json")
    }
    sources = {uid: labels.instances for uid, labels in found.items()}
    assert sources == {"1.7": {1: 1, 2: None}, "1.8": {1: 1, 2: 0}, "1.9": {1: None, 2: None}}
    assert found["1.7"].patient_id == found["1.8"].patient_id != found["1.9"].patient_id
    assert "no lesion fits line 5 of sources.csv (1 in all)" in caplog.text


def test_sources_by_flags_and_contradictions(tmp_path):
    source = tmp_path / "src"
    study(source)
    out = tmp_path / "Dataset001_X"
    assert convert(source, out, "--lung", "*1", "--other", "*2") == 0
    assert only_case(out)[2].instances == {1: 1, 2: 0}
    assert open_raw_dataset(out).info.labels == {"other": 0, "lung_metastasis": 1}
    table = tmp_path / "sources.csv"
    table.write_text("label,source\nGTV-2,lung_metastasis\n")
    assert convert(source, tmp_path / "o2", "--other", "*2", "--sources", table) == 3
    (failed,) = failures(tmp_path / "o2")
    assert "line 2 of sources.csv and --other give region 2 different" in failed["reason"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label,class\nx,other\n", "its columns are label, class"),
        ("source\nother\n", "its columns are source"),
        ("", "its columns are none"),
        ("label,source\nx,lung\n", "line 2: expected as many cells"),
        ("label,source\nx,other,y\n", "line 2: expected as many cells"),
        ("label,source\n,other\n", "line 2: names no lesion"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, capsys, text, message):
    study(tmp_path / "src")
    (tmp_path / "t.csv").write_text(text)
    assert convert(tmp_path / "src", tmp_path / "o", "--sources", tmp_path / "t.csv") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_the_dataset_passes_the_integrity_check(tmp_path):
    out = tmp_path / "Dataset001_X"
    assert convert(cohort(tmp_path / "src"), out, "--lung", "GTV-1", "--other", "GTV-2") == 0
    raw = open_raw_dataset(out)
    inspection = inspect_dataset(raw, None, 1)
    assert inspection.faults == [] and raw.info.num_training == 3
    assert [len(case.lesions) for case in inspection.fingerprint.cases] == [2, 2, 2]


def test_a_zip_gives_the_same(tmp_path):
    study(tmp_path / "src")
    archive = shutil.make_archive(str(tmp_path / "export"), "zip", tmp_path / "src")
    assert convert(archive, tmp_path / "Dataset001_X") == 0
    np.testing.assert_array_equal(only_case(tmp_path / "Dataset001_X")[1].array, two_lesions()[0])


def without(slices, number):
    return [item for z, item in enumerate(slices) if z != number]


def foreign_seg(folder):
    study(folder, seg=False)
    others = list(slices_of(scan(), series="1.2.3.55"))
    write_seg(folder / "seg.dcm", others, two_lesions()[1])


def lone_seg(folder):
    write_seg(folder / "seg.dcm", slices_of(scan()), two_lesions()[1])


def missing_slice(folder):
    slices = list(slices_of(scan()))
    write_slices(folder / "ct", without(slices, 5))
    write_seg(folder / "seg.dcm", slices, two_lesions()[1])


def two_objects(folder):
    slices = study(folder)
    write_seg(folder / "again.dcm", slices, two_lesions()[1])


def magnetic(folder):
    slices = study(folder, seg=False, Modality="MR")
    write_seg(folder / "seg.dcm", slices, two_lesions()[1])


def truncated(folder, cut_bytes=200):
    study(folder)
    path = folder / "seg.dcm"
    path.write_bytes(path.read_bytes()[:-cut_bytes])


def unannotated(folder):
    study(folder, seg=False)


def nothing_drawn(folder):
    slices = study(folder, seg=False)
    masks = np.zeros_like(two_lesions()[1])
    write_seg(folder / "seg.dcm", slices, masks, omit_empty_frames=False)


FAULTS = {
    foreign_seg: "a SEG refers to a series that is not there. Add the CT series",
    lone_seg: "a SEG refers to a series that is not there",
    missing_slice: "the series of its SEG: 1 slice is missing",
    two_objects: "one series has 2 objects (SEG, SEG). Choose by --objects, or take them together",
    magnetic: "no CT: modality MR. Give the CT series",
    truncated: "a SEG is damaged or incomplete. Export it again",
    unannotated: "it has neither SEG nor RTSTRUCT",
    nothing_drawn: "none of its segments or ROIs is a lesion with voxels",
}


@pytest.mark.parametrize("harm", FAULTS)
def test_a_study_that_cannot_be_used_is_named_with_its_cure_and_the_others_are_done(tmp_path, harm):
    source, out = tmp_path / "src", tmp_path / "Dataset001_X"
    study(source / "good", study="5.5", series="5.5.1", seed=3)
    harm(source / "bad")
    assert convert(source, out) == 3
    (failed,) = failures(out)
    assert FAULTS[harm] in failed["reason"]
    image, _, _ = only_case(out)
    np.testing.assert_array_equal(image.array, np.maximum(scan(seed=3).array, -1024))
    private = read_json(tmp_path / "Dataset001_X_private.json", PrivateStudies)
    assert private.studies[failed["case"]].study_uid == "1.2.3"


def test_studies_without_lesions_are_scans_without_lesions_if_that_is_said(tmp_path):
    for number, make in enumerate((unannotated, nothing_drawn)):
        make(tmp_path / str(number))
        out = tmp_path / f"Dataset00{number}_X"
        assert convert(tmp_path / str(number), out, "--unannotated-empty") == 0
        assert only_case(out)[2].instances == {} and not only_case(out)[1].array.any()


def test_a_study_whose_object_is_lost_never_counts_as_one_without_lesions(tmp_path, caplog):
    for number, make in enumerate((foreign_seg, truncated)):
        make(tmp_path / str(number))
        assert convert(tmp_path / str(number), tmp_path / f"o{number}", "--unannotated-empty") == 3
        assert not (tmp_path / f"o{number}" / "labelsTr").exists()
    study(tmp_path / "2")
    flags = ("--unannotated-empty", "--objects", "nothing")
    assert convert(tmp_path / "2", tmp_path / "o2", *flags) == 3
    assert "fits --objects" in failures(tmp_path / "o2")[0]["reason"]


def test_several_objects_are_chosen_or_merged(tmp_path):
    source = tmp_path / "src"
    slices = study(source, seg=False)
    ids, masks = two_lesions()
    write_seg(source / "a.dcm", slices, masks[..., :1], series_description="reader one")
    write_seg(source / "b.dcm", slices, masks[..., 1:], series_description="Reader Two")
    assert convert(source, tmp_path / "o1", "--objects", "reader one") == 0
    np.testing.assert_array_equal(only_case(tmp_path / "o1")[1].array, ids == 1)
    assert convert(source, tmp_path / "o2", "--merge") == 0
    np.testing.assert_array_equal(only_case(tmp_path / "o2")[1].array > 0, ids > 0)
    assert len(only_case(tmp_path / "o2")[2].instances) == 2


def test_of_several_series_the_one_that_is_referred_to_is_taken(tmp_path):
    source = tmp_path / "src"
    study(source)
    thin = scan(seed=1)
    geometry = Geometry((28, 18, 20), (1.25, 1.5, 1.25), thin.geometry.origin_lps_mm)
    doubled = Volume(np.concatenate([thin.array] * 2), geometry)
    write_series(source / "thin", doubled, seed=9, series="1.2.3.77", SeriesNumber=1)
    assert convert(source, tmp_path / "o1") == 0
    assert only_case(tmp_path / "o1")[0].array.shape == GEOMETRY.shape

    def forget(item):
        del item.ReferencedSeriesSequence

    edit(source / "seg.dcm", forget)  # only its source images are left to go by
    assert convert(source, tmp_path / "o2") == 0
    assert only_case(tmp_path / "o2")[0].array.shape == GEOMETRY.shape


def test_two_annotated_series_of_a_study_are_two_cases(tmp_path):
    source = tmp_path / "src"
    study(source / "1", seed=1)
    study(source / "2", seed=2, series="1.2.3.77", SeriesNumber=1)
    assert convert(source, tmp_path / "Dataset001_X") == 0
    first, second = sorted((tmp_path / "Dataset001_X" / "labelsTr").glob("*.json"))
    assert first.stem[:-2] == second.stem[:-2] and first.stem.endswith("_1")
    assert read_case_labels(first).patient_id == read_case_labels(second).patient_id
    image = read_hu(tmp_path / "Dataset001_X" / "imagesTr" / f"{first.stem}_0000.nii.gz")
    np.testing.assert_array_equal(image.array, np.maximum(scan(seed=2).array, -1024))


def test_nothing_that_is_written_or_said_names_anybody(tmp_path, caplog, capfd):
    caplog.set_level("DEBUG")
    source, out = tmp_path / "Doe^Jane", tmp_path / "Dataset001_X"
    for number, harm in enumerate(FAULTS):
        place = source / f"Doe^Jane {number}"
        harm(place)
        for path in sorted(place.rglob("*")):
            if path.is_file():
                relabel(path, number)
    study(source / "good", study="1.2.3.500", series="1.2.3.500.1")
    assert convert(source, out, "--verbose") == 3
    said = caplog.text + "".join(capfd.readouterr())
    for text in IDENTIFYING:
        assert text not in said.replace(str(out), ""), text
        for path in out.rglob("*"):
            assert text not in path.name
            assert not path.is_file() or text.encode() not in path.read_bytes()
    private = tmp_path / "Dataset001_X_private.json"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert {item["case"] for item in failures(out)} < set(
        read_json(private, PrivateStudies).studies
    )


def relabel(path, number):
    """Give a study its own UID; a truncated file keeps it, and falls to the first study."""

    def change(item):
        item.StudyInstanceUID = f"1.2.3.{600 + number}"

    if path.name != "seg.dcm" or number != list(FAULTS).index(truncated):
        edit(path, change)


def test_the_same_folder_gives_the_same_pseudonyms_again(tmp_path):
    study(tmp_path / "src")
    out = tmp_path / "Dataset001_X"
    assert convert(tmp_path / "src", out) == 0
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    assert convert(tmp_path / "src", out) == 2
    assert convert(tmp_path / "src", out, "--overwrite") == 0
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before


def test_the_list_shows_labels_and_writes_nothing(tmp_path, capsys):
    source = tmp_path / "src"
    slices = study(source / "1", seg=False)
    masks = np.concatenate([two_lesions()[1], two_lesions()[1][..., :1]], axis=-1)
    labels = ["Met A", "Met B", ("Rib", ORGAN)]
    write_seg(source / "1" / "seg.dcm", slices, masks, labels, series_description="by hand")
    write_seg(source / "1" / "b.dcm", slices, masks[..., :1], series_description="by machine")
    study(source / "2", seg=False, study="8.8", series="8.8.1")
    before = sorted(tmp_path.rglob("*"))
    assert main([str(source), "--list", "--lung", "met a"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["object", "titles", "label", "kind", "lesion", "pieces", "source", "scans"]
    said = {" ".join(line) for line in lines}
    assert "SEG by hand / CT_SEG Met A Neoplasm yes a lesion each lung_metastasis 1" in said
    assert "SEG by hand / CT_SEG Met B Neoplasm yes a lesion each unknown 1" in said
    assert any(line.startswith("SEG by hand / CT_SEG Rib") and " no " in line for line in said)
    assert "SEG by machine / CT_SEG GTV-1 Neoplasm yes a lesion each unknown 1" in said
    assert any(line.startswith("1 not converted: it has neither") for line in said)
    assert any(line.startswith("1 not converted: one series has 2 objects") for line in said)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give OUT"),
        (["o", "--source-unknown", "--lung", "x"], "contradicts"),
        (["src/o"], "never edited"),
    ],
)
def test_flags_that_make_no_sense(tmp_path, capsys, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    study(tmp_path / "src")
    assert main(["src", *flags]) == 2
    assert message in capsys.readouterr().err


def test_flags_of_dicom_are_refused_for_other_datasets(tmp_path, capsys):
    (tmp_path / "dataset.json").write_text("{}")
    for flag in ("--merge", "--list"):
        assert main([str(tmp_path), str(tmp_path.parent / "o"), flag]) == 2
        assert f"{flag} is for DICOM" in capsys.readouterr().err


def test_an_object_that_was_not_chosen_keeps_its_scan_from_passing_for_empty(tmp_path):
    """Even if it lies in a study of its own."""
    study(tmp_path / "src")

    def move(item):
        item.StudyInstanceUID = "7.7.7"

    edit(tmp_path / "src" / "seg.dcm", move)
    out = tmp_path / "o"
    assert convert(tmp_path / "src", out, "--unannotated-empty", "--objects", "RTSTRUCT") == 3
    assert not (out / "imagesTr").exists()
    assert convert(tmp_path / "src", tmp_path / "o2", "--objects", "SEG") == 0
    np.testing.assert_array_equal(only_case(tmp_path / "o2")[1].array, two_lesions()[0])


def test_brackets_in_labels_are_nothing_special(tmp_path):
    slices = study(tmp_path / "src", seg=False)
    ids, masks = two_lesions()
    write_seg(tmp_path / "src" / "seg.dcm", slices, masks, ["Met [1]", "Met 1"])
    assert convert(tmp_path / "src", tmp_path / "o", "--lesions", "met [1]") == 0
    np.testing.assert_array_equal(only_case(tmp_path / "o")[1].array, ids == 1)
