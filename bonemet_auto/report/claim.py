"""`claim_checklist.md`: what an evaluation knows of the items of CLAIM 2024, and what it cannot."""

import json
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from bonemet_auto import __version__
from bonemet_auto.errors import DataError
from bonemet_auto.evaluation.bootstrap import Figure
from bonemet_auto.evaluation.evaluate import Evaluation
from bonemet_auto.evaluation.paper import PAPER_ROWS, Cohort
from bonemet_auto.files import write_text
from bonemet_auto.report.cases import known_record
from bonemet_auto.report.model_card import TO_FILL_IN
from bonemet_auto.report.templates import load_template
from bonemet_auto.result_schema import RunReport
from bonemet_auto.schema import read_json

CHECKLIST_NAME = "claim_checklist.md"

_PACKAGES = ("numpy", "scipy", "scikit-image", "pandas")
_N_WORST = 5

Row = tuple[str, str, str, str]


def write_checklist(pred: Path, evaluation: Evaluation, cohort: Cohort, out: Path) -> Path:
    """Write the checklist into `out` and return its path.

    Args:
        pred: folder of the predictions; a `run_report.json` there tells of the software.
        evaluation: tables and figures.
        cohort: what the cohort was declared to be.
        out: folder.
    """
    path = out / CHECKLIST_NAME
    write_text(
        path,
        load_template(CHECKLIST_NAME).render(
            todo=f"**{TO_FILL_IN}**",
            cohort=cohort,
            versions={"bonemet_auto": __version__} | {name: version(name) for name in _PACKAGES},
            rows=[_row(row.title, evaluation.figures[row.group][row.name]) for row in PAPER_ROWS],
            patient_rows=[
                _row(name.replace("_", " "), figure)
                for name, figure in evaluation.figures["patient"].items()
            ],
            measures={
                group.replace("_", " "): ", ".join(figures).replace("_", " ")
                for group, figures in evaluation.figures.items()
            },
            thresholds=_thresholds(pred, evaluation.cases),
            **_software(pred),
            **_patient_counts(evaluation.cases),
            **_lesion_counts(evaluation.lesions),
            **_case_counts(pred, evaluation),
        ),
    )
    return path


def _software(pred: Path) -> dict[str, Any]:
    """What predicted, where that is known to have been this software."""
    run = None
    for report in sorted(pred.glob("run_report*.json")):
        with suppress(DataError):  # that of another program
            run = read_json(report, RunReport)
    if run is None:
        return {"ours": False, "run": None, "n_networks": 0}
    return {"ours": True, "run": run, "n_networks": int(run.flags.get("networks", 0))}


def _case_counts(pred: Path, evaluation: Evaluation) -> dict[str, Any]:
    cases = evaluation.cases
    worst = cases.dropna(subset="dsc").sort_values(["dsc", "case"]).head(_N_WORST)
    failed = [json.loads(path.read_text("utf-8")) for path in pred.glob("failed_cases*.json")]
    return {
        "n_scans": len(cases),
        "n_annotated": int((cases["n_reference"] > 0).sum()),
        "n_left_out": len(evaluation.left_out),
        "n_failed": sum(len(each) for each in failed),
        "n_false": int(cases["n_false_positive"].sum()),
        "worst": ", ".join(
            f"{case} ({dsc:.2f})" for case, dsc in zip(worst["case"], worst["dsc"], strict=True)
        )
        or "none is known",
    }


def _patient_counts(cases: pd.DataFrame) -> dict[str, int]:
    """Patients by label: positive if any scan is, otherwise unknown if any scan is."""
    grouped = cases.groupby("patient_id")
    positive = grouped["patient_label"].max().eq(1).fillna(False).astype(bool)
    unknown = grouped["patient_label"].apply(lambda labels: labels.isna().any()) & ~positive
    return {
        "n_patients": len(positive),
        "n_positive": int(positive.sum()),
        "n_unknown": int(unknown.sum()),
        "n_negative": int((~positive & ~unknown).sum()),
        "n_without_estimate": int(grouped["probability"].max().isna().sum()),
    }


def _lesion_counts(lesions: pd.DataFrame) -> dict[str, Any]:
    annotated = lesions[lesions["reference_id"] > 0]
    diameter = annotated["diameter_mm"]
    sizes = f"{diameter.min():.0f} to {diameter.max():.0f} (median {diameter.median():.0f})"
    return {
        "n_lesions": len(annotated),
        "n_lung": int(annotated["is_lung"].fillna(False).sum()),
        "n_lesions_unknown": int(annotated["is_lung"].isna().sum()),
        "n_missed": int((annotated["outcome"] == "missed").sum()),
        "sizes": sizes if len(annotated) else "",
    }


def _thresholds(pred: Path, cases: pd.DataFrame) -> str:
    """Those that the predictions were made with, in words."""
    records = [record for case in cases["case"] if (record := known_record(pred, case))]
    scores = {record.score_threshold for record in records}
    patients = {record.patient.threshold for record in records if record.patient}
    return f"lesion score {_joined(scores)}, patient {_joined(patients)}"


def _joined(values: set[float]) -> str:
    return " or ".join(f"{value:.3g}" for value in sorted(values)) or "none"


def _row(title: str, figure: Figure) -> Row:
    value = "not defined" if figure.value is None else f"{figure.value:.3f}"
    known = figure.low is not None and figure.high is not None
    interval = f"{figure.low:.3f} to {figure.high:.3f}" if known else ""
    return title, value, interval, f"{figure.n} {figure.note}".strip()
