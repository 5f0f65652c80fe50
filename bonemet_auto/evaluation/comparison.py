"""Two predictions of the same scans, figure by figure: differences with paired intervals."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import ndtr
from scipy.stats import binomtest

from bonemet_auto.errors import DataError
from bonemet_auto.evaluation.bootstrap import (
    NORMAL_975,
    REPLICATES,
    BoolArray,
    FloatArray,
    Measure,
    Measures,
    percentile_interval,
    replicate_all,
)
from bonemet_auto.evaluation.classification import placements, single_class_reason
from bonemet_auto.evaluation.cohort import Cohort
from bonemet_auto.evaluation.cohort_figures import (
    cohort_measures,
    cohort_weights,
    source_estimates,
)
from bonemet_auto.evaluation.source import Estimates
from bonemet_auto.files import atomic_write, write_text
from bonemet_auto.schema import FORMAT_VERSION


@dataclass(frozen=True)
class Difference:
    """A figure of two predictions, and the first less the second with its 95 % interval.

    What is undefined is None, and `note` says why. `p_value` is there where a test is made: of the
    hypothesis that both predictions are alike.
    """

    first: float | None
    second: float | None
    difference: float | None
    low: float | None
    high: float | None
    n_first: int
    n_second: int
    p_value: float | None = None
    note: str = ""


Differences = Mapping[str, Mapping[str, Difference]]


def compare_cohorts(
    first: Cohort, second: Cohort, n_bootstrap: int = REPLICATES, seed: int = 0
) -> Differences:
    """Differences of all figures; both are read on the same resampled patients.

    The patients' AUC is compared by the paired test of DeLong, their labels by McNemar's.

    Raises:
        DataError: the two are not of the same scans.
    """
    _require_same(first, second)
    weights = cohort_weights(first, n_bootstrap, seed)
    differences = _differences(cohort_measures(first), cohort_measures(second), weights)
    estimates = _paired(source_estimates(first)["patient"], source_estimates(second)["patient"])
    patient = differences["patient"]
    patient["auc_delong"] = delong_difference(*estimates)
    right, right_second = (each.called == each.positive for each in estimates)
    for name, among in _among(estimates[0]).items():
        patient[name] = _with_mcnemar(patient[name], right[among], right_second[among])
    return differences


def _require_same(first: Cohort, second: Cohort) -> None:
    cases = set(first.cases["case"]), set(second.cases["case"])
    alone = sorted(cases[0] ^ cases[1])
    if alone:
        raise DataError(
            f"only one of the two predictions has {', '.join(alone)}. A paired comparison needs "
            "both to have predicted the same scans."
        )


def _differences(
    first: Measures, second: Measures, weights: FloatArray
) -> dict[str, dict[str, Difference]]:
    """Differences of all figures, with percentile intervals of the replicates' differences."""
    pairs = {
        (group, name): (measure, second[group][name])
        for group, named in first.items()
        for name, measure in named.items()
    }
    here, there = (
        replicate_all([pair[which].statistic for pair in pairs.values()], weights)
        for which in (0, 1)
    )
    differences: dict[str, dict[str, Difference]] = {group: {} for group in first}
    with np.errstate(invalid="ignore"):
        for (key, pair), *replicates in zip(pairs.items(), here, there, strict=True):
            paired = replicates[0] - replicates[1]
            differences[key[0]][key[1]] = _difference(*pair, paired, weights.shape[1])
    return differences


def _difference(
    first: Measure, second: Measure, replicates: FloatArray, n_patients: int
) -> Difference:
    values = first.value(n_patients), second.value(n_patients)
    here, there = (value if np.isfinite(value) else None for value in values)
    if here is None or there is None:
        reason = f"first: {first.note}" if here is None else f"second: {second.note}"
        return Difference(here, there, None, None, None, first.n, second.n, note=reason)
    note = first.note if first.note == second.note else f"{first.note} / {second.note}"
    interval = percentile_interval(replicates, n_patients, note)
    ends = interval.low, interval.high
    return Difference(here, there, here - there, *ends, first.n, second.n, note=interval.note)


def _paired(first: Estimates, second: Estimates) -> tuple[Estimates, Estimates]:
    """The rows of the patients that both have, in the same order."""
    _, here, there = np.intersect1d(first.patients, second.patients, return_indices=True)
    return first.rows(here), second.rows(there)


def delong_difference(first: Estimates, second: Estimates) -> Difference:
    """AUC of the first less that of the second, of the same patients, by the paired DeLong test.

    Source: DeLong, DeLong and Clarke-Pearson, Biometrics 1988;44:837.
    """
    positive, n = first.positive, first.positive.size
    reason = single_class_reason(positive, "patients")
    if reason:
        return Difference(None, None, None, None, None, n, n, note=reason)
    (above, below), (above_second, below_second) = (
        placements(each.probability, positive) for each in (first, second)
    )
    values = float(above.mean()), float(above_second.mean())
    difference = values[0] - values[1]
    if min(above.size, below.size) < 2:
        note = "no test: one patient of a class"
        return Difference(*values, difference, None, None, n, n, note=note)
    spread = (above - above_second).var(ddof=1) / above.size
    error = float(np.sqrt(spread + (below - below_second).var(ddof=1) / below.size))
    if error == 0:
        note = "patients; no test: every patient stands alike in both rankings"
        return Difference(*values, difference, None, None, n, n, note=note)
    low, high = difference - NORMAL_975 * error, difference + NORMAL_975 * error
    p_value = float(2 * ndtr(-abs(difference) / error))
    return Difference(*values, difference, low, high, n, n, p_value, "patients; paired DeLong test")


def _among(estimates: Estimates) -> dict[str, BoolArray]:
    """Patients that each share of right labels counts."""
    positive = estimates.positive
    return {
        "accuracy": np.ones_like(positive),
        "sensitivity": positive,
        "specificity": ~positive,
    }


def mcnemar(right_first: BoolArray, right_second: BoolArray) -> tuple[float, str]:
    """Exact P value of McNemar's test (two-sided binomial), and the counts that it rests on.

    Source: McNemar, Psychometrika 1947;12:153.

    Args:
        right_first: (n,) whether the first prediction labels each patient rightly.
        right_second: (n,) the same of the second.
    """
    only_first = int((right_first & ~right_second).sum())
    only_second = int((~right_first & right_second).sum())
    differing = only_first + only_second
    p_value = float(binomtest(only_first, differing).pvalue) if differing else 1.0
    return p_value, f"McNemar: {only_first} right only in first, {only_second} only in second"


def _with_mcnemar(plain: Difference, right: BoolArray, right_second: BoolArray) -> Difference:
    if plain.difference is None:
        return plain
    p_value, note = mcnemar(right, right_second)
    return replace(plain, p_value=p_value, note=f"{plain.note}; {note}")


def write_comparison(
    differences: Differences, first: Path, second: Path, n_patients: int, out: Path
) -> None:
    """Write `comparison.json` and `comparison.csv`, one row per figure, into a folder.

    Args:
        differences: as `compare_cohorts` gives them.
        first: folder of the first prediction.
        second: folder of the second one.
        n_patients: of the cohort.
        out: folder to write into.
    """
    record = {
        "format_version": FORMAT_VERSION,
        "first": str(first),
        "second": str(second),
        "n_patients": n_patients,
        "differences": {
            group: {name: asdict(each) for name, each in named.items()}
            for group, named in differences.items()
        },
    }
    write_text(out / "comparison.json", json.dumps(record, indent=1, allow_nan=False) + "\n")
    table = pd.DataFrame(
        {"group": group, "name": name, **asdict(each)}
        for group, named in differences.items()
        for name, each in named.items()
    )
    with atomic_write(out / "comparison.csv") as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


def format_comparison(differences: Differences) -> str:
    """Text for a terminal: both figures, their difference with its interval, P where tested."""
    lines = [f"{'':32}  first  second  difference (95 % interval)"]
    for group, named in differences.items():
        lines += ["", group, *(_format(name, each) for name, each in named.items())]
    return "\n".join(lines)


def _format(name: str, each: Difference) -> str:
    values = "".join(
        f"{'-':>8}" if value is None else f"{value:8.3f}" for value in (each.first, each.second)
    )
    if each.difference is None:
        return f"  {name:30}{values}   -  {each.note}"
    interval = (
        "" if each.low is None or each.high is None else f"({each.low:+.3f} to {each.high:+.3f})"
    )
    tested = "" if each.p_value is None else f"P = {each.p_value:.3g}"
    n = (
        f"n={each.n_first}"
        if each.n_first == each.n_second
        else f"n={each.n_first}/{each.n_second}"
    )
    return f"  {name:30}{values}  {each.difference:+.3f} {interval:18} {tested:10} {n} {each.note}"
