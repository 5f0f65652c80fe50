"""Twenty scans through the user's command, while it is killed, stopped, or fed broken files."""

import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bonemet_auto.commands import predict
from bonemet_auto.geometry import Geometry
from bonemet_auto.images import Volume, read_instances, write_volume
from bonemet_auto.result_schema import CasePrediction
from bonemet_auto.schema import read_json
from tests.cohort import make_scan
from tests.tiny_model import PLAN, write_model

CASES = 20
WINDOW = (slice(1, 9), slice(1, 17), slice(1, 17))
"""Of a scan: the networks see all of it at once, so that twenty take seconds."""
NAMES = [f"case {number:02d}" for number in range(CASES)]
FORMATS = ("--formats", "itk-snap", "seg.nrrd")
FILES_PER_CASE = 6
COMMAND = "import sys; from bonemet_auto.commands.predict import main; sys.exit(main())"
DYING_COMMAND = """
import os, signal, sys
fsync, left = os.fsync, [int(sys.argv.pop(1))]
def die_before_the_last(descriptor):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)
os.fsync = die_before_the_last
from bonemet_auto.commands.predict import main
sys.exit(main())
"""
"""Is killed while it writes a file, which is complete but for its name."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "model", folds=(0,))


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    for number, name in enumerate(NAMES):
        hu = make_scan(np.random.default_rng(number))[0][WINDOW]
        scan = Volume(hu, Geometry(hu.shape, PLAN.spacing_mm))
        write_volume(folder / f"{name}_0000.nii.gz", scan)
    return folder


@pytest.fixture(scope="module")
def straight(model, scans, tmp_path_factory):
    """What a run gives that nothing befalls."""
    out = tmp_path_factory.mktemp("straight") / "out"
    assert run(model, scans, out, *FORMATS) == 0
    return out


def flags_of(model, scans, out, *more):
    flags = ["-m", model, "-i", scans, "-o", out, "-device", "cpu", *more]
    return [str(flag) for flag in flags]


def run(*given):
    return predict.main(flags_of(*given))


def start(command, *flags):
    return subprocess.Popen(
        [sys.executable, "-c", command, *flags],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
    )


def results(out):
    return {path: path.stat().st_mtime_ns for path in out.glob("case*.json")}


def wait_for(process, out, n_results):
    """Until so many results are there; the moment within the next case is left to chance."""
    give_up = time.monotonic() + 120
    while len(results(out)) < n_results and process.poll() is None:
        assert time.monotonic() < give_up
        time.sleep(0.002)


def contents(out):
    """All files but the record of the run, which holds its time."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.name != "run_report.json"
    }


def require_whole(out):
    """Whatever has the name of a result is one."""
    for path in results(out):
        record = read_json(path, CasePrediction)
        drawn = np.unique(read_instances(path.with_suffix(".nii.gz")).array)
        assert set(drawn) - {0} == {lesion.id for lesion in record.lesions}
        assert (out / "slicer" / f"{path.stem}.seg.nrrd").is_file()
    for path in out.rglob("*.nii.gz"):
        assert path.name.startswith(".") or read_instances(path)


def hidden(out):
    return [path for path in out.rglob(".*") if path.is_file()]


@pytest.mark.parametrize("seed", [1, 2])
def test_a_killed_run_goes_on_to_what_an_undisturbed_one_gives(
    model, scans, straight, tmp_path, seed
):
    chance, out = random.Random(seed), tmp_path / "out"
    flags = flags_of(model, scans, out, *FORMATS, "--continue")
    written = chance.randrange(2 * FILES_PER_CASE, 8 * FILES_PER_CASE)
    with start(DYING_COMMAND, str(written), *flags) as process:
        assert process.wait() == -signal.SIGKILL, process.stderr.read()
    first = results(out)
    assert len(first) == (written - 1) // FILES_PER_CASE
    assert len(hidden(out)) == 1, "it was killed while it wrote"
    require_whole(out)
    with start(COMMAND, *flags) as process:
        wait_for(process, out, len(first) + chance.randrange(2, 6))
        process.kill()
    before = results(out)
    assert len(first) < len(before) < CASES
    require_whole(out)
    assert run(model, scans, out, *FORMATS, "--continue") == 0
    after = results(out)
    assert {path: after[path] for path in before} == before, "only the rest is done"
    assert contents(out) == contents(straight)


def test_a_run_that_is_asked_to_stop_says_how_to_go_on(model, scans, straight, tmp_path):
    out, more = tmp_path / "out", "--overwrite"
    for number, name in ((signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")):
        flags = flags_of(model, scans, out, *FORMATS, more)
        with start(COMMAND, *flags) as process:
            wait_for(process, out, len(results(out)) + 3)
            process.send_signal(number)
            said = process.communicate(timeout=60)[1]
        assert process.returncode == 4, said
        assert f"stopped by {name}; " in said and "--continue" in said
        assert "Traceback" not in said
        assert 3 <= len(results(out)) < CASES and not hidden(out)
        require_whole(out)
        more = "--continue"
    assert run(model, scans, out, *FORMATS, "--continue") == 0
    assert contents(out) == contents(straight)


def truncated(whole):
    return whole[: len(whole) // 2]


def with_garbage_for_a_header(whole):
    noise = np.random.default_rng(0).integers(0, 256, 348, dtype=np.uint8).tobytes()
    return gzip.compress(noise + gzip.decompress(whole)[348:])


FAULTS = {
    NAMES[3]: (truncated, "truncated"),
    NAMES[10]: (with_garbage_for_a_header, "header"),
    NAMES[16]: (lambda whole: b"", "empty"),
}


@pytest.fixture
def harmed(scans, tmp_path):
    folder = shutil.copytree(scans, tmp_path / "scans")
    for name, (harm, _) in FAULTS.items():
        path = folder / f"{name}_0000.nii.gz"
        path.write_bytes(harm(path.read_bytes()))
    return folder


def failures(out):
    return {
        case["case"]: case
        for path in out.glob("failed_cases*.json")
        for case in json.loads(path.read_text())
    }


def mend(name, scans, harmed):
    shutil.copy(scans / f"{name}_0000.nii.gz", harmed)


def patients(out):
    return pd.read_csv(out / "patients.csv")["case"].tolist()


def test_broken_files_leave_the_others_alone_and_are_named(model, harmed, tmp_path):
    out = tmp_path / "out"
    assert run(model, harmed, out) == 3
    assert [path.stem for path in sorted(results(out))] == sorted(set(NAMES) - set(FAULTS))
    assert patients(out) == sorted(set(NAMES) - set(FAULTS))
    listed = failures(out)
    assert listed.keys() == FAULTS.keys() and (out / "failed_cases.json").is_file()
    for name, (_, word) in FAULTS.items():
        assert str(harmed / f"{name}_0000.nii.gz") in listed[name]["reason"]
        assert word in listed[name]["reason"] and listed[name]["fix"]
    assert not hidden(out)


def test_mended_files_are_all_that_is_done_again(model, scans, straight, harmed, tmp_path):
    out = tmp_path / "out"
    for part in ("0", "1"):
        assert run(model, harmed, out, *FORMATS, "-num_parts", "2", "-part_id", part) == 3
    assert failures(out).keys() == FAULTS.keys()
    assert patients(out) == sorted(set(NAMES) - set(FAULTS)), "tables of both parts"
    before = results(out)
    first, *others = FAULTS
    mend(first, scans, harmed)
    assert run(model, harmed, out, *FORMATS, "--continue") == 3
    assert list(failures(out)) == others
    assert [path.name for path in out.glob("failed*")] == ["failed_cases.json"]
    for name in others:
        mend(name, scans, harmed)
    assert run(model, harmed, out, *FORMATS, "-num_parts", "2", "-part_id", "0", "--continue") == 0
    assert len(failures(out)) < len(others), "those of this part are mended"
    assert run(model, harmed, out, *FORMATS, "--continue") == 0
    after = results(out)
    assert {path: after[path] for path in before} == before
    assert not list(out.glob("failed*"))
    for path in out.glob("run_report*"):
        path.unlink()
    assert contents(out) == contents(straight)


def test_a_format_that_fails_is_written_by_the_next_run(model, scans, tmp_path, monkeypatch):
    folder, out = tmp_path / "scans", tmp_path / "out"
    folder.mkdir()
    for name in NAMES[:2]:
        mend(name, scans, folder)

    def broken(path, lesions):
        raise OSError("no room")

    with monkeypatch.context() as patched:
        patched.setattr("bonemet_auto.formats.label_files.write_itk_snap", broken)
        assert run(model, folder, out, "--formats", "itk-snap") == 3
    assert len(results(out)) == 2 and len(failures(out)) == 2
    assert run(model, folder, out, "--formats", "itk-snap", "--continue") == 0
    assert len(list((out / "itk-snap").iterdir())) == 2 and not failures(out)


def test_a_disk_without_room_stops_the_run_where_it_can_go_on(
    model, scans, tmp_path, monkeypatch, capsys
):
    out, sync, left = tmp_path / "out", os.fsync, iter(range(7))

    def full(descriptor):
        if next(left, None) is None:
            raise OSError(28, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        assert run(model, scans, out) == 4
    assert "No space left on device" in (said := capsys.readouterr().err)
    assert NAMES[1] in said and "--continue" in said
    assert len(results(out)) == 1 and not hidden(out)


@pytest.fixture
def bench(model, scans, tmp_path, monkeypatch):
    """A folder with a model's zip and one scan in it, to work in."""
    from bonemet_auto.commands import export

    folder = tmp_path / "work"
    folder.mkdir()
    assert export.main(["-m", str(model), "-o", str(folder / "MODEL.zip")]) == 0
    shutil.copy(scans / f"{NAMES[0]}_0000.nii.gz", folder / "one.nii.gz")
    monkeypatch.chdir(folder)
    return folder


def test_a_zip_a_scan_and_a_folder_are_all_that_is_needed(bench):
    home = bench.with_name("home")
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *["-m", "MODEL.zip", "-i", "one.nii.gz", "-o", "out"]],
        env={
            "PATH": os.defpath,
            "HOME": str(home),
            "PYTHONPATH": str(Path(predict.__file__).parents[2]),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in bench.iterdir()} == {"MODEL.zip", "one.nii.gz", "out"}
    assert {"one.json", "one.nii.gz", "candidates", "lesions.csv", "patients.csv",
            "run_report.json"} == {path.name for path in (bench / "out").iterdir()}  # fmt: skip
    assert not list(home.iterdir()), "nothing is put into the home folder"


USUAL = {"-m": "MODEL.zip", "-i": "one.nii.gz", "-o": "out"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"-m": "gone.zip"}, ["gone.zip", "does not exist", "zip"]),
        ({"-m": "one.nii.gz"}, ["one.nii.gz", "no whole zip"]),
        ({"-i": "gone.nii.gz"}, ["gone.nii.gz does not exist", "Give a CT"]),
        ({"-i": "gone.zip"}, ["gone.zip does not exist"]),
        ({"-i": "notes.txt"}, ["notes.txt holds no CT", ".nii.gz"]),
        ({"-i": "empty"}, ["empty holds no CT"]),
        ({"-o": "notes.txt"}, ["notes.txt is a file", "give a folder"]),
        ({"-o": "notes.txt/out"}, ["-o notes.txt/out cannot be written to", "another folder"]),
        ({"-o": "/proc/bonemet"}, ["-o /proc/bonemet cannot be written to"]),
        ({"-i": ".", "-o": "out"}, ["lies in the input folder", "another folder"]),
        ({"-i": ".", "-o": "."}, ["lies in the input folder"]),
        ({"--threshold": "2"}, ["'2' is no number from 0 to 1"]),
        ({"--thresold": "0.5"}, ["--thresold"]),
        ({"-num_parts": "two"}, ["two"]),
        ({"-d": "1"}, ["not allowed with"]),
        ({"--lesions": "gone.nii.gz"}, ["gone.nii.gz does not exist"]),
        ({"--formats": "pdf"}, ["pdf", "dicom"]),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_in_plain_words(bench, capsys, flags, words):
    (bench / "notes.txt").write_text("notes")
    (bench / "empty").mkdir()
    before = sorted(bench.rglob("*"))
    try:
        code = predict.main([part for pair in (USUAL | flags).items() for part in pair])
    except SystemExit as refused:
        code = refused.code
    said = capsys.readouterr().err
    assert code == 2, said
    for word in words:
        assert word in said
    assert "Traceback" not in said
    assert sorted(bench.rglob("*")) == before
