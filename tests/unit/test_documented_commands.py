"""Every command line of README and docs runs, page by page, in a folder such as the page supposes.

What cannot run here is in `NOT_RUN`, with the reason, and its flags are held against the parsers.
"""

import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import replace
from functools import partial
from importlib import import_module

import numpy as np
import pytest

from bonemet_auto.images import Volume, write_volume
from bonemet_auto.schema import Splits, write_json
from planners import PLANNERS
from planners.default import make_plan
from planners.fast import FAST
from tests.cohort import GEOMETRY, make_scan, write_case, write_cohort
from tests.dicom_fakes import write_series
from tests.documents import TOP, command_lines, inline_commands, pages
from tests.tiny_model import write_model
from tests.unit.test_commands import SCRIPTS

NOT_RUN = {
    "pip": "installs packages",
    "python3 -m venv": "makes an environment",
    ". venv/bin/activate": "enters it",
    "sphinx-build": "tests/unit/test_docs.py builds the pages",
    "docker": "needs a daemon",
    "apptainer": "needs an image",
    "pytest": "is running",
    "bonemet_demo": "ten minutes; tests/e2e/test_demo.py runs it",
    "torchrun": "several processes; tests/e2e/test_distributed.py runs them",
    "python -m tests.": "a benchmark: minutes to hours",
}
HOURS = {"docs/benchmarks.md": "trains for half an hour"}
SHELL = ("unzip", "sha256sum", "cd", "mkdir")

SHORT = {
    "bonemet_plan_and_preprocess": "--planner fast --patch-size 16 16 24 -np 1",
    "bonemet_train": "--iterations 2 --workers 0 --device cpu",
}
"""Added to a command so that it takes a second; `--time-budget` gives way to it."""
NARROW = replace(FAST, widths=(8, 8, 8, 8), depths=(0, 1, 1, 1), neck_width=8, skip_width=4)

DATASET = "Dataset001_Spine"
STANDS_FOR = {"docs/tutorial.md": {"bonemet_demo": "bonemet_data", "Phantom": "Spine"}}
TRAINED = ("docs/how-to/compare-models.md", "docs/how-to/share-a-model.md", "docs/tutorial.md")
"""Pages that begin where folds are trained."""


@pytest.fixture(scope="module", autouse=True)
def narrow_networks():
    """The `fast` planner plans a network that takes no time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PLANNERS, "fast", partial(make_plan, NARROW))
        yield


def name_of(page):
    return str(page.relative_to(TOP))


WITH_COMMANDS = [page for page in pages() if command_lines(page)]


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """A folder with what pages speak of: a dataset, new scans, their labels, an export, a model."""
    work = tmp_path_factory.mktemp("untrained")
    write_cohort(work / "bonemet_data" / "raw" / DATASET, n_cases=6)
    folds = Splits(seed=0, validation=(("case_000",), ("case_001",)))
    write_json(work / "bonemet_data" / "preprocessed" / DATASET / "splits.json", folds)
    for number in range(2):
        hu, instances = make_scan(np.random.default_rng([9, number]))
        write_case(work, f"new_{number}", hu, instances, {1: number, 2: number}, part="Ts")
    for folder in ("new_scans", "scans", "hospital_b/imagesTs"):
        shutil.copytree(work / "imagesTs", work / folder)
    for folder in ("labels", "hospital_b/labelsTs"):
        shutil.copytree(work / "labelsTs", work / folder)
    for part in ("imagesTs", "labelsTs"):
        shutil.move(work / part, work / "bonemet_data" / "raw" / DATASET / part)
    write_model(work / "model", folds=(0,))
    write_export(work)
    return work


def write_export(work):
    """A study of a PACS: a CT series, and a segmentation of two lesions on it."""
    hu, instances = make_scan(np.random.default_rng([9, 2]))
    write_series(work / "export" / "A", Volume(hu, GEOMETRY))
    write_volume(work / "drawn.nii.gz", Volume(instances, GEOMETRY))
    places = ["-i", work / "export", "-o", work / "drawn", "-m", work / "model"]
    more = ["--lesions", work / "drawn.nii.gz", "--formats", "dicom"]
    assert call(["bonemet_predict", *map(str, [*places, *more])]) == 0
    (segmentation,) = (work / "drawn_dicom").glob("*_seg.dcm")
    shutil.move(segmentation, work / "export" / "A")


@pytest.fixture(scope="module")
def trained(untrained, tmp_path_factory):
    """The same, with two trained folds."""
    work = shutil.copytree(untrained, tmp_path_factory.mktemp("trained") / "work")
    at = ["--root", str(work / "bonemet_data")]
    assert call(["bonemet_plan_and_preprocess", "-d", "1", *at]) == 0
    assert call(["bonemet_train", "1", "all_folds", *at]) == 0
    return work


def call(words):
    """Exit code of a command of ours, made short."""
    if "--time-budget" in words and words[0] in SHORT:
        at = words.index("--time-budget")
        words = words[:at] + words[at + 2 :]
    return import_module(SCRIPTS[words[0]]).main([*words[1:], *SHORT.get(words[0], "").split()])


def parse(words):
    """Parse a command of ours as it would, without doing it."""
    module = import_module(SCRIPTS[words[0]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "run_command", lambda parser, _, given: parser.parse_args(given))
        try:
            module.main(words[1:])
        except SystemExit as refused:
            pytest.fail(f"{' '.join(words)}: exit code {refused.code}, see above")


def hold_against_parsers(words):
    """Look at the flags of a line that is not run."""
    if words[0] in SCRIPTS:
        parse(words)
    elif ours := [k for k, word in enumerate(words) if word in SCRIPTS]:
        parse(words[ours[0] :])
    elif words[:2] == ["python", "-m"] and words[2].startswith("tests."):
        spec = importlib.util.find_spec(words[2])
        assert spec is not None and spec.origin, f"no {words[2]}"
        source = (TOP / os.path.relpath(spec.origin, TOP)).read_text("utf-8")
        unknown = [word for word in words if word.startswith("--") and f'"{word}"' not in source]
        assert not unknown, f"{words[2]} does not know {unknown}"


def run(words, page, work, patch):
    """One line of a page, in the folder of work."""
    line = " ".join(words)
    not_run = "--cluster" in words or any(line.startswith(start) for start in NOT_RUN)
    if not_run or name_of(page) in HOURS:
        hold_against_parsers(words)
    elif words[0] == "export":
        name, _, value = words[1].partition("=")
        patch.setenv(name, value.replace("~", str(work)))
    elif words[0] in SCRIPTS:
        assert call(words) == 0, f"{page}: {line}"
    else:
        assert words[0] in SHELL, f"{page}: {line} is neither run nor in NOT_RUN"
        subprocess.run(words, check=True, cwd=work)


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name_of)
def test_the_command_lines_of_a_page_run(page, request, tmp_path, monkeypatch):
    ready = "trained" if name_of(page) in TRAINED else "untrained"
    work = shutil.copytree(request.getfixturevalue(ready), tmp_path / "work")
    monkeypatch.chdir(work)
    monkeypatch.delenv("BONEMET_ROOT", raising=False)
    meanings = STANDS_FOR.get(name_of(page), {}).items()
    for words in command_lines(page):
        arguments = words[1:]
        for placeholder, meant in meanings:
            arguments = [word.replace(placeholder, meant) for word in arguments]
        run([words[0], *arguments], page, work, monkeypatch)


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_flags_that_pages_mention_exist(page):
    for words in inline_commands(page):
        known = flags_of(words[0])
        given = {word for word in words if re.match(r"--?[a-zA-Z]", word)}
        assert given <= known, f"{page}: {' '.join(words)}"


def flags_of(script):
    """Every flag of a command."""
    found = set()
    module = import_module(SCRIPTS[script])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            module, "run_command", lambda parser, *_: found.update(parser._option_string_actions)
        )
        module.main([])
    return found
