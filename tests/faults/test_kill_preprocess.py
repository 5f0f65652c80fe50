"""kill -9 while cases are preprocessed: what was finished stays, the next run does the rest."""

import subprocess
import sys
import time

from bonemet_auto.commands.plan_and_preprocess import main
from bonemet_auto.store import open_case
from tests.cohort import write_cohort

CASES = 60
COMMAND = "from bonemet_auto.commands.plan_and_preprocess import main; raise SystemExit(main())"


def finished(folder):
    return {path: path.stat().st_mtime_ns for path in folder.glob("[!.]*.json")}


def test_a_killed_run_loses_only_the_case_in_flight(tmp_path):
    write_cohort(tmp_path / "raw" / "Dataset001_Tiny", CASES)
    arguments = ["-d", "1", "--root", str(tmp_path), "-np", "1", "--planner", "fast"]
    folder = tmp_path / "preprocessed" / "Dataset001_Tiny" / "default" / "cases"
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        while process.poll() is None and len(finished(folder)) < 3:
            time.sleep(0.002)
        process.kill()
    before = finished(folder)
    assert 3 <= len(before) < CASES
    assert main(arguments) == 0
    after = finished(folder)
    assert len(after) == CASES
    assert {path: after[path] for path in before} == before
    for path in after:
        open_case(folder, path.stem).read()
