"""Decision curves: what acting on a probability is worth beside acting on all or on none."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from bonemet_auto.evaluation.bootstrap import FloatArray
from bonemet_auto.evaluation.source import Estimates

THRESHOLDS = np.arange(1, 100) / 100

_COLUMNS = {
    "group": "str", "threshold": "float64", "net_benefit": "float64", "low": "float64",
    "high": "float64", "treat_all": "float64", "treat_none": "float64", "n": "int64",
}  # fmt: skip


def decision_curves(estimates: Mapping[str, Estimates], weights: FloatArray) -> pd.DataFrame:
    """Net benefit over probability thresholds, in true positives per lesion or patient.

    True positives less false positives times the odds of the threshold, by the number of rows: at
    threshold t one true positive outweighs (1 - t) / t false ones.

    Source: Vickers and Elkin, Medical Decision Making 2006;26:565.

    Args:
        estimates: lesions or patients, by group.
        weights: (replicates, patients), as `patient_weights` gives them.

    Returns:
        One row per group and threshold; none for a group without estimates.
    """
    curves = [
        _curve(each, weights).assign(group=group)
        for group, each in estimates.items()
        if each.positive.size
    ]
    return pd.concat([pd.DataFrame(columns=list(_COLUMNS)), *curves])[list(_COLUMNS)].astype(
        _COLUMNS
    )


def _curve(estimates: Estimates, weights: FloatArray) -> pd.DataFrame:
    odds = THRESHOLDS / (1 - THRESHOLDS)
    worth = np.where(estimates.positive[:, None], 1.0, -odds)
    acted = worth * (estimates.probability[:, None] >= THRESHOLDS)
    of_patients = np.zeros((estimates.n_patients, THRESHOLDS.size))
    np.add.at(of_patients, estimates.patients, acted)
    rows = weights @ np.bincount(estimates.patients, minlength=estimates.n_patients)
    # A draw without any of these patients has nothing to act on.
    drawn = rows > 0
    benefit = (weights[drawn] @ of_patients) / rows[drawn, None]
    low, high = np.quantile(benefit, [0.025, 0.975], axis=0)
    return pd.DataFrame({
        "threshold": THRESHOLDS, "net_benefit": acted.mean(axis=0), "low": low, "high": high,
        "treat_all": worth.mean(axis=0), "treat_none": 0.0, "n": estimates.positive.size,
    })  # fmt: skip
