import argparse
import errno
import fcntl
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from bonemet_auto.commands import plan_and_preprocess
from bonemet_auto.commands import train as command
from bonemet_auto.commands.common import parse_duration
from bonemet_auto.commands.fold_folder import held_alone
from bonemet_auto.commands.train import _conclude, main
from bonemet_auto.errors import StoppedError
from bonemet_auto.inference import predict
from bonemet_auto.plan_schema import Plan
from bonemet_auto.result_schema import OperatingPoint
from bonemet_auto.schema import read_json, write_json
from bonemet_auto.training import budget, log
from tests.cohort import write_cohort
from tests.unit.training_fakes import training_plan

NAME = "Dataset001_Tiny"


@pytest.fixture(scope="module", autouse=True)
def no_pictures():
    """Drawing takes longer than training here."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(log, "_draw", lambda table, path: path.write_bytes(b"no picture"))
        yield


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A raw, planned and preprocessed dataset whose plan is the tiny network."""
    root = tmp_path_factory.mktemp("root ä")
    write_cohort(root / "raw" / NAME, 5)
    flags = ["-d", "1", "--root", str(root), "-np", "1", "--planner", "fast"]
    assert plan_and_preprocess.main(flags) == 0
    path = root / "preprocessed" / NAME / "default" / "plan.json"
    planned, tiny = read_json(path, Plan), training_plan((4, 8, 8))
    kept = {name: getattr(planned, name) for name in ("dataset", "spacing_mm", "window_hu")}
    write_json(path, tiny.model_copy(update=kept))
    return root


@pytest.fixture
def root(prepared, tmp_path):
    """A copy of it, for a run of its own."""
    shutil.copytree(prepared, tmp_path / "root")
    return tmp_path / "root"


def train(root, *flags, fold="0"):
    return main(["1", fold, "--root", str(root), "--device", "cpu", "--workers", "0", *flags])


def refused(capsys, code, *parts):
    shown = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and len(shown) >= 1
    assert shown[-1].startswith("bonemet_train: ")
    for part in parts:
        assert part in shown[-1]


def fold_of(root):
    return root / "results" / NAME / "default" / "fold_0"


def weights(root):
    return torch.load(fold_of(root) / "checkpoint_last.pt", weights_only=True)["ema"]


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def trained(prepared, tmp_path_factory):
    root = tmp_path_factory.mktemp("trained") / "root"
    shutil.copytree(prepared, root)
    assert train(root, "--iterations", "24", "--seed", "3") == 0
    return root


def test_a_fold_holds_all_that_the_formats_promise(trained):
    folder = fold_of(trained)
    files = {path.name for path in folder.iterdir()}
    wanted = {"plan.json", "dataset.json", "checkpoint_last.pt", "metrics.csv", "progress.png"}
    assert files == wanted | {"samples.png", "operating_point.json", "validation"}
    assert read_json(folder / "operating_point.json", OperatingPoint).rule
    splits = json.loads((trained / "preprocessed" / NAME / "splits.json").read_text())
    cases = {path.stem for path in (folder / "validation").glob("case_*.json")}
    assert cases == set(splits["validation"][0])
    assert pd.read_csv(folder / "metrics.csv")["step"].tolist()[-1] == 24


def test_a_trained_fold_is_not_written_over_unasked(trained, capsys):
    refused(capsys, train(trained), "--resume", "--overwrite", str(fold_of(trained)))


def test_resume_takes_length_and_seed_from_the_run(trained, root, monkeypatch):
    """The seed of the samples too, though nobody repeats --seed."""
    step, left = budget.Trainer.step, iter(range(13))

    def breaks_off(self, number, batch):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return step(self, number, batch)

    with monkeypatch.context() as patched:
        patched.setattr(budget.Trainer, "step", breaks_off)
        assert train(root, "--iterations", "24", "--seed", "3") == 4
    assert train(root, "--resume") == 0
    assert same(weights(root), weights(trained))
    assert pd.read_csv(fold_of(root) / "metrics.csv")["step"].tolist() == [12, 24]


def test_resume_with_nothing_there_is_refused(root, capsys):
    refused(capsys, train(root, "--resume"), "nothing to resume", str(fold_of(root)))


def test_resume_with_another_plan_is_refused(root, capsys):
    assert train(root, "--iterations", "1") == 0
    path = root / "preprocessed" / NAME / "default" / "plan.json"
    plan = read_json(path, Plan)
    wider = plan.model_copy(update={"training": plan.training.model_copy(update={"epochs": 7})})
    write_json(path, wider)
    refused(capsys, train(root, "--resume"), "plan default is not the one in", "--overwrite")


def test_overwrite_starts_anew_and_an_early_stop_leaves_nothing_to_mix_up(root, monkeypatch):
    assert train(root, "--iterations", "1") == 0
    first = weights(root)

    def stopped(self, number, batch):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(budget.Trainer, "step", stopped)
        assert train(root, "--iterations", "1", "--overwrite") == 4
    left = {path.name for path in fold_of(root).iterdir()}
    assert not left & {"checkpoint_last.pt", "operating_point.json"}
    assert train(root, "--iterations", "1") == 0
    assert same(first, weights(root))


def test_a_truncated_checkpoint_is_refused_by_name(root, trained, capsys):
    shutil.copytree(fold_of(trained), fold_of(root))
    path = fold_of(root) / "checkpoint_last.pt"
    path.write_bytes(path.read_bytes()[:5000])
    refused(capsys, train(root, "--resume"), str(path))


def test_missing_raw_files_are_named_before_training(root, capsys):
    splits = json.loads((root / "preprocessed" / NAME / "splits.json").read_text())
    case = splits["validation"][0][0]
    (root / "raw" / NAME / "imagesTr" / f"{case}_0000.nii.gz").unlink()
    refused(capsys, train(root, "--iterations", "1"), case)
    assert not fold_of(root).exists()


@pytest.mark.parametrize(
    ("flags", "fold", "said"),
    [
        ((), "7", "has folds 0 to 4, not 7"),
        (("-p", "other"), "0", "bonemet_plan_and_preprocess"),
        (("--device", "tpu9"), "0", "--device tpu9"),
        (("--time-budget", "0s"), "0", "--time-budget of"),
        (("--time-budget", "1s"), "0", "give at least"),
    ],
)
def test_impossible_requests_are_refused_in_a_line(root, capsys, flags, fold, said):
    refused(capsys, train(root, *flags, fold=fold), said)
    assert not fold_of(root).exists()


@pytest.mark.parametrize(
    "flags",
    [
        ("--epochs", "0"),
        ("--iterations", "-3"),
        ("--seed", "-1"),
        ("--workers", "-1"),
        ("--time-budget", "soon"),
        ("--epochs", "2", "--iterations", "3"),
        ("--resume", "--overwrite"),
    ],
)
def test_impossible_flags_are_refused_by_the_parser(root, capsys, flags):
    with pytest.raises(SystemExit) as stopped:
        train(root, *flags)
    assert stopped.value.code == 2 and flags[0] in capsys.readouterr().err


def test_epochs_are_those_of_the_plan(root):
    assert train(root, "--epochs", "2") == 0
    assert pd.read_csv(fold_of(root) / "metrics.csv")["step"].tolist() == [4, 8]


def test_a_budget_becomes_a_number_of_steps_that_is_stored(root, monkeypatch):
    given = []
    monkeypatch.setattr(budget, "steps_for_budget", lambda *a: (given.append(a[2:]), 5)[1])
    assert train(root, "--time-budget", "10m") == 0
    validation, _, _, left_s, _ = given[0]
    assert 500 < left_s < 600 and len(validation) >= 1
    stored = torch.load(fold_of(root) / "checkpoint_last.pt", weights_only=True)["progress"]
    assert stored["total_steps"] == stored["step"] == 5


def test_a_validation_case_that_fails_is_listed_and_the_run_ends_with_3(root, monkeypatch, caplog):
    splits = json.loads((root / "preprocessed" / NAME / "splits.json").read_text())
    path = root / "raw" / NAME / "imagesTr" / f"{splits['validation'][0][0]}_0000.nii.gz"
    path.write_bytes(path.read_bytes()[:300])
    with caplog.at_level(logging.INFO):
        assert train(root, "--iterations", "1") == 3
    failed = json.loads((fold_of(root) / "validation" / "failed_cases.json").read_text())
    assert [item["case"] for item in failed] == [splits["validation"][0][0]]
    assert splits["validation"][0][0] in caplog.text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("8h", 28800), ("2d", 172800), (" 1.5H ", 5400)],
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "-5m", "1h30m", "5 m", "1e3", "nan", "5w"])
def test_other_texts_are_no_durations(text):
    with pytest.raises(argparse.ArgumentTypeError, match="30m"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["90", " 0 ", "1.5"])
def test_a_number_without_a_unit_is_refused_as_minutes_may_be_meant(text):
    number = text.strip()
    with pytest.raises(argparse.ArgumentTypeError, match=f"{number}s .*, {number}m "):
        parse_duration(text)


def test_help_comes_without_torch():
    script = (
        "import sys; from bonemet_auto.commands.train import main\n"
        "try: main(['-h'])\nexcept SystemExit: sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, stdout=subprocess.DEVNULL)
    assert done.returncode == 0


def test_another_fold_may_give_the_first_weights(trained, root, capsys, caplog):
    caplog.set_level(logging.INFO)
    given = fold_of(trained)
    for where in (given, given / "checkpoint_last.pt"):
        flags = ("--iterations", "1", "--init-weights", str(where), "--overwrite")
        assert train(root, *flags) == 0
        assert " taken, 0 kernels resized, 0 left fresh, 0 unused" in caplog.text
        # One step of warm-up away from them, and far from a fresh network.
        first, theirs = weights(root), weights(trained)
        moved = sum((first[name] - theirs[name]).norm() for name in first)
        assert moved < 0.05 * sum(value.norm() for value in theirs.values())
    refused(capsys, train(root, "--resume", "--init-weights", str(given)), "--init-weights")
    nowhere = str(root / "nowhere")
    refused(capsys, train(root, "--overwrite", "--init-weights", nowhere), nowhere)


def test_all_cases_train_one_model_with_the_thresholds_of_the_folds(trained, tmp_path, caplog):
    root = tmp_path / "root"
    shutil.copytree(trained, root)
    whole = ["1", "all", "--root", str(root), "--iterations", "4", "--workers", "0"]
    with caplog.at_level("INFO"):
        assert main(whole) == 0
    assert "fold all" in caplog.text and "5 cases" in caplog.text
    assert "nothing to validate on; " in caplog.text
    folder = fold_of(root).with_name("fold_all")
    borrowed = read_json(folder / "operating_point.json", OperatingPoint)
    own = read_json(fold_of(root) / "operating_point.json", OperatingPoint)
    assert borrowed.score_threshold == own.score_threshold and borrowed.sensitivity is None
    assert not (folder / "validation").exists() and not (folder / "samples.png").exists()
    shutil.rmtree(fold_of(root))
    assert main([*whole, "--overwrite"]) == 0
    fallback = read_json(folder / "operating_point.json", OperatingPoint)
    assert fallback.score_threshold == 0.5 and "instead of" in fallback.rule


def test_all_folds_train_in_turn_and_resume_skips_the_finished_ones(root, capsys, caplog):
    caplog.set_level(logging.INFO)
    refused(capsys, train(root, "--resume", fold="all_folds"), "nothing to resume")
    assert train(root, "--iterations", "2", fold="all_folds") == 0
    folders = [fold_of(root).with_name(f"fold_{k}") for k in range(5)]
    assert all((folder / "operating_point.json").is_file() for folder in folders)
    refused(capsys, train(root, fold="all_folds"), "fold_0", "--resume", "--overwrite")
    shutil.rmtree(folders[1])
    (folders[3] / "operating_point.json").unlink()
    caplog.clear()
    assert train(root, "--iterations", "3", "--resume", fold="all_folds") == 0
    assert "fold 0 is finished" in caplog.text and "fold 3 is finished" not in caplog.text
    steps = [pd.read_csv(folder / "metrics.csv")["step"].tolist()[-1] for folder in folders]
    assert steps == [2, 3, 2, 2, 2]
    path = root / "preprocessed" / NAME / "default" / "plan.json"
    kept = read_json(path, Plan)
    write_json(path, kept.model_copy(update={"batch_size": 3}))
    refused(capsys, train(root, "--resume", fold="all_folds"), "plan default is not the one")
    write_json(path, kept)
    with pytest.raises(SystemExit) as ended:
        train(root, fold="every")
    assert ended.value.code == 2 and "all_folds" in capsys.readouterr().err


def test_all_folds_started_over_leave_no_old_fold_for_finished(root, monkeypatch):
    """Stopped in the first of them; what --resume then trains, and with which weights."""
    begun = []

    def stopped(options, _started, **_processes):
        begun.append((options.fold, options.resume, options.init_weights))
        raise StoppedError("stopped")

    for fold in (0, 1):
        assert train(root, "--iterations", "2", fold=str(fold)) == 0
    source = str(root / "elsewhere")
    with monkeypatch.context() as patched:
        patched.setattr(command, "_train_fold", stopped)
        assert train(root, "--overwrite", "--init-weights", source, fold="all_folds") == 4
        assert not list(fold_of(root).parent.glob("fold_*/operating_point.json"))
        (fold_of(root) / "checkpoint_previous.pt").touch()
        assert train(root, "--resume", "--init-weights", source, fold="all_folds") == 4
        (fold_of(root) / "checkpoint_previous.pt").unlink()
        (fold_of(root).with_name("fold_2")).mkdir()
        (fold_of(root).with_name("fold_2") / "checkpoint_last.pt").touch()
        assert train(root, "--resume", "--init-weights", source, fold="all_folds") == 4
    assert begun == [(0, False, Path(source)), (0, True, None), (0, False, Path(source))]


def test_weights_of_another_fold_raise_a_warning(root, caplog):
    assert train(root, "--iterations", "2") == 0
    for fold, warned in (("0", False), ("1", True)):
        caplog.clear()
        flags = ("--iterations", "1", "--overwrite", "--init-weights", str(fold_of(root)))
        assert train(root, *flags, fold=fold) == 0
        assert ("validation cases of fold 1" in caplog.text) == warned


def test_a_run_that_finds_nothing_ends_with_a_hint(caplog, tmp_path):
    fields = {"score_threshold": 0.5, "patient_threshold": 0.5, "no_lesion_probability": 0.5}
    for sensitivity, hinted in ((0.0, True), (0.5, False), (None, False)):
        caplog.clear()
        point = OperatingPoint(**fields, rule="", sensitivity=sensitivity, fp_per_scan=1.0)
        assert _conclude(point, tmp_path) == 0
        assert ("no lesion of the validation cases was found" in caplog.text) == hinted


def test_hits_of_validation_are_those_of_the_masks(prepared, tmp_path):
    """Annotated masks given back as predictions find every lesion."""
    from scipy import ndimage

    from bonemet_auto.consolidation.gather import held_out_case, read_reference
    from bonemet_auto.images import read_instances
    from bonemet_auto.inference.place import Lesion
    from bonemet_auto.inference.predict import CaseResult
    from bonemet_auto.raw_dataset import open_raw_dataset

    case = open_raw_dataset(prepared / "raw" / NAME).training[1]
    volume = read_instances(case.label)
    lesions = []
    for number, region in enumerate(ndimage.find_objects(volume.array), 1):
        mask = volume.array[region] == number
        start = tuple(edge.start for edge in region)
        fields = {"score": 1 - number / 10, "p_lung": 0.5, "start": start, "mask": mask}
        fields["volume_mm3"] = 1.0
        given = {name: fields.get(name) for name in Lesion.__dataclass_fields__}
        lesions.append(Lesion(**given))
    drawn, reference = CaseResult(lesions, []), read_reference(case)
    held_out = held_out_case(case.case, 3, volume.geometry, drawn, reference, 1)
    assert held_out.dice.tolist() == [1, 1]
    assert held_out.fold == 3 and held_out.is_lung.tolist() == [1, 1]
    scored = held_out.scored()
    assert scored.matched.tolist() == [1, 1] and scored.n_reference == 2
    assert scored.scores.tolist() == [0.9, 0.8] and scored.patient_label == 1
    empty = held_out_case(case.case, 0, volume.geometry, CaseResult([], []), reference, 1)
    nothing = empty.scored()
    assert nothing.matched.shape == (0,) and nothing.n_reference == 2


def test_the_environment_names_the_root(trained, monkeypatch, capsys):
    monkeypatch.setenv("BONEMET_ROOT", os.fspath(trained))
    refused(capsys, main(["Tiny", "0", "--device", "cpu"]), "--resume")


def test_a_fold_that_another_process_trains_is_left_alone(root, capsys):
    assert train(root, "--iterations", "1") == 0
    before = (fold_of(root) / "checkpoint_last.pt").read_bytes()
    with held_alone(fold_of(root)):
        for fold, flag in (("0", "--resume"), ("0", "--overwrite"), ("all_folds", "--overwrite")):
            said = (f"another process is training in {fold_of(root)}", "--resume")
            refused(capsys, train(root, flag, fold=fold), *said)
    assert (fold_of(root) / "checkpoint_last.pt").read_bytes() == before
    assert (fold_of(root) / "operating_point.json").is_file()
    assert train(root, "--resume") == 0


def interrupt(monkeypatch, module, name, number):
    """Send a signal in place of a call."""
    monkeypatch.setattr(module, name, lambda *_, **__: os.kill(os.getpid(), number))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_validation_cases_are_predicted_leaves_them_to_resume(
    root, monkeypatch, capsys, number
):
    with monkeypatch.context() as patched:
        interrupt(patched, predict, "find_lesions", number)
        assert train(root, "--iterations", "2") == 4
    said = capsys.readouterr().err
    assert f"stopped by {'Ctrl-C' if number == signal.SIGINT else 'SIGTERM'}" in said
    assert "--resume" in said and "Traceback" not in said
    assert not (fold_of(root) / "operating_point.json").exists()
    assert train(root, "--resume") == 0
    assert (fold_of(root) / "operating_point.json").is_file()


def test_a_signal_while_a_budget_is_timed_leaves_nothing(root, monkeypatch, capsys):
    interrupt(monkeypatch, budget, "step_seconds", signal.SIGTERM)
    assert train(root, "--time-budget", "10m") == 4
    assert "nothing was trained yet; give the same command again" in capsys.readouterr().err
    assert not fold_of(root).exists()


def test_the_lock_of_a_killed_process_is_gone(tmp_path):
    holder = (
        "import os, signal, sys; from pathlib import Path\n"
        "from bonemet_auto.commands.fold_folder import held_alone\n"
        "with held_alone(Path(sys.argv[1])):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    folder = tmp_path / "results" / "fold_0"
    killed = subprocess.run([sys.executable, "-c", holder, str(folder)], check=False)
    assert killed.returncode == -signal.SIGKILL and not folder.exists()
    with held_alone(folder):
        pass


def test_where_there_are_no_locks_a_warning_says_so(tmp_path, monkeypatch, caplog):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with held_alone(tmp_path / "fold_0"):
        assert "No locks available" in caplog.text and str(tmp_path / "fold_0") in caplog.text
