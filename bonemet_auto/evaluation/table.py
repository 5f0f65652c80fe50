"""The figures of a cohort as plain text, beside those of the publication."""

from bonemet_auto.evaluation.bootstrap import Figure
from bonemet_auto.evaluation.evaluate import Evaluation
from bonemet_auto.evaluation.rules import RULES_IN_SHORT

PAPER_TABLE = (
    ("segmentation: DSC", "segmentation", "dsc", 0.849),
    ("segmentation: voxel sensitivity", "segmentation", "voxel_sensitivity", 0.911),
    ("segmentation: voxel specificity", "segmentation", "voxel_specificity", 0.931),
    ("lung metastasis: AUC", "patient", "auc", 0.842),
    ("lung metastasis: accuracy", "patient", "accuracy", 0.836),
    ("lung metastasis: sensitivity", "patient", "sensitivity", 0.847),
    ("lung metastasis: specificity", "patient", "specificity", 0.819),
)
"""Title, group, name, and the external test of Zhao et al., J Bone Oncol 2024;48:100637."""

_TITLE_WIDTH = 34


def format_table(evaluation: Evaluation) -> str:
    """Text for a terminal: the publication's table, then all other figures with their counts."""
    cases = evaluation.cases
    lines = [
        f"{len(cases)} scans of {cases['patient_id'].nunique()} patients, "
        f"{cases['n_reference'].sum()} annotated lesions",
        "",
        f"{'':{_TITLE_WIDTH}}{'paper':>6}  here (95 % interval)",
    ]
    for title, group, name, published in PAPER_TABLE:
        figure = evaluation.figures[group][name]
        lines.append(f"{title:{_TITLE_WIDTH}}{published:6.3f}  {_format(figure)}")
    in_paper = {(group, name) for _, group, name, _ in PAPER_TABLE}
    for group, figures in evaluation.figures.items():
        others = {name: each for name, each in figures.items() if (group, name) not in in_paper}
        lines += ["", group] if others else []
        lines += [f"  {name:{_TITLE_WIDTH + 4}}  {_format(each)}" for name, each in others.items()]
    lines += ["", RULES_IN_SHORT, "paper: external test of 106 patients, no intervals published"]
    return "\n".join(lines)


def _format(figure: Figure) -> str:
    if figure.value is None:
        return f"  -    {figure.note}"
    interval = (
        "" if figure.low is None or figure.high is None else f"{figure.low:.3f}-{figure.high:.3f}"
    )
    return f"{figure.value:6.3f} {interval:13} n={figure.n} {figure.note}".rstrip()
