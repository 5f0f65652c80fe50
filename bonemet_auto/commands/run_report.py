"""`run_report.json`: what ran, on what, how long."""

import argparse
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from bonemet_auto import __version__

if TYPE_CHECKING:
    from bonemet_auto.inference.cost import Cost
    from bonemet_auto.inference.load import Ensemble

_REPORTED_PACKAGES = ("torch", "numpy", "scipy", "SimpleITK")


def write_run_report(
    path: Path,
    options: argparse.Namespace,
    ensemble: "Ensemble",
    device: str,
    started: datetime,
    elapsed_s: float,
    counts: tuple[int, int],
    costs: "Mapping[str, Cost]",
    has_studies: bool,
) -> None:
    """Write what ran; where DICOM went in, its path is left out: it may name a patient."""
    from importlib.metadata import version

    from bonemet_auto.result_schema import CaseCost, RunReport
    from bonemet_auto.schema import write_json

    given = {name: value for name, value in vars(options).items() if name != "given"}
    flags = {name: str(value) for name, value in given.items() if value is not None}
    if has_studies:
        flags["input"] = "DICOM studies"
    report = RunReport(
        command="bonemet_predict",
        bonemet_version=__version__,
        versions={package: version(package) for package in _REPORTED_PACKAGES},
        device=device,
        flags=flags
        | {
            "folds_used": ", ".join(str(folder) for folder in ensemble.folders),
            "networks": str(len(ensemble.models)),
            "operating_point": ensemble.operating_point.rule,
        },
        seed=None,
        started=started.isoformat(timespec="seconds"),
        elapsed_s=round(elapsed_s, 3),
        cases_done=counts[0],
        cases_failed=counts[1],
        costs={
            case: CaseCost(
                seconds={stage: round(taken_s, 3) for stage, taken_s in cost.seconds.items()},
                windows=cost.windows,
                windows_left_out=cost.windows_left_out,
                notes=tuple(cost.notes),
            )
            for case, cost in costs.items()
        },
    )
    write_json(path, report)
