"""The figures of a cohort as plain text, beside those of the publication."""

from bonemet_auto.evaluation.bootstrap import Figure, Figures
from bonemet_auto.evaluation.evaluate import Evaluation
from bonemet_auto.evaluation.paper import PAPER_ROWS, PUBLISHED_COHORT, Cohort
from bonemet_auto.evaluation.rules import RULES_IN_SHORT

_TITLE_WIDTH = 34


def format_table(evaluation: Evaluation, cohort: Cohort = "external") -> str:
    """Text for a terminal: the publication's table, then all other figures with their counts.

    Args:
        evaluation: the figures.
        cohort: which of the publication's cohorts stands beside them.
    """
    cases = evaluation.cases
    lines = [
        f"{len(cases)} scans of {cases['patient_id'].nunique()} patients, "
        f"{cases['n_reference'].sum()} annotated lesions",
        "",
        f"{'':{_TITLE_WIDTH}}{'paper':>6}  here (95 % interval)",
    ]
    for row in PAPER_ROWS:
        figure = evaluation.figures[row.group][row.name]
        lines.append(f"{row.title:{_TITLE_WIDTH}}{row.published(cohort):6.3f}  {_format(figure)}")
    for group, others in other_figures(evaluation.figures).items():
        lines += ["", group]
        lines += [f"  {name:{_TITLE_WIDTH + 4}}  {_format(each)}" for name, each in others.items()]
    lines += ["", RULES_IN_SHORT]
    lines += [f"paper: {PUBLISHED_COHORT[cohort]}, no intervals published"]
    return "\n".join(lines)


def other_figures(figures: Figures) -> dict[str, dict[str, Figure]]:
    """All figures that the publication does not give, by group; groups without any are left out."""
    in_paper = {(row.group, row.name) for row in PAPER_ROWS}
    return {
        group: others
        for group, named in figures.items()
        if (others := {name: f for name, f in named.items() if (group, name) not in in_paper})
    }


def _format(figure: Figure) -> str:
    if figure.value is None:
        return f"  -    {figure.note}"
    interval = (
        "" if figure.low is None or figure.high is None else f"{figure.low:.3f}-{figure.high:.3f}"
    )
    return f"{figure.value:6.3f} {interval:13} n={figure.n} {figure.note}".rstrip()
