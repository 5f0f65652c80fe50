"""The publication's table for both cohorts, in three formats."""

import csv
import json
import re
import shutil
import subprocess

import pytest

from bonemet_auto.commands.evaluate import main
from bonemet_auto.errors import DataError, UsageError
from bonemet_auto.evaluation.bootstrap import Figure, undefined
from bonemet_auto.evaluation.paper import (
    PAPER_ROWS,
    MeasuredCohort,
    read_other_cohort,
    write_paper_table,
)
from tests.unit.test_evaluation_folders import LESION, write_prediction, write_reference

ODD_REASON = r"all 3_000 patients & more are {positive}, 95 % #1 ~^\$"


def cohort(name, **replaced):
    figures: dict = {}
    for row in PAPER_ROWS:
        figure = replaced.get(row.name, Figure(0.5, 0.25, 0.75, 14, "patients"))
        figures.setdefault(row.group, {})[row.name] = figure
    return MeasuredCohort(cohort=name, n_scans=16, n_patients=14, figures=figures)


def write_both(folder):
    odd = cohort("external", auc=undefined(14, ODD_REASON), dsc=Figure(0.9, None, None, 1, "one"))
    write_paper_table(folder, [odd, cohort("internal")])
    return folder


def test_every_published_value_stands_beside_ours_internal_first(tmp_path):
    lines = (write_both(tmp_path) / "paper_table.md").read_text("utf-8").splitlines()
    assert lines[0].index("internal") < lines[0].index("external")
    both = [(float(line.split("|")[2]), float(line.split("|")[4])) for line in lines[2:9]]
    assert both == [
        (0.856, 0.849), (0.921, 0.911), (0.961, 0.931), (0.865, 0.842),
        (0.866, 0.836), (0.875, 0.847), (0.835, 0.819),
    ]  # fmt: skip
    assert "0.500 (0.250 to 0.750)" in lines[2]
    assert f"- No lung metastasis: AUC (external): {ODD_REASON}." in lines


def test_the_csv_is_exact_and_leaves_unknown_values_blank(tmp_path):
    with (write_both(tmp_path) / "paper_table.csv").open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    assert [row["cohort"] for row in rows] == ["internal"] * 7 + ["external"] * 7
    (auc,) = [row for row in rows if row["here"] == ""]
    assert (auc["paper"], auc["n"], auc["counted"]) == ("0.842", "14", ODD_REASON)


def test_the_latex_is_well_formed_and_escaped(tmp_path):
    text = (write_both(tmp_path) / "paper_table.tex").read_text("utf-8")
    source = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert re.findall(r"\\begin\{(\w+)\}", source) == ["table", "tabular"]
    assert re.findall(r"\\end\{(\w+)\}", source) == ["tabular", "table"]
    plain = re.sub(r"\\\\|\\[&%$#_{}]", "", source)
    assert plain.count("{") == plain.count("}") and not set("%$#_^~") & set(
        re.sub(r"\$n\$", "", plain)
    )
    (columns,) = re.findall(r"\\begin\{tabular\}\{(\w+)\}", source)
    rows = [line for line in source.splitlines() if line.endswith("\\\\")]
    body = [row for row in rows if "multicolumn" not in row]
    assert len(columns) == 7 and len(body) == 8
    assert all(len(re.findall(r"(?<!\\)&", row)) == 6 for row in body)
    assert r"all 3\_000 patients \& more are \{positive\}, 95 \% \#1" in source


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
def test_the_latex_compiles(tmp_path):
    write_both(tmp_path)
    document = (
        r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{paper_table}"
        r"\end{document}"
    )
    (tmp_path / "all.tex").write_text(document, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60)


@pytest.fixture
def evaluated(tmp_path):
    """Folders of a cohort, and its evaluation as the internal one."""
    write_reference(tmp_path / "ref", "a", {1: LESION}, {"1": 1})
    write_prediction(tmp_path / "pred", "a", {1: LESION}, {1: (0.9, 0.5)}, (0.6, 1))
    flags = ["--pred", str(tmp_path / "pred"), "--ref", str(tmp_path / "ref")]
    assert main([*flags, "--cohort", "internal", "--out", str(tmp_path / "internal")]) == 0
    return flags, tmp_path / "internal"


def test_two_evaluations_make_one_table(evaluated, tmp_path, capsys):
    flags, internal = evaluated
    assert main([*flags, "--out", str(tmp_path / "out"), "--beside", str(internal)]) == 0
    assert "0.849   1.000" in capsys.readouterr().out
    header = (tmp_path / "out" / "paper_table.md").read_text("utf-8").splitlines()[0]
    assert "internal: paper" in header and "external: paper" in header
    assert main([*flags, "--cohort", "internal"]) == 0
    assert "0.856   1.000" in capsys.readouterr().out
    alone = (internal / "paper_table.md").read_text("utf-8").splitlines()[0]
    assert "external" not in alone


def test_the_same_cohort_twice_an_old_or_a_missing_evaluation_are_refused(evaluated, tmp_path):
    flags, internal = evaluated
    out = ["--out", str(tmp_path / "out")]
    assert main([*flags, *out, "--cohort", "internal", "--beside", str(internal)]) == 2
    assert main([*flags, "--beside", str(internal)]) == 2
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="--cohort external"):
        read_other_cohort(internal, "internal")
    with pytest.raises(DataError, match=r"Evaluate the other cohort"):
        read_other_cohort(tmp_path / "nowhere", "internal")
    metrics = json.loads((internal / "metrics.json").read_text("utf-8"))
    del metrics["figures"]["patient"]["auc"]
    (internal / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    with pytest.raises(DataError, match="lacks lung metastasis: AUC"):
        read_other_cohort(internal, "external")
