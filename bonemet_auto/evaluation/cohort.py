"""From two folders to three tables: cases, lesions and candidates of a cohort."""

import math
import multiprocessing
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from bonemet_auto.errors import DataError, UsageError
from bonemet_auto.evaluation.folders import CaseFiles, open_predictions, open_references
from bonemet_auto.evaluation.measure import (
    HIT_RULES,
    IOU_THRESHOLDS,
    CaseJob,
    MeasuredCase,
    Row,
    measure_case,
)
from bonemet_auto.images import find_images, read_geometry
from bonemet_auto.processor import INTERPRETER_BYTES, processes_for
from bonemet_auto.schema import DatasetInfo, read_json

BYTES_PER_VOXEL = 6
"""Of the scan that a process reads: the file unpacked, and what of it is kept."""
VOXELS_WORTH_PROCESSES = 1_000_000_000
"""Of all scans; below it a second interpreter takes longer to start than it saves."""

_CASE_COLUMNS = {
    "case": "str", "patient_id": "str", "patient_label": "Int64", "probability": "float64",
    "predicted_label": "Int64", "n_reference": "int64", "n_predicted": "int64",
    "n_found": "int64", "n_false_positive": "int64", "n_false_positive_centre": "int64",
    "dsc": "float64", "voxel_sensitivity": "float64", "voxel_specificity": "float64",
    "nsd_1mm": "float64", "nsd_2mm": "float64", "hd95_mm": "float64",
    "volume_mm3": "float64", "predicted_volume_mm3": "float64",
}  # fmt: skip
_LESION_COLUMNS = {
    "case": "str", "patient_id": "str", "outcome": "str", "reference_id": "int64",
    "predicted_id": "int64", "is_lung": "boolean", "score": "float64",
    "p_lung_metastasis": "float64", "iou": "float64", "dsc": "float64",
    "nsd_1mm": "float64", "nsd_2mm": "float64", "hd95_mm": "float64", "volume_mm3": "float64",
    "predicted_volume_mm3": "float64", "diameter_mm": "float64",
    **{f"found_iou_{t}": "bool" for t in IOU_THRESHOLDS}, "hit_centre": "bool",
}  # fmt: skip
_CANDIDATE_COLUMNS = {
    "case": "str", "patient_id": "str", "score": "float64",
    **{f"hit_{rule}": "bool" for rule in HIT_RULES},
}  # fmt: skip


@dataclass(frozen=True)
class Cohort:
    """What was measured, before any averaging.

    Attributes:
        cases: one row per scan; blank labels and probabilities are unknown.
        lesions: one row per annotated lesion (`outcome` found or missed, by the lesions at the
            operating point) and per false positive (`reference_id` 0).
        candidates: one row per prediction, those below the operating point included.
        left_out: predicted cases without a reference.
        notes: how folders are read that are not in our format.
    """

    cases: pd.DataFrame
    lesions: pd.DataFrame
    candidates: pd.DataFrame
    left_out: tuple[str, ...]
    notes: tuple[str, ...] = ()


def read_cohort(
    pred: Path, ref: Path, cases: Collection[str] | None = None, processes: int = 1
) -> Cohort:
    """Read, check and measure all cases of a reference folder, or those named.

    Args:
        pred: folder in our prediction format, of plain masks, or of nnDetection's JSON files.
        ref: folder of CASE.nii.gz and CASE.json as in `labelsTs`, or of plain masks;
            `dataset.json` beside it names the positive class, otherwise that is class 1.
        cases: names of the cases to measure; None for all.
        processes: that measure at the same time; the result is the same with any number.

    Raises:
        DataError: a case without a prediction, or files that are broken or do not fit each other;
            all such cases are named.
    """
    references, predictions = open_references(ref), open_predictions(pred)
    jobs = _jobs(references, predictions, pred, ref, cases)
    outcomes = list(
        tqdm(_outcomes(jobs, processes), "Measuring", len(jobs), unit="case", disable=None)
    )
    faults = [outcome for outcome in outcomes if isinstance(outcome, str)]
    if faults:
        raise DataError(f"{len(faults)} of {len(jobs)} cases: " + " | ".join(faults))
    measured = [outcome for outcome in outcomes if not isinstance(outcome, str)]
    return Cohort(
        _table((case.row for case in measured), _CASE_COLUMNS),
        _table((row for case in measured for row in case.lesions), _LESION_COLUMNS),
        _table((row for case in measured for row in case.candidates), _CANDIDATE_COLUMNS),
        tuple(sorted(predictions.paths.keys() - {job.case for job in jobs})),
        tuple(folder.note for folder in (references, predictions) if folder.note),
    )


def useful_processes(ref: Path) -> int:
    """Processes to measure a cohort with: as cores and memory allow; one for little work."""
    sizes = [0]
    for path in find_images(ref).values():
        with suppress(DataError):  # reading the case will say what is wrong with it
            sizes.append(math.prod(read_geometry(path).shape))
    if sum(sizes) < VOXELS_WORTH_PROCESSES:
        return 1
    return processes_for(INTERPRETER_BYTES + BYTES_PER_VOXEL * max(sizes))


def _jobs(
    references: CaseFiles,
    predictions: CaseFiles,
    pred: Path,
    ref: Path,
    cases: Collection[str] | None,
) -> list[CaseJob]:
    maps = {c: path for c, path in references.paths.items() if cases is None or c in cases}
    missing = sorted(maps.keys() - predictions.paths.keys())
    if missing:
        raise DataError(
            f"{len(missing)} of {len(maps)} cases of {ref} have no prediction in {pred}: "
            f"{', '.join(missing)}. Predict them, or take their reference out."
        )
    positive_class = _positive_class(ref)
    return [
        CaseJob(
            case, path, predictions.paths[case], references.kind, predictions.kind, positive_class
        )
        for case, path in maps.items()
    ]


def _outcomes(jobs: Sequence[CaseJob], processes: int) -> Iterator[MeasuredCase | str]:
    """What was measured of each case, in their order, or what is wrong with it."""
    if processes < 2:
        yield from map(_measure, jobs)
        return
    # Fresh interpreters: forking a process that has started threads can hang.
    fresh = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(processes, mp_context=fresh) as pool:
            yield from pool.map(_measure, jobs)
    except BrokenProcessPool:
        raise UsageError(
            f"one of {processes} processes died, most likely out of memory. Give --processes 1."
        ) from None


def _measure(job: CaseJob) -> MeasuredCase | str:
    try:
        return measure_case(job)
    except DataError as fault:
        return str(fault)


def _table(rows: Iterable[Row], columns: dict[str, str]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=list(columns)).astype(columns)


def _positive_class(ref: Path) -> int:
    described = ref.resolve().parent / "dataset.json"
    return read_json(described, DatasetInfo).positive_class if described.is_file() else 1
