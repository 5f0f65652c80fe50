"""One annotated case and its prediction, read and checked against each other."""

from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from bonemet_auto.errors import DataError
from bonemet_auto.evaluation.pairing import InstanceMap, Overlaps, lesion_volumes, overlaps
from bonemet_auto.geometry import Geometry
from bonemet_auto.images import read_instances
from bonemet_auto.raw_dataset import read_case_labels
from bonemet_auto.schema import CaseLabels, CasePrediction, read_json


@dataclass(frozen=True)
class Reference:
    """An annotated case; `voxels` counts those of each instance."""

    instances: InstanceMap
    geometry: Geometry
    voxels: dict[int, int]
    labels: CaseLabels


@dataclass(frozen=True)
class Prediction:
    """A predicted case; `pairs` and `scores` hold the candidates too, `lesion_scores` do not."""

    record: CasePrediction
    mask: InstanceMap
    pairs: Overlaps
    scores: dict[int, float]
    lesion_scores: dict[int, float]


def read_reference(case: str, path: Path) -> Reference:
    """Read CASE.nii.gz and CASE.json of a label folder.

    Raises:
        DataError: broken files, an instance without an entry or an entry without an instance.
    """
    volume = read_instances(path)
    labels = read_case_labels(path.parent / f"{case}.json")
    voxels = lesion_volumes(volume.array)
    _check_ids(path, voxels.keys(), labels.instances.keys())
    without_voxels = sorted(labels.instances.keys() - voxels.keys())
    if without_voxels:
        raise DataError(
            f"{path}: no voxel of instances {without_voxels}, which {case}.json names. Draw them, "
            "or take their entries out."
        )
    return Reference(volume.array, volume.geometry, voxels, labels)


def read_prediction(case: str, path: Path, reference: Reference) -> Prediction:
    """Read the lesions of a case, and its `candidates` where there are any.

    Raises:
        DataError: broken files, another grid than the reference's, ids that do not fit.
    """
    record, mask = _read_detections(case, path, reference)
    pairs = overlaps(reference.instances, mask)
    lesion_scores = {lesion.id: lesion.score for lesion in record.lesions}
    below_path = path.parent / "candidates" / path.name
    if not below_path.is_file():
        return Prediction(record, mask, pairs, lesion_scores, lesion_scores)
    below, below_mask = _read_detections(case, below_path, reference)
    candidate_scores = {candidate.id: candidate.score for candidate in below.lesions}
    _refuse_twice(case, [lesion.id for lesion in record.lesions + below.lesions])
    joined = pairs.joined(overlaps(reference.instances, below_mask))
    return Prediction(record, mask, joined, lesion_scores | candidate_scores, lesion_scores)


def _read_detections(
    case: str, path: Path, reference: Reference
) -> tuple[CasePrediction, InstanceMap]:
    """One map and its records, on the grid of the reference."""
    volume = read_instances(path)
    difference = reference.geometry.mismatch(volume.geometry)
    if difference:
        raise DataError(
            f"case '{case}': {path} lies on another grid than its reference: {difference}. Predict "
            "from the image that the reference was drawn on."
        )
    record = read_json(path.parent / f"{case}.json", CasePrediction, "Predict the case again.")
    _refuse_twice(case, [lesion.id for lesion in record.lesions])
    _check_ids(path, lesion_volumes(volume.array).keys(), {lesion.id for lesion in record.lesions})
    return record, volume.array


def _refuse_twice(case: str, ids: list[int]) -> None:
    twice = sorted({each for each in ids if ids.count(each) > 1})
    if twice:
        raise DataError(
            f"case '{case}': ids {twice} are predicted twice. Every lesion and every candidate of "
            "a case needs an id of its own."
        )


def _check_ids(path: Path, drawn: Set[int], described: Set[int]) -> None:
    unknown = sorted(drawn - described)
    if unknown:
        raise DataError(
            f"{path}: ids {unknown} are in the map but not in the JSON file beside it. Every "
            "instance needs an entry there."
        )
