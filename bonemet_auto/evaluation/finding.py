"""What a cohort's predictions find and outline, as functions of patient weights."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from bonemet_auto.evaluation.bootstrap import Measure, mean_statistic
from bonemet_auto.evaluation.classification import share_measure
from bonemet_auto.evaluation.detection import (
    FROC_RATES,
    Candidates,
    average_precision,
    froc_sensitivity,
)
from bonemet_auto.evaluation.means import SIZE_BINS, Mean
from bonemet_auto.evaluation.measure import (
    CENTRE_RULE,
    HIT_RULES,
    IOU_THRESHOLDS,
    PRIMARY_IOU,
    PRIMARY_RULE,
)

_NO_LESIONS = "no annotated lesions"


def mean_measure(
    rows: pd.DataFrame, column: str, n_patients: int, note: str, empty: str
) -> Measure:
    """Mean of a column over the rows that have a value, with the reason `empty` if none has.

    Args:
        rows: table with a column `patient`, 0 to n_patients - 1.
        column: to average.
        n_patients: of the cohort.
        note: what the rows are.
        empty: why there is no mean, for no row.
    """
    known = rows[rows[column].notna()]
    statistic = mean_statistic(
        known[column].to_numpy(np.float64), known["patient"].to_numpy(np.int64), n_patients
    )
    return Measure(statistic, len(known), note if len(known) else empty)


def mean_measures(means: Mapping[str, Mean], n_patients: int) -> dict[str, Measure]:
    """The same figures as functions of patient weights."""
    return {
        name: mean_measure(each.rows, each.column, n_patients, each.note, each.empty)
        for name, each in means.items()
    }


def found_measures(annotated: pd.DataFrame, n_patients: int) -> dict[str, Measure]:
    """Which annotated lesions are found at the operating point, by overlap and by size."""
    measures = {
        f"sensitivity_iou_{iou}": _found(annotated, f"found_iou_{iou}", n_patients, _NO_LESIONS)
        for iou in IOU_THRESHOLDS
    }
    measures["sensitivity_centre"] = _found(annotated, "hit_centre", n_patients, _NO_LESIONS)
    for name, (low, high, inclusive) in SIZE_BINS.items():
        of_size = annotated[annotated["diameter_mm"].between(low, high, inclusive=inclusive)]
        measures[f"sensitivity_{name}"] = _found(
            of_size, f"found_iou_{PRIMARY_IOU}", n_patients, f"{_NO_LESIONS} of this size"
        )
    return measures


def _found(annotated: pd.DataFrame, column: str, n_patients: int, empty: str) -> Measure:
    return share_measure(
        annotated[column].to_numpy(bool),
        annotated["patient"].to_numpy(np.int64),
        n_patients,
        "annotated lesions",
        empty,
    )


def false_positive_measures(cases: pd.DataFrame, n_patients: int) -> dict[str, Measure]:
    """What is found beside the annotated lesions at the operating point."""
    columns = {
        "fp_per_scan": "n_false_positive", "fp_per_scan_centre": "n_false_positive_centre"
    }  # fmt: skip
    return {
        name: mean_measure(cases, column, n_patients, "scans", "")
        for name, column in columns.items()
    }


def curve_measures(cases: pd.DataFrame, candidates: pd.DataFrame) -> dict[str, Measure]:
    """FROC and average precision: over all thresholds, from lesions and candidates."""
    scored = {
        rule: Candidates(
            candidates["score"].to_numpy(np.float64),
            candidates[f"hit_{rule}"].to_numpy(bool),
            candidates["patient"].to_numpy(np.int64),
            np.bincount(cases["patient"], cases["n_reference"]).astype(np.float64),
            np.bincount(cases["patient"]).astype(np.float64),
        )
        for rule in HIT_RULES
    }
    statistics = {}
    for rule, ending in ((PRIMARY_RULE, ""), (CENTRE_RULE, f"_{CENTRE_RULE}")):
        for rate in FROC_RATES:
            name = f"sensitivity_at_{rate:g}_fp{ending}"
            statistics[name] = froc_sensitivity(scored[rule], (rate,))
        statistics[f"cpm{ending}"] = froc_sensitivity(scored[rule], FROC_RATES)
    statistics |= {f"ap_{rule}": average_precision(scored[rule]) for rule in HIT_RULES}
    n = int(cases["n_reference"].sum())
    note = "annotated lesions" if n else _NO_LESIONS
    return {name: Measure(each, n, note) for name, each in statistics.items()}
