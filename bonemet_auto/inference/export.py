"""Predictions as files: see docs/reference/formats.md."""

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np

from bonemet_auto.files import write_text
from bonemet_auto.geometry import Geometry
from bonemet_auto.images import Volume, write_volume
from bonemet_auto.inference.place import Lesion
from bonemet_auto.inference.predict import CaseResult
from bonemet_auto.model.patient import PatientLesions, rule_of
from bonemet_auto.result_schema import CasePrediction, LesionRecord, OperatingPoint, PatientRecord
from bonemet_auto.schema import read_json, write_json

CANDIDATES = "candidates"
_ANEW = "Predict the case again."
_RUN_FILE = re.compile(r"(run_report|failed_cases)(_part\d+of\d+)?\.json")


Also = Callable[[CasePrediction], None]


def write_case(
    out: Path,
    case: str,
    geometry: Geometry,
    result: CaseResult,
    point: OperatingPoint,
    also: Also = lambda record: None,
) -> CasePrediction:
    """Write one case; `CASE.json` comes last, so that a case with it is complete.

    Args:
        out: output folder.
        case: case id.
        geometry: the scan's grid.
        result: what was found.
        point: thresholds that split lesions from candidates, and patients.
        also: writes what else belongs to a complete case, once `CASE.nii.gz` is there.

    Returns:
        What `CASE.json` holds.
    """
    reported, candidates = split_case(case, geometry, result, point)
    (out / f"{case}.json").unlink(missing_ok=True)
    write_volume(out / CANDIDATES / f"{case}.nii.gz", candidates.drawn(geometry))
    write_json(out / CANDIDATES / f"{case}.json", candidates.record)
    write_volume(out / f"{case}.nii.gz", reported.drawn(geometry))
    also(reported.record)
    write_json(out / f"{case}.json", reported.record)
    return reported.record


def write_drawn_case(
    out: Path,
    case: str,
    geometry: Geometry,
    lesions: Mapping[int, Lesion],
    warnings: Sequence[str],
    point: OperatingPoint,
    also: Also,
) -> CasePrediction:
    """Write a case whose lesions a person drew, under their own ids; there are no candidates.

    Args:
        out: output folder.
        case: case id.
        geometry: the scan's grid.
        lesions: by id; all of them count.
        warnings: reasons to distrust the estimates.
        point: how patients are estimated.
        also: as for `write_case`.
    """
    record = CasePrediction(
        case=case,
        lesions=_records(tuple(lesions.values()), lesions, geometry),
        patient=estimate_patient(tuple(lesions.values()), point),
        score_threshold=point.score_threshold,
        warnings=tuple(warnings),
    )
    (out / f"{case}.json").unlink(missing_ok=True)
    write_volume(out / f"{case}.nii.gz", Share(tuple(lesions.values()), record).drawn(geometry))
    also(record)
    write_json(out / f"{case}.json", record)
    return record


@dataclass(frozen=True)
class Share:
    """Lesions of a case that are reported together, and what is said of them.

    Attributes:
        lesions: by falling score, as numbered in the record.
        record: for `CASE.json`.
    """

    lesions: tuple[Lesion, ...]
    record: CasePrediction

    def drawn(self, geometry: Geometry) -> Volume:
        """Instance map, uint16, of the ids in the record."""
        instances = np.zeros(geometry.shape, dtype=np.uint16)
        for lesion, described in zip(self.lesions, self.record.lesions, strict=True):
            instances[lesion.region][lesion.mask] = described.id
        return Volume(instances, geometry)


def split_case(
    case: str, geometry: Geometry, result: CaseResult, point: OperatingPoint
) -> tuple[Share, Share]:
    """Lesions that count, with the estimate for the patient, and candidates, numbered on."""
    ranked = sorted(result.lesions, key=lambda lesion: -lesion.score)
    lesions = tuple(item for item in ranked if counts(item, point))
    candidates = tuple(item for item in ranked if not counts(item, point))
    reported = CasePrediction(
        case=case,
        lesions=_records(lesions, count(1), geometry),
        patient=estimate_patient(lesions, point),
        score_threshold=point.score_threshold,
        warnings=tuple(result.warnings),
    )
    numbered_on = _records(candidates, count(len(lesions) + 1), geometry)
    below = reported.model_copy(update={"lesions": numbered_on, "patient": None})
    return Share(lesions, reported), Share(candidates, below)


def counts(lesion: Lesion, point: OperatingPoint) -> bool:
    """Whether a lesion is reported as one, not as a candidate."""
    return lesion.score >= point.score_threshold and lesion.volume_mm3 >= point.min_volume_mm3


def estimate_patient(lesions: Sequence[Lesion], point: OperatingPoint) -> PatientRecord:
    """Probability that the patient has a lung-cancer metastasis, from the lesions reported.

    Without a lesion the label is 0 and the probability the rate among such validation patients,
    with one pseudo-count on each side.
    """
    probability = rule_of(point).probability(pooled_lesions(lesions))
    return PatientRecord(
        probability=probability,
        label=1 if lesions and probability >= point.patient_threshold else 0,
        threshold=point.patient_threshold,
    )


def pooled_lesions(lesions: Sequence[Lesion]) -> PatientLesions:
    """What a patient rule reads."""
    columns = ((item.score, item.p_lung, item.volume_mm3, item.mean_hu) for item in lesions)
    table = np.array(list(columns), dtype=np.float64).reshape(-1, 4)
    return PatientLesions(*table.T)


def write_cohort_tables(out: Path) -> None:
    """Write `lesions.csv` and `patients.csv` from every `CASE.json` with its `CASE.nii.gz`.

    Another part of the cohort may end at the same moment, and its tables be replaced by ours that
    do not know its last cases: then they are written again.
    """
    told: list[Path] | None = None
    while told != (found := _finished(out)):
        _write_tables(out, [read_json(path, CasePrediction, _ANEW) for path in found])
        told = found


def _finished(out: Path) -> list[Path]:
    return sorted(p for p in out.glob("[!.]*.json") if p.with_suffix(".nii.gz").is_file())


def _write_tables(out: Path, cases: Sequence[CasePrediction]) -> None:
    _write_table(
        out / "lesions.csv",
        "case id score p_lung_metastasis volume_mm3 mean_hu mask_quality z0 y0 x0 z1 y1 x1 "
        "centroid_l_mm centroid_p_mm centroid_s_mm",
        (
            (item.case, lesion.id, lesion.score, lesion.p_lung_metastasis, lesion.volume_mm3)
            + (lesion.mean_hu, lesion.mask_quality)
            + lesion.box_voxel_zyx
            + lesion.centroid_lps_mm
            for item in cases
            for lesion in item.lesions
        ),
    )
    _write_table(
        out / "patients.csv",
        "case n_lesions probability label threshold",
        (
            (item.case, len(item.lesions), estimate.probability, estimate.label, estimate.threshold)
            for item in cases
            if (estimate := item.patient) is not None
        ),
    )


def is_run_file(path: Path) -> bool:
    """Whether a JSON file of an output folder describes the run rather than a case."""
    return _RUN_FILE.fullmatch(path.name) is not None


def _records(
    lesions: Sequence[Lesion], ids: Iterable[int], geometry: Geometry
) -> tuple[LesionRecord, ...]:
    return tuple(
        LesionRecord(
            id=number,
            score=lesion.score,
            p_lung_metastasis=lesion.p_lung,
            volume_mm3=lesion.volume_mm3,
            mean_hu=lesion.mean_hu,
            mask_quality=lesion.mask_quality,
            box_voxel_zyx=lesion.box,
            centroid_lps_mm=lesion.centroid_lps_mm,
            corners_lps_mm=tuple(map(tuple, geometry.box_corners_lps(lesion.box).tolist())),
        )
        for number, lesion in zip(ids, lesions, strict=False)
    )


def _write_table(path: Path, columns: str, rows: Iterable[tuple[object, ...]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns.split())
    writer.writerows(rows)
    write_text(path, text.getvalue())
