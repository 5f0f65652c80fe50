"""The commands one after the other, as a user runs them, on a tiny synthetic cohort.

Far too little training to find lesions: what is looked at is what the commands do and write.
"""

import csv
import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from bonemet_auto.commands import evaluate, phantom, plan_and_preprocess, predict, train
from bonemet_auto.images import find_images, read_geometry, read_instances
from bonemet_auto.plan_schema import Plan
from bonemet_auto.result_schema import CasePrediction, OperatingPoint, RunReport
from bonemet_auto.schema import CaseLabels, DatasetInfo, Fingerprint, Splits, StoredCase, read_json

DATASET = "Dataset007_Tiny"
N_TRAINING, N_TEST, N_FOLDS = 8, 7, 5
ITERATIONS = 40


@dataclass(frozen=True)
class Run:
    root: Path
    codes: dict[str, int]

    @property
    def raw(self):
        return self.root / "raw" / DATASET

    @property
    def preprocessed(self):
        return self.root / "preprocessed" / DATASET

    @property
    def results(self):
        return self.root / "results" / DATASET / "default"

    @property
    def predictions(self):
        return self.root / "predictions"

    @property
    def evaluation(self):
        return self.root / "evaluation"


def call(command, *arguments):
    """Exit code of a command, those of the argument parser too."""
    try:
        return command.main([str(each) for each in arguments])
    except SystemExit as end:
        return end.code


def interrupt_training(arguments, checkpoint):
    """Start a training run as a process, press Ctrl-C after its first epoch; its exit code."""
    start = "from bonemet_auto.commands.train import main; raise SystemExit(main())"
    process = subprocess.Popen([sys.executable, "-c", start, *map(str, arguments)])
    deadline = time.monotonic() + 120
    while not checkpoint.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    return process.wait(60)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("data root ü"), {})
    root = ("--root", run.root)
    run.codes["phantom"] = call(
        phantom, run.raw, "--cases", N_TRAINING, "--test-cases", N_TEST, "--processes", 1
    )
    run.codes["plan"] = call(
        plan_and_preprocess, "-d", "7", *root, "-np", 1,
        "--spacing", 3, 2, 2, "--patch-size", 16, 32, 32, "--planner", "fast",
    )  # fmt: skip
    fold_0 = ["7", "0", *root, "--workers", 0, "--device", "cpu"]
    checkpoint = run.results / "fold_0" / "checkpoint_last.pt"
    run.codes["interrupted"] = interrupt_training([*fold_0, "--iterations", ITERATIONS], checkpoint)
    run.codes["resumed"] = call(train, *fold_0, "--resume")
    run.codes["predict"] = call(
        predict, "-i", run.raw / "imagesTs", "-o", run.predictions,
        "-m", run.results / "fold_0", "--threshold", 0.02, "--device", "cpu", "--report",
    )  # fmt: skip
    run.codes["evaluate"] = call(
        evaluate, "--pred", run.predictions, "--ref", run.raw / "labelsTs", "--out", run.evaluation
    )
    return run


def test_every_command_ends_as_documented(run):
    assert run.codes == {
        "phantom": 0, "plan": 0, "interrupted": 4, "resumed": 0, "predict": 0, "evaluate": 0,
    }  # fmt: skip


def test_files_of_the_dataset_and_of_planning_are_as_documented(run):
    info = read_json(run.raw / "dataset.json", DatasetInfo)
    assert info.num_training == N_TRAINING
    for part, number in (("Tr", N_TRAINING), ("Ts", N_TEST)):
        labels = find_images(run.raw / f"labels{part}")
        assert len(labels) == number
        assert labels.keys() == find_images(run.raw / f"images{part}").keys()
        for path in labels.values():
            read_json(path.with_name(path.name.replace(".nii.gz", ".json")), CaseLabels)
    fingerprint = read_json(run.preprocessed / "fingerprint.json", Fingerprint)
    splits = read_json(run.preprocessed / "splits.json", Splits)
    cases = {case.case for case in fingerprint.cases}
    assert len(cases) == N_TRAINING
    assert sorted(case for fold in splits.validation for case in fold) == sorted(cases)
    plan_folder = run.preprocessed / "default"
    assert read_json(plan_folder / "plan.json", Plan).spacing_mm == (3, 2, 2)
    assert "# " in (plan_folder / "plan.md").read_text("utf-8")
    for case in cases:
        read_json(plan_folder / "cases" / f"{case}.json", StoredCase)
        assert (plan_folder / "cases" / f"{case}.b2nd").is_file()
        assert (plan_folder / "cases" / f"{case}_seg.b2nd").is_file()


def test_a_fold_is_complete_after_interruption_and_resume(run):
    fold = run.results / "fold_0"
    read_json(fold / "operating_point.json", OperatingPoint)
    read_json(fold / "dataset.json", DatasetInfo)
    assert (fold / "plan.json").read_bytes() == (
        run.preprocessed / "default" / "plan.json"
    ).read_bytes()
    assert (fold / "progress.png").read_bytes().startswith(b"\x89PNG")
    epochs = pd.read_csv(fold / "metrics.csv")["epoch"].tolist()
    assert epochs == list(range(epochs[0], epochs[0] + len(epochs)))
    assert len(epochs) >= 2
    validated = {path.name for path in (fold / "validation").glob("case_*.json")}
    splits = read_json(run.preprocessed / "splits.json", Splits)
    assert validated == {f"{case}.json" for case in splits.validation[0]}


def test_files_of_a_prediction_are_as_documented(run):
    images = find_images(run.raw / "imagesTs")
    for case in images:
        record = read_json(run.predictions / f"{case}.json", CasePrediction)
        below = read_json(run.predictions / "candidates" / f"{case}.json", CasePrediction)
        drawn = read_instances(run.predictions / f"{case}.nii.gz").array
        assert record.case == case and record.patient is not None and below.patient is None
        assert set(drawn[drawn > 0].tolist()) == {lesion.id for lesion in record.lesions}
        assert all(lesion.score >= 0.02 for lesion in record.lesions)
    report = read_json(run.predictions / "run_report.json", RunReport)
    assert (report.cases_done, report.cases_failed) == (len(images), 0)
    assert not (run.predictions / "failed_cases.json").exists()
    with (run.predictions / "patients.csv").open(encoding="utf-8") as table:
        header, *rows = csv.reader(table)
    assert header == ["case", "n_lesions", "probability", "label", "threshold"]
    assert [row[0] for row in rows] == sorted(images)
    columns = set(pd.read_csv(run.predictions / "lesions.csv").columns)
    assert columns >= {"case", "id", "score", "p_lung_metastasis", "volume_mm3", "centroid_s_mm"}
    assert (run.predictions / "report.html").read_text("utf-8").count("<h3>") == len(images)


def test_predictions_lie_on_the_grid_of_their_input(run):
    for case, image in find_images(run.raw / "imagesTs").items():
        expected = read_geometry(image)
        for folder in (run.predictions, run.predictions / "candidates"):
            assert expected.mismatch(read_geometry(folder / f"{case}.nii.gz")) is None


def test_files_of_an_evaluation_are_as_documented(run):
    metrics = json.loads((run.evaluation / "metrics.json").read_text("utf-8"))
    assert metrics["n_scans"] == N_TEST
    assert {"value", "low", "high", "n", "note"} <= metrics["figures"]["segmentation"]["dsc"].keys()
    assert len(pd.read_csv(run.evaluation / "patients.csv")) == N_TEST
    assert "outcome" in pd.read_csv(run.evaluation / "lesions.csv")
    page = (run.evaluation / "report.html").read_text("utf-8")
    assert page.count("data:image/png;base64,") == 3 * N_TEST


def test_a_scan_without_lesions_is_an_ordinary_case(run):
    healthy = [
        path.stem
        for path in (run.raw / "labelsTs").glob("*.json")
        if not read_json(path, CaseLabels).instances
    ]
    assert healthy
    scans = pd.read_csv(run.evaluation / "patients.csv").set_index("case")
    for case in healthy:
        nothing_found = not read_json(run.predictions / f"{case}.json", CasePrediction).lesions
        assert scans.loc[case, "dsc"] == (1 if nothing_found else 0)


def test_five_folds_of_a_few_steps_predict_together(run):
    for fold in range(1, N_FOLDS):
        arguments = (fold, "--root", run.root, "--iterations", 4, "--workers", 0)
        assert call(train, "7", *arguments, "--device", "cpu") == 0
    image = next(iter(find_images(run.raw / "imagesTs").values()))
    out = run.root / "ensemble"
    assert call(predict, "-i", image, "-o", out, "-d", "7", "--root", run.root) == 0
    used = read_json(out / "run_report.json", RunReport).flags["folds_used"]
    assert all(f"fold_{fold}" in used for fold in range(N_FOLDS))
    assert len(list(out.glob("case_*.json"))) == 1


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        (train, ["7", "9"], "fold"),
        (train, ["99", "0"], "no dataset '99'"),
        (train, ["7", "0", "--iterations", "4"], "--overwrite"),
        (train, ["7", "0", "--time-budget", "soon"], "no duration"),
        (plan_and_preprocess, ["-d", "7", "--planner", "best", "--plan-only"], "--planner"),
        (predict, ["-i", "nowhere", "-o", "out", "-d", "7"], "nowhere"),
        (evaluate, ["--pred", "nowhere", "--ref", "nowhere"], "nowhere"),
        (evaluate, ["--pred", "nowhere"], "--ref"),
    ],
)
def test_what_cannot_be_is_refused_with_a_message(run, command, arguments, words, capsys):
    root = [] if command is evaluate else ["--root", run.root]
    assert call(command, *arguments, *root) == 2
    assert words in capsys.readouterr().err


def test_a_folder_with_results_is_not_written_over(run, capsys):
    flags = ["-i", run.raw / "imagesTs", "-o", run.predictions, "-m", run.results / "fold_0"]
    before = (run.predictions / "run_report.json").read_bytes()
    assert call(predict, *flags) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (run.predictions / "run_report.json").read_bytes() == before
