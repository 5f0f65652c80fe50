"""The pages: links lead somewhere, every page is reachable, and references list all there is."""

import re
import subprocess
import sys
from importlib import import_module
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel

from bonemet_auto import __version__
from bonemet_auto.plan_schema import (
    AugmentationPlan,
    InferencePlan,
    NetworkPlan,
    Plan,
    Scope,
    Target,
    TrainingPlan,
)
from tests.documents import DOCS, TOP, anchors_of, links_of, pages
from tests.unit.test_commands import SCRIPTS

TABLES = {
    "Plan": Plan,
    "Target": Target,
    "Network": NetworkPlan,
    "Training": TrainingPlan,
    "Augmentation": AugmentationPlan,
    "Inference": InferencePlan,
    "Scope": Scope,
}


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(TOP)))
def test_links_lead_to_files_and_headings(page):
    for target, anchor in links_of(page):
        assert target.is_relative_to(TOP) and target.is_file(), f"{page} links to {target}"
        if anchor:
            assert anchor in anchors_of(target), f"{page} links to #{anchor} of {target}"


def test_every_page_is_reachable_from_the_index():
    reached, to_read = set(), [DOCS / "index.md"]
    while to_read:
        page = to_read.pop()
        reached.add(page)
        linked = {target for target, _ in links_of(page) if target.suffix == ".md"}
        to_read += linked - reached
    assert {page for page in pages() if page.is_relative_to(DOCS)} <= reached


def test_the_readme_leads_to_the_index():
    assert DOCS / "index.md" in {target for target, _ in links_of(TOP / "README.md")}


def test_every_field_of_a_plan_is_in_its_reference():
    text = (DOCS / "reference" / "plan-fields.md").read_text("utf-8")
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    assert sections.keys() == TABLES.keys()
    for name, model in TABLES.items():
        cells = re.findall(r"^\| (`[^|]+) \|", sections[name], re.M)
        documented = [field for cell in cells for field in re.findall(r"`(\w+)`", cell)]
        assert sorted(documented) == sorted(model.model_fields), name


def test_the_reference_covers_every_part_of_a_plan():
    def parts(model):
        for field in model.model_fields.values():
            for kind in (field.annotation, *get_args(field.annotation)):
                if isinstance(kind, type) and issubclass(kind, BaseModel):
                    yield from (kind, *parts(kind))

    assert {Plan, *parts(Plan)} == set(TABLES.values())


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_command_tells_its_version(script, capsys):
    with pytest.raises(SystemExit) as end:
        import_module(SCRIPTS[script]).main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out.split() == [script, __version__]


def test_the_pages_build_without_a_warning(tmp_path):
    pytest.importorskip("sphinx")
    pytest.importorskip("myst_parser")
    pytest.importorskip("furo")
    build = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", DOCS, tmp_path]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "index.html").is_file()


def test_the_citation_names_this_version():
    citation = yaml.safe_load((TOP / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == __version__
    (paper,) = citation["references"]
    assert paper["doi"] == "10.1016/j.jbo.2024.100637"


def test_the_container_copies_what_the_package_needs():
    recipe = (DOCS / "how-to" / "container" / "Dockerfile").read_text("utf-8")
    copied = [
        word for line in re.findall(r"^COPY (.*) \S+$", recipe, re.M) for word in line.split()
    ]
    assert all((TOP / name).exists() for name in copied)
    assert {"setup.cfg", "pyproject.toml", "README.md", "bonemet_auto", "planners"} <= set(copied)
