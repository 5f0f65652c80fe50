import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bonemet_auto.errors import DataError, UsageError
from bonemet_auto.files import (
    atomic_folder,
    atomic_write,
    data_root,
    find_dataset,
    require_file,
    results_folder,
    sha256_file,
    write_text,
)


def test_text_arrives_whole_in_a_folder_made_on_the_way(tmp_path):
    path = tmp_path / "ä b" / "deep" / "note.txt"
    write_text(path, "Grüße\n")
    assert path.read_bytes() == "Grüße\n".encode()
    assert list(path.parent.iterdir()) == [path]


def test_the_temporary_file_keeps_the_ending_and_is_hidden(tmp_path):
    with atomic_write(tmp_path / "case.nii.gz") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.endswith("case.nii.gz") and temporary.name.startswith(".")
        temporary.write_bytes(b"1")


def test_an_exception_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(KeyError), atomic_write(path) as temporary:
        temporary.write_text("half of the n")
        raise KeyError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_writer_that_wrote_nothing_does_not_remove_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(FileNotFoundError), atomic_write(path):
        pass
    assert path.read_text() == "old"


def test_a_kill_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from bonemet_auto.files import atomic_write\n"
        "with atomic_write(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half of the n')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


@pytest.mark.parametrize("name", ["m", "deep/er/m"])
def test_a_folder_appears_whole_and_replaces_another(tmp_path, name):
    for text in ("old", "new"):
        with atomic_folder(tmp_path / name) as folder:
            assert not list(folder.iterdir())
            (folder / text).touch()
            assert text == "new" or not (tmp_path / name).exists()
        assert [path.name for path in (tmp_path / name).iterdir()] == [text]
    assert not [path for path in tmp_path.rglob(".*")]


@pytest.mark.parametrize("name", ["old", "deep/er/m"])
def test_an_exception_leaves_the_old_folder_and_no_other(tmp_path, name):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "a").touch()
    with pytest.raises(KeyError), atomic_folder(tmp_path / name) as folder:
        (folder / "half").touch()
        raise KeyError
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "old", tmp_path / "old" / "a"]


def test_a_kill_leaves_the_old_folder_and_hidden_ones(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "a").touch()
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from bonemet_auto.files import atomic_folder\n"
        "with atomic_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'half').touch()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "m")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["a"]
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["m"]


def test_the_content_is_on_disk_before_the_name_is_taken(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), fsync(fd)))
    monkeypatch.setattr(Path, "replace", lambda *a: (order.append("replace"), replace(*a))[1])
    write_text(tmp_path / "a.txt", "x")
    assert order == ["fsync", "replace"]


def test_sha256_of_a_file_larger_than_a_piece(tmp_path):
    content = os.urandom(3_000_001)
    (tmp_path / "a").write_bytes(content)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_the_data_root_is_the_flag_then_the_variable_then_the_default(monkeypatch):
    monkeypatch.setenv("BONEMET_ROOT", "/somewhere")
    assert data_root(Path("here")) == Path("here")
    assert data_root(None) == Path("/somewhere")
    monkeypatch.setenv("BONEMET_ROOT", "")
    assert data_root(None) == Path("bonemet_data")
    monkeypatch.delenv("BONEMET_ROOT")
    assert data_root(None) == Path("bonemet_data")


@pytest.fixture
def root(tmp_path):
    for name in ("raw/Dataset001_Spine", "raw/Dataset012_Hüfte links", "raw/notes", "raw/.cache"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "preprocessed" / "Dataset001_Spine").mkdir(parents=True)
    (tmp_path / "preprocessed" / "Dataset007_Old").mkdir()
    (tmp_path / "raw" / "Dataset003_file").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("1", "Dataset001_Spine"),
        ("001", "Dataset001_Spine"),
        ("Spine", "Dataset001_Spine"),
        ("Dataset001_Spine", "Dataset001_Spine"),
        ("Hüfte links", "Dataset012_Hüfte links"),
        ("7", "Dataset007_Old"),
    ],
)
def test_a_dataset_is_found_by_number_short_and_full_name(root, given, name):
    assert find_dataset(root, given) == name


@pytest.mark.parametrize("given", ["3", "Pelvis", "Spin", "", "²"])
def test_an_unknown_dataset_is_refused_with_what_is_there(root, given):
    with pytest.raises(UsageError) as refused:
        find_dataset(root, given)
    said = str(refused.value)
    assert f"no dataset '{given}'" in said and str(root) in said and "BONEMET_ROOT" in said
    assert "Dataset001_Spine, Dataset007_Old, Dataset012_Hüfte links" in said


def test_a_number_that_two_datasets_share_is_refused_with_both_names(root):
    (root / "raw" / "Dataset001_Pelvis").mkdir()
    with pytest.raises(UsageError, match="'1' fits Dataset001_Pelvis, Dataset001_Spine under"):
        find_dataset(root, "1")
    assert find_dataset(root, "Pelvis") == "Dataset001_Pelvis"


def test_an_empty_root_has_none(tmp_path):
    with pytest.raises(UsageError, match=r"datasets there: none"):
        find_dataset(tmp_path / "missing", "1")


def test_results_are_sorted_by_dataset_and_plan():
    assert results_folder(Path("r"), "Dataset001_A", "p") == Path("r/results/Dataset001_A/p")


def test_a_missing_file_is_named_with_the_remedy(tmp_path):
    with pytest.raises(DataError, match=r"plan.json does not exist. Make it."):
        require_file(tmp_path / "plan.json", "Make it.")
    with pytest.raises(DataError):
        require_file(tmp_path, "A folder is no file.")
