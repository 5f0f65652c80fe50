"""Parts of `bonemet_evaluate`: reading, evaluating, and what is asked for beside the figures."""

import argparse
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bonemet_auto.evaluation.cohort import Cohort
    from bonemet_auto.evaluation.evaluate import Evaluation
    from bonemet_auto.evaluation.levels import LevelTable

logger = logging.getLogger(__name__)


def read_predictions(pred: Path, ref: Path, processes: int) -> "Cohort":
    """Measure a folder; say so where its lesions were not found but taken from the reference."""
    from bonemet_auto.evaluation.cohort import read_cohort
    from bonemet_auto.evaluation.on_reference import is_on_reference

    cohort = read_cohort(pred, ref, processes=processes)
    for note in cohort.notes:
        logger.warning("%s", note)
    if is_on_reference(cohort):
        logger.warning(
            "warning: the lesions of %s are the references' own, so figures of finding and "
            "outlining say nothing; those of sources are on reference lesions. Beside predictions "
            "that find lesions, give it as --pred-on-reference.",
            pred,
        )
    return cohort


def evaluate(options: argparse.Namespace, cohort: "Cohort") -> "Evaluation":
    """Figures of a cohort, and of `--pred-on-reference` where given."""
    from bonemet_auto.evaluation.evaluate import evaluate_cohort
    from bonemet_auto.evaluation.on_reference import read_on_reference

    if cohort.left_out:
        logger.warning("left out, no reference: %s", ", ".join(cohort.left_out))
    folder = options.pred_on_reference
    on_reference = read_on_reference(folder, options.ref, options.processes) if folder else None
    return evaluate_cohort(cohort, on_reference)


def level_table(options: argparse.Namespace) -> "LevelTable | None":
    """The table of `--subgroups`, checked before anything is measured."""
    from bonemet_auto.evaluation.levels import read_level_table

    return read_level_table(options.subgroups, options.by) if options.subgroups else None


def with_subgroups(
    evaluation: "Evaluation", cohort: "Cohort", table: "LevelTable | None"
) -> "Evaluation":
    """The evaluation with the figures of the parts that a table names."""
    from bonemet_auto.evaluation.subgroups import evaluate_subgroups

    if table is None:
        return evaluation
    return replace(evaluation, subgroups=evaluate_subgroups(cohort, table))


def print_subgroups(evaluation: "Evaluation") -> None:
    """Print the main figures of the subgroups, if there are any."""
    from bonemet_auto.evaluation.subgroups import format_subgroups

    if evaluation.subgroups:
        print(format_subgroups(evaluation.subgroups))


def show_folds(folds: "Mapping[str, Cohort]", evaluation: "Evaluation", out: Path | None) -> None:
    """Print the spread over folds, and write `folds.csv`."""
    from bonemet_auto.evaluation.cross_validation import (
        format_spread,
        spread_over_folds,
        write_spread,
    )

    spreads = spread_over_folds(folds)
    print(f"\nmean and SD over {len(folds)} folds, each on its own validation cases\n")
    print(format_spread(spreads))
    if out:
        write_spread(spreads, evaluation.figures, out)


def show_comparison(options: argparse.Namespace, cohort: "Cohort") -> None:
    """Print what `--versus` differs in, and write `comparison.json` and `comparison.csv`."""
    from bonemet_auto.evaluation.cohort import read_cohort
    from bonemet_auto.evaluation.comparison import (
        compare_cohorts,
        format_comparison,
        write_comparison,
    )

    other = read_cohort(options.versus, options.ref, processes=options.processes)
    differences = compare_cohorts(cohort, other)
    print(f"\nfirst: {options.pred}\nsecond: {options.versus}\n")
    print(format_comparison(differences))
    if options.out:
        n_patients = int(cohort.cases["patient_id"].nunique())
        write_comparison(differences, options.pred, options.versus, n_patients, options.out)
