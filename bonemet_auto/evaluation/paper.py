"""The publication's table: its figures beside ours, for one cohort or for both.

Published: Zhao et al., J Bone Oncol 2024;48:100637. No intervals were given there.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from bonemet_auto.errors import DataError, UsageError
from bonemet_auto.evaluation.bootstrap import Figure
from bonemet_auto.evaluation.evaluate import METRICS_NAME, Evaluation
from bonemet_auto.files import write_text
from bonemet_auto.schema import Theirs, read_json

Cohort = Literal["internal", "external"]
COHORTS: tuple[Cohort, ...] = get_args(Cohort)
PUBLISHED_COHORT = {
    "internal": "training cohort of 265 patients",
    "external": "external test of 106 patients",
}
TABLE_STEM = "paper_table"

_LATEX_ESCAPES = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\\": r"\textbackslash{}",
    }
)


@dataclass(frozen=True)
class PaperRow:
    """A figure that the publication gives, where ours stands, and its values of both cohorts."""

    title: str
    group: str
    name: str
    internal: float
    external: float

    def published(self, cohort: Cohort) -> float:
        """The publication's value."""
        return self.internal if cohort == "internal" else self.external


PAPER_ROWS = (
    PaperRow("segmentation: DSC", "segmentation", "dsc", 0.856, 0.849),
    PaperRow("segmentation: voxel sensitivity", "segmentation", "voxel_sensitivity", 0.921, 0.911),
    PaperRow("segmentation: voxel specificity", "segmentation", "voxel_specificity", 0.961, 0.931),
    PaperRow("lung metastasis: AUC", "patient", "auc", 0.865, 0.842),
    PaperRow("lung metastasis: accuracy", "patient", "accuracy", 0.866, 0.836),
    PaperRow("lung metastasis: sensitivity", "patient", "sensitivity", 0.875, 0.847),
    PaperRow("lung metastasis: specificity", "patient", "specificity", 0.835, 0.819),
)


class MeasuredCohort(Theirs):
    """What the table needs of an evaluation; read from its `metrics.json`, or made from it."""

    cohort: Cohort
    n_scans: int
    n_patients: int
    figures: dict[str, dict[str, Figure]]

    def figure(self, row: PaperRow) -> Figure:
        """Our value of a row."""
        return self.figures[row.group][row.name]


def measured_cohort(evaluation: Evaluation, cohort: Cohort) -> MeasuredCohort:
    """An evaluation, ready for the table."""
    return MeasuredCohort(
        cohort=cohort,
        n_scans=len(evaluation.cases),
        n_patients=evaluation.cases["patient_id"].nunique(),
        figures={group: dict(figures) for group, figures in evaluation.figures.items()},
    )


def read_other_cohort(folder: Path, cohort: Cohort) -> MeasuredCohort:
    """The figures of an earlier evaluation of the other cohort.

    Args:
        folder: what that evaluation wrote (its `--out`).
        cohort: the one that is evaluated now.

    Raises:
        DataError: `metrics.json` is missing, broken, or lacks a figure of the table.
        UsageError: both evaluations are of the same cohort.
    """
    path = folder / METRICS_NAME
    other = read_json(path, MeasuredCohort, "Evaluate the other cohort with --out first.")
    missing = [row.title for row in PAPER_ROWS if row.name not in other.figures.get(row.group, {})]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}. Evaluate that cohort again.")
    if other.cohort == cohort:
        wanted = next(each for each in COHORTS if each != cohort)
        raise UsageError(
            f"{path} is of the {cohort} cohort too. Evaluate one of the two with --cohort {wanted}."
        )
    return other


def in_order(cohorts: Sequence[MeasuredCohort]) -> list[MeasuredCohort]:
    """Internal before external, as the publication has them."""
    return sorted(cohorts, key=lambda each: COHORTS.index(each.cohort))


def write_paper_table(out: Path, cohorts: Sequence[MeasuredCohort]) -> None:
    """Write `paper_table.md`, `.tex` and `.csv`.

    Args:
        out: folder.
        cohorts: one or both.
    """
    ordered = in_order(cohorts)
    for ending, text in (
        ("md", _markdown(ordered)),
        ("tex", _latex(ordered)),
        ("csv", _csv(ordered)),
    ):
        write_text(out / f"{TABLE_STEM}.{ending}", text)


def _markdown(cohorts: Sequence[MeasuredCohort]) -> str:
    heads = [f"{each.cohort}: {head}" for each in cohorts for head in ("paper", "here (95 % CI)")]
    lines = [f"| | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(heads)}"]
    for row in PAPER_ROWS:
        cells = [
            cell
            for each in cohorts
            for cell in (f"{row.published(each.cohort):.3f}", _value(each.figure(row), "to"))
        ]
        lines.append(f"| {row.title} | {' | '.join(cells)} |")
    lines += ["", *(f"- {sentence}" for sentence in _remarks(cohorts))]
    return "\n".join(lines) + "\n"


def _latex(cohorts: Sequence[MeasuredCohort]) -> str:
    """A table for the packages every TeX brings, and `booktabs`."""
    groups = [rf"\multicolumn{{3}}{{c}}{{{each.cohort}}}" for each in cohorts]
    rules = [rf"\cmidrule(lr){{{2 + 3 * place}-{4 + 3 * place}}}" for place in range(len(cohorts))]
    heads = [r"paper & here (95\,\% CI) & $n$"] * len(cohorts)
    body = []
    for row in PAPER_ROWS:
        cells = [_latex_text(row.title)]
        for each in cohorts:
            figure = each.figure(row)
            cells += [f"{row.published(each.cohort):.3f}", _value(figure, "--"), str(figure.n)]
        body.append(f"{' & '.join(cells)} \\\\")
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex_text(' '.join(_remarks(cohorts)))}}}",
            rf"\begin{{tabular}}{{l{'rrr' * len(cohorts)}}}",
            r"\toprule",
            f" & {' & '.join(groups)} \\\\",
            " ".join(rules),
            f" & {' & '.join(heads)} \\\\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _latex_text(text: str) -> str:
    return text.translate(_LATEX_ESCAPES)


def _csv(cohorts: Sequence[MeasuredCohort]) -> str:
    """One row per cohort and figure, in full precision; blank where there is none."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("cohort", "figure", "paper", "here", "low", "high", "n", "counted"))
    for each in cohorts:
        for row in PAPER_ROWS:
            figure = each.figure(row)
            ours = (figure.value, figure.low, figure.high, figure.n, figure.note)
            writer.writerow((each.cohort, row.title, row.published(each.cohort), *ours))
    return buffer.getvalue()


def _value(figure: Figure, between: str) -> str:
    if figure.value is None:
        return "--"
    if figure.low is None or figure.high is None:
        return f"{figure.value:.3f}"
    space = "" if between == "--" else " "
    return f"{figure.value:.3f} ({figure.low:.3f}{space}{between}{space}{figure.high:.3f})"


def _remarks(cohorts: Sequence[MeasuredCohort]) -> list[str]:
    """What stands in the columns, in sentences, and why a figure is missing."""
    sentences = [
        f"{each.cohort.capitalize()}: {each.n_scans} scans of {each.n_patients} patients here; "
        f"paper: {PUBLISHED_COHORT[each.cohort]}."
        for each in cohorts
    ]
    sentences += [
        f"No {row.title} ({each.cohort}): {figure.note}."
        for each in cohorts
        for row in PAPER_ROWS
        if (figure := each.figure(row)).value is None
    ]
    return [*sentences, "Paper: Zhao et al., J Bone Oncol 2024;48:100637, without intervals."]
