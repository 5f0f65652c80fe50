"""One annotated case and its prediction, read and checked against each other."""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bonemet_auto.convert.write import components
from bonemet_auto.errors import DataError
from bonemet_auto.evaluation.folders import Kind, ScoredInstance, ScoredInstances, holds_scores
from bonemet_auto.evaluation.pairing import (
    Overlaps,
    VoxelBox,
    join_overlaps,
    lesion_volumes,
    overlaps_of_boxes,
)
from bonemet_auto.evaluation.regions import (
    Region,
    centre_hits,
    hits_as_overlaps,
    lesion_boxes,
    paired_regions,
    region_overlaps,
)
from bonemet_auto.images import LesionCrop, crop_instances, read_geometry
from bonemet_auto.raw_dataset import read_case_labels
from bonemet_auto.result_schema import CasePrediction, PatientRecord
from bonemet_auto.schema import CaseLabels, read_json


@dataclass(frozen=True)
class Reference:
    """An annotated case; `voxels` counts those of each instance."""

    crop: LesionCrop
    voxels: dict[int, int]
    labels: CaseLabels


@dataclass(frozen=True)
class PredictedLesion:
    """What a prediction says of a lesion; None where it estimates no source."""

    id: int
    score: float
    p_lung_metastasis: float | None


@dataclass(frozen=True)
class Prediction:
    """A predicted case.

    Attributes:
        lesions: those at the operating point.
        candidates: all others, ids apart from those of the lesions.
        patient: estimate for the patient, where there is one.
        regions: both maps around the annotated and predicted lesions; None where boxes were
            predicted.
        pairs: overlaps of lesions and candidates with annotated lesions.
        centre_hits: pairs in which the predicted one's centre lies in the annotated one.
    """

    lesions: tuple[PredictedLesion, ...]
    candidates: tuple[PredictedLesion, ...]
    patient: PatientRecord | None
    regions: list[Region] | None
    pairs: Overlaps
    centre_hits: Overlaps

    @property
    def lesion_scores(self) -> dict[int, float]:
        """Score of each lesion at the operating point."""
        return {lesion.id: lesion.score for lesion in self.lesions}

    @property
    def scores(self) -> dict[int, float]:
        """Score of each lesion and candidate."""
        return {lesion.id: lesion.score for lesion in (*self.lesions, *self.candidates)}


def read_reference(case: str, path: Path, kind: Kind = "described") -> Reference:
    """Read CASE.nii.gz and CASE.json of a label folder, or a mask alone.

    Raises:
        DataError: broken files, an instance without an entry or an entry without an instance.
    """
    crop = crop_instances(path)
    if kind == "masks":
        crop, instances = _components(crop)
        labels = CaseLabels(instances=dict.fromkeys(instances))
        return Reference(crop, lesion_volumes(crop.array), labels)
    labels = read_case_labels(path.parent / f"{case}.json")
    voxels = lesion_volumes(crop.array)
    _check_ids(path, voxels.keys(), labels.instances.keys())
    without_voxels = sorted(labels.instances.keys() - voxels.keys())
    if without_voxels:
        raise DataError(
            f"{path}: no voxel of instances {without_voxels}, which {case}.json names. Draw them, "
            "or take their entries out."
        )
    return Reference(crop, voxels, labels)


def read_prediction(
    case: str, path: Path, reference: Reference, kind: Kind = "described"
) -> Prediction:
    """Read the lesions of a case, and its `candidates` where there are any.

    Raises:
        DataError: broken files, another grid than the reference's, ids that do not fit.
    """
    if kind == "boxes":
        return _read_boxes(case, path, reference)
    crop = crop_instances(path)
    _check_grid(case, path, crop, reference)
    if kind == "masks":
        crop, instances = _components(crop)
        lesions, patient = tuple(PredictedLesion(each, 1.0, None) for each in instances), None
    else:
        lesions, patient = _read_description(case, path, crop)
    regions = paired_regions(reference.crop, crop)
    pairs, hits = region_overlaps(regions), centre_hits(regions)
    below_path = path.parent / "candidates" / path.name
    if not below_path.is_file():
        return Prediction(lesions, (), patient, regions, pairs, hits)
    below = crop_instances(below_path)
    _check_grid(case, below_path, below, reference)
    candidates, _ = _read_description(case, below_path, below)
    _refuse_twice(case, [lesion.id for lesion in lesions + candidates])
    below_regions = paired_regions(reference.crop, below)
    return Prediction(
        lesions,
        candidates,
        patient,
        regions,
        join_overlaps([pairs, region_overlaps(below_regions)]),
        join_overlaps([hits, centre_hits(below_regions)]),
    )


def _components(crop: LesionCrop) -> tuple[LesionCrop, list[int]]:
    """Connected components of each value of a mask, and their ids."""
    values = lesion_volumes(crop.array)
    instances, labels = components(crop.array, dict.fromkeys(values))
    return LesionCrop(instances, crop.start, crop.geometry), list(labels)


def _read_description(
    case: str, path: Path, crop: LesionCrop
) -> tuple[tuple[PredictedLesion, ...], PatientRecord | None]:
    """The JSON file beside a map: ours, or nnDetection's scores by id."""
    beside = path.parent / f"{case}.json"
    if beside.is_file() and holds_scores(beside):
        scored = read_json(beside, ScoredInstances).root
        lesions = tuple(PredictedLesion(each, one.score, None) for each, one in scored.items())
        patient = None
    else:
        record = read_json(beside, CasePrediction, "Predict the case again.")
        lesions = tuple(
            PredictedLesion(lesion.id, lesion.score, lesion.p_lung_metastasis)
            for lesion in record.lesions
        )
        patient = record.patient
    _refuse_twice(case, [lesion.id for lesion in lesions])
    _check_ids(path, lesion_volumes(crop.array).keys(), {lesion.id for lesion in lesions})
    return lesions, patient


def _read_boxes(case: str, path: Path, reference: Reference) -> Prediction:
    """Boxes of nnDetection; annotated lesions count as their own boxes.

    The map that nnDetection paints beside them only tells the grid: later boxes cover earlier ones.
    """
    painted = path.with_name(path.name.replace(".json", ".nii.gz"))
    if painted.is_file():
        _refuse_grid(case, painted, reference.crop.geometry.mismatch(read_geometry(painted)))
    scored = read_json(path, ScoredInstances).root
    boxes = {number: _voxel_box(path, number, one) for number, one in scored.items()}
    return Prediction(
        tuple(PredictedLesion(number, one.score, None) for number, one in scored.items()),
        (),
        None,
        None,
        overlaps_of_boxes(lesion_boxes(reference.crop), boxes),
        _box_centre_hits(reference.crop, boxes),
    )


def _voxel_box(path: Path, number: int, scored: ScoredInstance) -> VoxelBox:
    if scored.box is None:
        raise DataError(f"{path}: instance {number} has no box. Let nnDetection write the file.")
    z0, y0, z1, y1, x0, x1 = scored.box
    return np.array([[z0 + 1, y0 + 1, x0 + 1], [z1, y1, x1]])


def _box_centre_hits(crop: LesionCrop, boxes: dict[int, VoxelBox]) -> Overlaps:
    hits = []
    for number, box in boxes.items():
        voxel = np.floor(box.mean(axis=0)).astype(int) - crop.start
        inside = (voxel >= 0).all() and (voxel < crop.array.shape).all()
        if inside and (lesion := int(crop.array[tuple(voxel)])):
            hits.append((lesion, number))
    return hits_as_overlaps(hits)


def _check_grid(case: str, path: Path, crop: LesionCrop, reference: Reference) -> None:
    _refuse_grid(case, path, reference.crop.geometry.mismatch(crop.geometry))


def _refuse_grid(case: str, path: Path, difference: str | None) -> None:
    if difference:
        raise DataError(
            f"case '{case}': {path} lies on another grid than its reference: {difference}. Predict "
            "from the image that the reference was drawn on."
        )


def _refuse_twice(case: str, ids: Sequence[int]) -> None:
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
