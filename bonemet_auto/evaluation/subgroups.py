"""Figures of parts of a cohort, by the columns of a user's table."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import pandas as pd

from bonemet_auto.evaluation.bootstrap import (
    REPLICATES,
    BoolArray,
    Figure,
    Figures,
    Measures,
    read_measures,
)
from bonemet_auto.evaluation.cohort import Cohort
from bonemet_auto.evaluation.cohort_figures import (
    annotated_lesions,
    cohort_measures,
    cohort_weights,
    count_patients,
    source_estimates,
    with_patients,
)
from bonemet_auto.evaluation.finding import found_measures, mean_measures
from bonemet_auto.evaluation.levels import LevelTable, find_levels
from bonemet_auto.evaluation.means import lesion_means
from bonemet_auto.evaluation.source import lesion_measures

SMALL = 10
"""Fewer patients than this tell little, however good the figures look."""

_PRINTED = (
    ("DSC", "segmentation", "dsc"),
    ("lesions found", "detection", "sensitivity_iou_0.1"),
    ("source AUC", "lesion", "source_auc"),
    ("patient AUC", "patient", "auc"),
)


@dataclass(frozen=True)
class Subgroup:
    """One part of a cohort.

    Attributes:
        column: of the table.
        level: its value there, or range of values.
        n_scans: scans of the part; of lesions, the scans that hold them.
        n_patients: patients of these.
        n_lesions: annotated lesions.
        figures: all figures of the part; of lesions, those that a lesion has.
    """

    column: str
    level: str
    n_scans: int
    n_patients: int
    n_lesions: int
    figures: Figures

    @property
    def small(self) -> bool:
        """Whether it has too few patients to tell much."""
        return self.n_patients < SMALL


def evaluate_subgroups(
    cohort: Cohort, table: LevelTable, n_bootstrap: int = REPLICATES, seed: int = 0
) -> tuple[Subgroup, ...]:
    """Figures of every level of the columns of a table.

    Args:
        cohort: measured scans.
        table: of the user.
        n_bootstrap: resamplings behind each interval.
        seed: of the resampling.

    Raises:
        DataError: a scan or lesion without a row in the table.
        UsageError: an unusable column.
    """
    parts = annotated_lesions(cohort.lesions) if table.of_lesions else cohort.cases
    subgroups = []
    for column, levels in find_levels(table, parts).items():
        for level, rows in levels.items():
            part = _of_lesions(cohort, rows) if table.of_lesions else _of_cases(cohort, rows)
            measures = _lesion_level(part) if table.of_lesions else cohort_measures(part)
            subgroups.append(
                Subgroup(
                    column,
                    level,
                    len(part.cases),
                    count_patients(part),
                    len(annotated_lesions(part.lesions)),
                    read_measures(measures, cohort_weights(part, n_bootstrap, seed)),
                )
            )
    return tuple(subgroups)


def _of_cases(cohort: Cohort, rows: BoolArray) -> Cohort:
    """Some scans of a cohort."""
    cases = cohort.cases[rows]
    lesions, candidates = (
        table[table["case"].isin(cases["case"])] for table in (cohort.lesions, cohort.candidates)
    )
    return replace(cohort, cases=cases, lesions=lesions, candidates=candidates)


def _of_lesions(cohort: Cohort, rows: BoolArray) -> Cohort:
    """Some annotated lesions of a cohort, and the scans that hold them."""
    lesions = annotated_lesions(cohort.lesions)[rows]
    cases = cohort.cases[cohort.cases["case"].isin(lesions["case"])]
    return replace(cohort, cases=cases, lesions=lesions, candidates=cohort.candidates[:0])


def _lesion_level(part: Cohort) -> Measures:
    """What is known of lesions one by one: a false positive has no place in a table of lesions."""
    n_patients, annotated = count_patients(part), with_patients(part).lesions
    return {
        "detection": found_measures(annotated, n_patients),
        "lesion": mean_measures(lesion_means(annotated), n_patients)
        | lesion_measures(source_estimates(part)["lesion"]),
    }


def subgroup_table(subgroups: Sequence[Subgroup]) -> pd.DataFrame:
    """One row per figure of each subgroup."""
    return pd.DataFrame(
        {
            "column": each.column, "level": each.level, "small": each.small,
            "n_scans": each.n_scans, "n_patients": each.n_patients, "n_lesions": each.n_lesions,
            "group": group, "name": name, **asdict(figure),
        }
        for each in subgroups
        for group, named in each.figures.items()
        for name, figure in named.items()
    )  # fmt: skip


def format_subgroups(subgroups: Sequence[Subgroup]) -> str:
    """Text for a terminal: the main figures of each subgroup with their 95 % intervals."""
    titles = "".join(f"{title:21}" for title, _, _ in _PRINTED)
    lines = []
    for column in dict.fromkeys(each.column for each in subgroups):
        lines += ["", f"{column:24} scans patients lesions  {titles}".rstrip()]
        lines += [_format_line(each) for each in subgroups if each.column == column]
    if any(each.small for each in subgroups):
        lines += ["", f"* fewer than {SMALL} patients: tells little"]
    return "\n".join(lines)


def _format_line(subgroup: Subgroup) -> str:
    counts = f"{subgroup.n_scans:5} {subgroup.n_patients:8} {subgroup.n_lesions:7}"
    figures = (subgroup.figures.get(group, {}).get(name) for _, group, name in _PRINTED)
    level = subgroup.level + " *" * subgroup.small
    return f"{level:24} {counts}  {''.join(f'{_format(each):21}' for each in figures)}".rstrip()


def _format(figure: Figure | None) -> str:
    if figure is None or figure.value is None:
        return "-"
    if figure.low is None or figure.high is None:
        return f"{figure.value:.3f}"
    return f"{figure.value:.3f} ({figure.low:.3f}-{figure.high:.3f})"
