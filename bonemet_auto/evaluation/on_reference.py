"""Predictions on the reference's own lesions: sources apart from finding and outlining."""

from pathlib import Path

import pandas as pd

from bonemet_auto.errors import DataError
from bonemet_auto.evaluation.cohort import Cohort, read_cohort

_NAMED = 10


def read_on_reference(pred: Path, ref: Path, processes: int = 1) -> Cohort:
    """As `read_cohort`, for what `bonemet_predict --lesions` wrote of the references' lesions.

    Raises:
        DataError: as `read_cohort`, and where a case has other lesions than its reference.
    """
    cohort = read_cohort(pred, ref, processes=processes)
    strange = _with_other_lesions(cohort.lesions)
    if strange:
        more = "" if len(strange) <= _NAMED else f" and {len(strange) - _NAMED} more"
        raise DataError(
            f"{pred}: lesions of {', '.join(strange[:_NAMED])}{more} are not those of {ref}, voxel "
            f"by voxel and under the same ids. Predict with bonemet_predict --lesions {ref}."
        )
    return cohort


def is_on_reference(cohort: Cohort) -> bool:
    """Whether all lesions are the references' own, so that nothing was found or outlined."""
    lesions = cohort.lesions
    sure = bool((lesions["score"] == 1).all()) and len(lesions) > 0
    estimated = bool(lesions["p_lung_metastasis"].notna().any())
    return sure and estimated and not _with_other_lesions(lesions)


def _with_other_lesions(lesions: pd.DataFrame) -> list[str]:
    same = (lesions["iou"] == 1) & (lesions["predicted_id"] == lesions["reference_id"])
    return sorted(lesions.loc[~same, "case"].unique())
