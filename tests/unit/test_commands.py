"""What all commands have in common: quick help, the research note, and documented flags."""

import re
import subprocess
import sys
from configparser import ConfigParser
from importlib import import_module
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
FLAG = re.compile(r"(?<![\w-])--?[a-zA-Z][\w-]*")
HEAVY = ("torch", "pandas", "scipy", "SimpleITK", "matplotlib", "skimage")


def console_scripts():
    """Name and module of every console script."""
    setup = ConfigParser()
    setup.read(TOP / "setup.cfg")
    lines = setup["options.entry_points"]["console_scripts"].strip().splitlines()
    return dict(re.split(r"\s*=\s*|:", line)[:2] for line in lines)


SCRIPTS = console_scripts()


def help_text(module, capsys):
    with pytest.raises(SystemExit) as end:
        import_module(module).main(["-h"])
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("module", SCRIPTS.values())
def test_help_is_quick_because_nothing_heavy_is_imported(module):
    check = (
        "import sys, time; start = time.perf_counter()\n"
        f"from {module} import main\n"
        "try: main(['-h'])\n"
        "except SystemExit: pass\n"
        "print(time.perf_counter() - start, *sys.modules, file=sys.stderr)"
    )
    runs = [
        subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    reports = [run.stderr.split() for run in runs]
    assert not set(HEAVY) & set(reports[0])
    assert min(float(report[0]) for report in reports) < 0.5


@pytest.mark.parametrize("module", SCRIPTS.values())
def test_help_carries_the_research_note(module, capsys):
    assert "not a medical device" in " ".join(help_text(module, capsys).split())


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_is_in_the_reference(script, capsys):
    text = (TOP / "docs" / "reference" / "commands.md").read_text("utf-8")
    sections = dict(re.findall(r"^## `(\w+)`[^\n]*\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    listed = re.findall(r"^  (-\S.*)", help_text(SCRIPTS[script], capsys), re.M)
    flags = {flag for line in listed for flag in FLAG.findall(re.split(r"  +", line)[0])}
    documented = set(re.findall(rf"`({FLAG.pattern})", sections[script]))
    assert flags - {"-h", "--help", "--version", "--verbose"} == documented
