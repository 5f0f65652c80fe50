"""Figures of the folds of a cross-validation: each on its own cases, their spread, all pooled."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from bonemet_auto.errors import DataError
from bonemet_auto.evaluation.bootstrap import Figures
from bonemet_auto.evaluation.cohort import Cohort, read_cohort
from bonemet_auto.evaluation.cohort_figures import cohort_measures, count_patients
from bonemet_auto.files import atomic_write
from bonemet_auto.images import list_images

VALIDATION = "validation"


def find_folds(results: Path) -> dict[str, Path]:
    """Folders of validation predictions by fold: each `fold_*/validation` with a case in it.

    Raises:
        DataError: there is none.
    """
    folders = {path.name: path / VALIDATION for path in sorted(results.glob("fold_*"))}
    folds = {name: path for name, path in folders.items() if list_images(path)}
    if not folds:
        raise DataError(
            f"{results} holds no predictions in fold_*/{VALIDATION}. Give the folder of a plan's "
            "results (results/DATASET/PLAN), with folds that are trained to their end."
        )
    return folds


def read_folds(results: Path, ref: Path, processes: int = 1) -> dict[str, Cohort]:
    """Measure the validation cases of each fold.

    Args:
        results: folder that holds `fold_*/validation`.
        ref: folder of references, as `labelsTr`; those of other cases are passed over.
        processes: that measure at the same time.

    Raises:
        DataError: as `cohort.read_cohort`; a case without a reference, or in two folds.
    """
    owners: dict[str, list[str]] = {}
    folds = find_folds(results)
    for fold, folder in folds.items():
        for case in list_images(folder):
            owners.setdefault(case, []).append(fold)
    twice = [f"{case} ({', '.join(names)})" for case, names in owners.items() if len(names) > 1]
    if twice:
        raise DataError(
            f"{results}: {'; '.join(twice)} validated more than one fold, so the folds are of "
            "different splits. Train them anew, or evaluate each with --pred."
        )
    unknown = sorted(owners.keys() - list_images(ref).keys())
    if unknown:
        raise DataError(
            f"{ref} has no reference of {', '.join(unknown)}, which {results} validated on. Give "
            "the labelsTr that the folds were trained with."
        )
    return {
        fold: read_cohort(folder, ref, set(list_images(folder)), processes)
        for fold, folder in folds.items()
    }


def pool(folds: Mapping[str, Cohort]) -> Cohort:
    """All folds as one cohort, in the order of the cases."""
    cases, lesions, candidates = (
        pd.concat([getattr(cohort, table) for cohort in folds.values()], ignore_index=True)
        for table in ("cases", "lesions", "candidates")
    )
    first = next(iter(folds.values()))
    return replace(
        first,
        cases=cases.sort_values("case", ignore_index=True),
        lesions=lesions.sort_values("case", ignore_index=True, kind="stable"),
        candidates=candidates.sort_values("case", ignore_index=True, kind="stable"),
    )


@dataclass(frozen=True)
class Spread:
    """A figure over folds.

    Attributes:
        folds: its value in each; None where undefined.
        mean: over the folds that have one; None for none.
        sd: standard deviation of these (n - 1); None for fewer than two.
    """

    folds: dict[str, float | None]
    mean: float | None
    sd: float | None


def spread_over_folds(folds: Mapping[str, Cohort]) -> dict[str, dict[str, Spread]]:
    """Mean and standard deviation over folds, of every figure."""
    measured = {fold: (cohort_measures(each), count_patients(each)) for fold, each in folds.items()}
    first, _ = next(iter(measured.values()))
    return {
        group: {
            name: _spread(
                {fold: measures[group][name].value(n) for fold, (measures, n) in measured.items()}
            )
            for name in named
        }
        for group, named in first.items()
    }


def _spread(values: Mapping[str, float]) -> Spread:
    known = [value for value in values.values() if np.isfinite(value)]
    return Spread(
        {fold: value if np.isfinite(value) else None for fold, value in values.items()},
        float(np.mean(known)) if known else None,
        float(np.std(known, ddof=1)) if len(known) > 1 else None,
    )


def write_spread(spreads: Mapping[str, Mapping[str, Spread]], pooled: Figures, out: Path) -> None:
    """Write `folds.csv`: of every figure each fold, mean and SD, and all cases together."""
    table = pd.DataFrame(
        {
            "group": group, "name": name, **each.folds, "mean": each.mean, "sd": each.sd,
            "n_folds": sum(value is not None for value in each.folds.values()),
            "pooled": pooled[group][name].value, "pooled_low": pooled[group][name].low,
            "pooled_high": pooled[group][name].high,
        }
        for group, named in spreads.items()
        for name, each in named.items()
    )  # fmt: skip
    with atomic_write(out / "folds.csv") as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


def format_spread(spreads: Mapping[str, Mapping[str, Spread]]) -> str:
    """Text for a terminal: mean and SD over folds, then each fold."""
    first = next(iter(next(iter(spreads.values())).values()))
    lines = [f"{'':32}  mean    SD     {' '.join(f'{fold:>7}' for fold in first.folds)}"]
    for group, named in spreads.items():
        lines += ["", group]
        for name, each in named.items():
            values = " ".join(f"{_number(value):>7}" for value in each.folds.values())
            lines.append(f"  {name:30}{_number(each.mean):>7} {_number(each.sd):>6}    {values}")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
