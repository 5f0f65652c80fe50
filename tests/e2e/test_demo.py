"""`bonemet_demo --fast`, once, after a demo that was interrupted; and what it refuses."""

import os
import signal
import subprocess
import sys
import time

import pytest

from bonemet_auto.commands import demo
from bonemet_auto.result_schema import RunReport
from bonemet_auto.schema import read_json

START = "from bonemet_auto.commands.demo import main; raise SystemExit(main())"


def start_demo(out):
    return subprocess.Popen(
        [sys.executable, "-c", START, "--out", str(out), "--fast"], start_new_session=True
    )


def wait_for(path):
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert path.exists()


def is_gone(group):
    """Whether no process of a group is left, or all leave within seconds."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A demo folder with the exit codes of an interrupted, a refused and a replacing run."""
    out = tmp_path_factory.mktemp("demo") / "my demo"
    process = start_demo(out)
    wait_for(out / "raw")
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does on Ctrl-C
    interrupted = process.wait(60)
    refused = demo.main(["--out", str(out), "--fast"])
    replaced = demo.main(["--out", str(out), "--fast", "--overwrite"])
    return out, (interrupted, refused, replaced)


def test_an_interrupted_demo_ends_with_4_and_can_be_replaced(finished):
    assert finished[1] == (4, 2, 0)


def test_the_demo_leaves_a_report_of_its_held_out_cases(finished):
    out, _ = finished
    report = read_json(out / "predictions" / "run_report.json", RunReport)
    assert (report.cases_done, report.cases_failed) == (demo.FAST_HELD_OUT_CASES, 0)
    page = (out / "evaluation" / "report.html").read_text("utf-8")
    assert page.count("data:image/png;base64,") == 3 * demo.FAST_HELD_OUT_CASES


def test_a_demo_that_is_told_to_end_takes_its_stage_along(tmp_path):
    process = start_demo(tmp_path / "demo")
    wait_for(tmp_path / "demo" / "raw")
    process.terminate()
    assert process.wait(60) == 4
    assert is_gone(process.pid)


def test_a_failing_stage_ends_the_demo_with_its_code(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    never = ("evaluate", ["--pred", "nowhere", "--ref", "nowhere"])
    monkeypatch.setattr(demo, "_stages", lambda options: [never, never])
    assert demo.main(["--out", str(tmp_path / "demo")]) == 2
    assert caplog.text.count("== bonemet_evaluate") == 1
    assert "exit code 2" in caplog.text


def test_files_of_others_are_never_deleted(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "_stages", lambda options: [])
    (tmp_path / "thesis.txt").write_text("years of work")
    assert demo.main(["--out", str(tmp_path), "--overwrite"]) == 2
    assert "left alone" in capsys.readouterr().err
    assert demo.main(["--out", str(tmp_path / "thesis.txt"), "--overwrite"]) == 2
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_fast_and_a_time_budget_exclude_each_other(tmp_path):
    with pytest.raises(SystemExit) as end:
        demo.main(["--out", str(tmp_path / "demo"), "--fast", "--time-budget", "1m"])
    assert end.value.code == 2
