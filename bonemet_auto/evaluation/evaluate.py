"""Figures of a cohort with 95 % intervals, from two folders to files."""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from bonemet_auto.evaluation.bootstrap import REPLICATES, Figures, read_measures
from bonemet_auto.evaluation.cohort import Cohort, read_cohort
from bonemet_auto.evaluation.cohort_figures import cohort_measures, cohort_weights, source_estimates
from bonemet_auto.evaluation.decision import decision_curves
from bonemet_auto.evaluation.rules import RULES
from bonemet_auto.evaluation.source import Estimates
from bonemet_auto.evaluation.subgroups import Subgroup, subgroup_table
from bonemet_auto.files import atomic_write, write_text
from bonemet_auto.schema import FORMAT_VERSION

METRICS_NAME = "metrics.json"


@dataclass(frozen=True)
class Evaluation:
    """All that is known of a cohort's predictions.

    Attributes:
        cases: one row per scan.
        lesions: one row per annotated lesion and per false positive.
        figures: segmentation, detection, lesion and patient figures by name.
        left_out: predicted cases without a reference.
        estimates: rows behind the figures of sources, by their group.
        decision_curves: net benefit over thresholds, of lesions and patients.
        on_reference: the same scans with estimates for the reference's own lesions, if given.
        subgroups: figures of parts of the cohort, if asked for.
        notes: how folders were read that are not in our format.
    """

    cases: pd.DataFrame
    lesions: pd.DataFrame
    figures: Figures
    left_out: tuple[str, ...]
    estimates: Mapping[str, Estimates]
    decision_curves: pd.DataFrame
    on_reference: Cohort | None = None
    subgroups: tuple[Subgroup, ...] = ()
    notes: tuple[str, ...] = ()


def evaluate_folders(
    pred: Path,
    ref: Path,
    n_bootstrap: int = REPLICATES,
    seed: int = 0,
    cases: Collection[str] | None = None,
    processes: int = 1,
) -> Evaluation:
    """Evaluate a folder of predictions against a folder of references.

    Args:
        pred: predictions as `cohort.read_cohort` takes them; those without a reference are left
            out.
        ref: references as `cohort.read_cohort` takes them.
        n_bootstrap: resamplings of the patients behind each interval.
        seed: of the resampling; equal inputs and seeds give equal figures.
        cases: names of the cases to evaluate; None for all references.
        processes: that measure cases at the same time.

    Raises:
        DataError: as `cohort.read_cohort`.
    """
    cohort = read_cohort(pred, ref, cases, processes)
    return evaluate_cohort(cohort, n_bootstrap=n_bootstrap, seed=seed)


def evaluate_cohort(
    cohort: Cohort,
    on_reference: Cohort | None = None,
    n_bootstrap: int = REPLICATES,
    seed: int = 0,
) -> Evaluation:
    """Evaluate a measured cohort.

    Args:
        cohort: what was found in all scans.
        on_reference: the same scans with estimates for the reference's own lesions: adds the groups
            `lesion_on_reference` and `patient_on_reference`.
        n_bootstrap: resamplings of the patients behind each interval.
        seed: of the resampling.
    """
    weights = cohort_weights(cohort, n_bootstrap, seed)
    estimates = source_estimates(cohort, on_reference)
    return Evaluation(
        cohort.cases,
        cohort.lesions,
        read_measures(cohort_measures(cohort, on_reference), weights),
        cohort.left_out,
        estimates,
        decision_curves(estimates, weights),
        on_reference,
        notes=cohort.notes,
    )


def write_evaluation(evaluation: Evaluation, out: Path, cohort: str = "external") -> None:
    """Write `metrics.json` and the tables, as docs/reference/formats.md lists them.

    Args:
        evaluation: what to write.
        out: the folder.
        cohort: which of the publication's cohorts it is to stand beside.
    """
    metrics = {
        "format_version": FORMAT_VERSION,
        "cohort": cohort,
        "n_scans": len(evaluation.cases),
        "n_patients": int(evaluation.cases["patient_id"].nunique()),
        "left_out": evaluation.left_out,
        "inputs": evaluation.notes,
        "rules": RULES,
        "figures": {
            group: {name: asdict(figure) for name, figure in named.items()}
            for group, named in evaluation.figures.items()
        },
    }
    if evaluation.subgroups:
        metrics["subgroups"] = [
            asdict(part) | {"small": part.small} for part in evaluation.subgroups
        ]
    write_text(out / METRICS_NAME, json.dumps(metrics, indent=1, allow_nan=False) + "\n")
    for name, table in _tables(evaluation).items():
        with atomic_write(out / name) as temporary:
            table.to_csv(temporary, index=False, lineterminator="\n")


def _tables(evaluation: Evaluation) -> dict[str, pd.DataFrame]:
    """Tables by the name of their file; `patients.csv` has one row per scan."""
    tables = {
        "patients.csv": evaluation.cases,
        "lesions.csv": evaluation.lesions,
        "decision_curve.csv": evaluation.decision_curves,
    }
    if evaluation.on_reference is not None:
        tables["patients_on_reference.csv"] = evaluation.on_reference.cases
        tables["lesions_on_reference.csv"] = evaluation.on_reference.lesions
    if evaluation.subgroups:
        tables["subgroups.csv"] = subgroup_table(evaluation.subgroups)
    return tables
