import json
from pathlib import Path

import numpy as np
import pytest

from bonemet_auto.commands.convert import main
from bonemet_auto.convert.write import components
from bonemet_auto.errors import DataError
from bonemet_auto.images import Volume, read_instances, write_volume
from bonemet_auto.integrity import inspect_dataset
from bonemet_auto.raw_dataset import open_raw_dataset, read_case_labels
from tests.cohort import GEOMETRY, SHAPE, make_scan

CLASSES = {"background": 0, "bone": 1, "lung": 2, "kidney": 3}


def semantic():
    """Bone with two separate lung lesions and one of the kidney that touches the second."""
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[:, 5:12, 6:14] = 1
    drawn[2:4, 6:9, 7:10] = 2
    drawn[8:10, 6:9, 7:10] = 2
    drawn[10:12, 6:9, 7:10] = 3
    return drawn


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(path, Volume(array, GEOMETRY))


def nnunet(folder, description=None, cases=("a", "b"), suffix="_0000"):
    for number, case in enumerate(cases):
        hu, _ = make_scan(np.random.default_rng(number))
        save(folder / "imagesTr" / f"{case}{suffix}.nii.gz", hu)
        save(folder / "labelsTr" / f"{case}.nii.gz", semantic())
    save(folder / "imagesTs" / f"t{suffix}.nii.gz", make_scan(np.random.default_rng(9))[0])
    described = {"channel_names": {"0": "CT"}, "labels": CLASSES, "numTraining": len(cases)}
    text = json.dumps(described if description is None else description)
    (folder / "dataset.json").write_text(text)
    return folder


def nndetection(folder, yaml=True, labels='{"0": lung, "1": other}', classes=None):
    hu, ids = make_scan(np.random.default_rng(0))
    save(folder / "raw_splitted/imagesTr/a_0000.nii.gz", hu)
    save(folder / "raw_splitted/labelsTr/a.nii.gz", ids)
    path = folder / "raw_splitted/labelsTr/a.json"
    path.write_text(json.dumps({"instances": classes or {"1": 0, "2": 1}}))
    if yaml:
        text = f'task: Task011_X\nname: X\ndim: 3\nlabels: {labels}\nmodalities: {{"0": CT}}\n'
        (folder / "dataset.yaml").write_text(text)
    else:
        about = {"name": "X", "labels": {"0": "lung", "1": "other"}, "modalities": {"0": "CT"}}
        (folder / "dataset.json").write_text(json.dumps(about))
    return folder


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def convert(source, out, *flags):
    return main([str(source), str(out), *flags])


def classes_of(out, case="a"):
    return read_case_labels(out / "labelsTr" / f"{case}.json").instances


def test_class_masks_become_instances_of_named_classes(tmp_path):
    source, out = nnunet(tmp_path / "src"), tmp_path / "Dataset005_X"
    before = contents(source)
    assert convert(source, out, "--lesions", "lung", "kidney", "--lung", "lung") == 0
    assert contents(source) == before
    raw = open_raw_dataset(out)
    assert raw.info.labels == {"lung_metastasis": 0, "kidney": 1}
    assert raw.info.positive_class == 0 and raw.info.num_training == 2
    assert classes_of(out) == {1: 0, 2: 0, 3: 1}
    ids = read_instances(out / "labelsTr" / "a.nii.gz").array
    drawn = semantic()
    assert np.array_equal(ids > 0, drawn > 1)
    assert set(ids[drawn == 2]) == {1, 2} and set(ids[drawn == 3]) == {3}
    image = out / "imagesTr" / "a_0000.nii.gz"
    assert image.is_symlink() and image.resolve() == source / "imagesTr" / "a_0000.nii.gz"
    assert (out / "imagesTs" / "t_0000.nii.gz").is_symlink() and not (out / "labelsTs").exists()


def test_what_comes_out_passes_the_integrity_check(tmp_path):
    source = nnunet(tmp_path / "src")
    out = tmp_path / "Dataset005_X"
    assert convert(source, out, "--lesions", "lung", "kidney", "--lung", "lung") == 0
    inspection = inspect_dataset(open_raw_dataset(out), None, 1)
    assert inspection.faults == []
    assert [len(case.lesions) for case in inspection.fingerprint.cases] == [3, 3]


def test_instance_masks_are_linked(tmp_path):
    for yaml in (True, False):
        source, out = nndetection(tmp_path / f"src{yaml}", yaml), tmp_path / f"Dataset00{yaml:d}_X"
        assert convert(source, out, "--lung", "lung") == 0
        label = out / "labelsTr" / "a.nii.gz"
        assert label.is_symlink() and classes_of(out) == {1: 0, 2: 1}
        assert open_raw_dataset(out).info.positive_class == 0


def test_one_class_that_is_not_lung_leaves_the_source_unknown(tmp_path):
    source = nndetection(tmp_path / "src", labels='{"0": lesion}', classes={"1": 0, "2": 0})
    assert convert(source, tmp_path / "Dataset001_X") == 0
    assert classes_of(tmp_path / "Dataset001_X") == {1: None, 2: None}
    source = nnunet(tmp_path / "src2")
    assert convert(source, tmp_path / "Dataset002_X", "--lesions", "lung", "--lung", "lung") == 0
    assert classes_of(tmp_path / "Dataset002_X") == {1: 1, 2: 1}
    flags = ("--lesions", "lung", "kidney", "--source-unknown")
    assert convert(source, tmp_path / "Dataset003_X", *flags) == 0
    assert classes_of(tmp_path / "Dataset003_X") == {1: None, 2: None, 3: None}


def test_decathlon_names_and_further_channels(tmp_path):
    labels = {"0": "background", "1": "bone", "2": "lung", "3": "kidney"}
    about = {"modality": {"0": "CT"}, "labels": labels}
    lesions = ("--lung", "lung", "--lesions", "lung", "kidney")
    source = nnunet(tmp_path / "msd", about, suffix="")
    assert convert(source, tmp_path / "Dataset001_X", *lesions) == 0
    assert (tmp_path / "Dataset001_X" / "imagesTr" / "a_0000.nii.gz").is_symlink()
    about |= {"modality": {"0": "PET", "1": "CT"}}
    source = nnunet(tmp_path / "pet", about, suffix="_0001")
    nnunet(tmp_path / "pet", about)
    assert convert(source, tmp_path / "Dataset002_X", *lesions) == 0
    link = tmp_path / "Dataset002_X" / "imagesTr" / "a_0000.nii.gz"
    assert link.resolve().name == "a_0001.nii.gz"


def test_files_listed_in_the_description(tmp_path, monkeypatch):
    nnunet(tmp_path / "elsewhere")
    monkeypatch.setenv("SCANS", str(tmp_path / "elsewhere"))
    source = tmp_path / "src"
    source.mkdir()
    files = {"images": ["$SCANS/imagesTr/a_0000.nii.gz"], "label": "$SCANS/labelsTr/a.nii.gz"}
    about = {"channel_names": {"0": "CT"}, "labels": CLASSES, "dataset": {"one": files}}
    (source / "dataset.json").write_text(json.dumps(about))
    flags = ("--lesions", "lung", "kidney", "--lung", "kidney")
    assert convert(source, tmp_path / "Dataset001_X", *flags) == 0
    assert classes_of(tmp_path / "Dataset001_X", "one") == {1: 0, 2: 0, 3: 1}


def test_a_case_that_fails_does_not_stop_the_others(tmp_path):
    source, out = nnunet(tmp_path / "src", cases=("a", "b", "c")), tmp_path / "Dataset001_X"
    broken = source / "labelsTr" / "b.nii.gz"
    broken.write_bytes(broken.read_bytes()[:-30])
    (source / "labelsTr" / "c.nii.gz").unlink()
    assert convert(source, out, "--lesions", "lung", "--lung", "lung") == 3
    failed = json.loads((out / "failed_cases.json").read_text())
    assert [case["case"] for case in failed] == ["b", "c"]
    assert str(broken) in failed[0]["reason"] and "no label map" in failed[1]["reason"]
    raw = open_raw_dataset(out)
    assert [case.case for case in raw.training] == ["a"] and raw.info.num_training == 1


def test_values_that_nobody_named_are_not_dropped(tmp_path):
    about = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "bone": 1, "lung": 2}}
    source, out = nnunet(tmp_path / "src", about, cases=("a",)), tmp_path / "Dataset001_X"
    assert convert(source, out, "--lesions", "lung", "--lung", "lung") == 3
    (failed,) = json.loads((out / "failed_cases.json").read_text())
    assert "does not name [3]" in failed["reason"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "which of the classes bone, lung, kidney is lung-cancer metastasis"),
        (("--lung", "liver"), "no class 'liver'"),
        (("--lesions", "lung", "rib"), "no class 'rib'"),
    ],
)
def test_unclear_classes_are_refused_before_anything_is_removed(tmp_path, capsys, flags, message):
    out = tmp_path / "Dataset001_X"
    assert convert(nnunet(tmp_path / "src"), out, "--lung", "lung") == 0
    before = contents(out)
    assert convert(tmp_path / "src", out, "--overwrite", *flags) == 2
    assert message in capsys.readouterr().err
    assert contents(out) == before


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"labels": CLASSES, "channel_names": {"0": "MR"}}, "0 of the channels ['MR']"),
        ({"labels": CLASSES, "channel_names": {"CT": 0}}, "0 of the channels [0]"),
        ({"channel_names": {"0": "CT"}}, '"labels" is missing'),
        ({"labels": {"x": [1, 2]}, "channel_names": {"0": "CT"}}, "Regions"),
        ([], "no table"),
        ({"labels": {"other": 0, "lung": 1}, "channel_names": {"0": "CT"}}, "needs no conversion"),
        ({"labels": CLASSES, "channel_names": {"0": "CT"}, "dataset": {"a": {}}}, "case a needs"),
    ],
)
def test_descriptions_that_cannot_be_used(tmp_path, capsys, about, message):
    source = nnunet(tmp_path / "src", about)
    assert convert(source, tmp_path / "Dataset001_X", "--lung", "lung") == 2
    error = capsys.readouterr().err
    assert message in error and "dataset.json" in error


def test_folders_that_cannot_be_used(tmp_path, capsys):
    source, out = nnunet(tmp_path / "src"), tmp_path / "Dataset001_X"
    cases = {
        tmp_path / "gone": (out, "does not exist"),
        tmp_path: (out, "holds none of"),
        source: (source / "out", "never edited"),
    }
    for folder, (target, message) in cases.items():
        assert convert(folder, target, "--lung", "lung") == 2
        assert message in capsys.readouterr().err
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    assert convert(source, out, "--lung", "lung") == 2
    assert convert(source, out, "--lung", "lung", "--overwrite") == 2
    assert "left alone" in capsys.readouterr().err
    assert (out / "mine.txt").is_file()
    (source / "dataset.json").write_text("{")
    assert convert(source, tmp_path / "Dataset002_X") == 2
    assert "cannot be read" in capsys.readouterr().err


def test_components_touch_by_corners_and_have_a_limit():
    drawn = np.zeros((2, 600, 600), np.uint16)
    drawn[0, 0, 0] = drawn[1, 1, 1] = 5
    ids, classes = components(drawn, {5: 1})
    assert classes == {1: 1} and (ids > 0).sum() == 2
    drawn[:] = 0
    drawn[0, ::2, ::2] = 5
    with pytest.raises(DataError, match="65535"):
        components(drawn, {5: 1})


def test_a_conversion_that_was_cut_short_is_done_anew(tmp_path):
    source, out = nnunet(tmp_path / "src"), tmp_path / "Dataset001_X"
    left = tmp_path / ".Dataset001_X.partial"
    save(left / "imagesTr" / "old_0000.nii.gz", make_scan(np.random.default_rng(0))[0])
    assert convert(source, out, "--lung", "lung") == 0
    assert not left.exists() and not (out / "imagesTr" / "old_0000.nii.gz").exists()
    assert Path(out / "dataset.json").is_file()
