"""Cases as the fold that had held them out predicts them, beside their annotation."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from bonemet_auto.errors import DataError
from bonemet_auto.evaluation.operating_point import ScoredCase
from bonemet_auto.evaluation.pairing import InstanceMap, Overlaps, lesion_volumes, match_overlaps
from bonemet_auto.geometry import Geometry
from bonemet_auto.images import read_hu, read_instances
from bonemet_auto.inference.evidence import EVIDENCE, read_evidence
from bonemet_auto.inference.export import CANDIDATES
from bonemet_auto.inference.fuse import Outline
from bonemet_auto.inference.place import Lesion
from bonemet_auto.inference.predict import CaseResult, draw_lesions
from bonemet_auto.raw_dataset import RawCase, RawDataset, patient_label, read_case_labels
from bonemet_auto.schema import CaseLabels

HIT_IOU = 0.1


@dataclass(frozen=True)
class HeldOutCase:
    """One case and what a network that never saw it finds there, candidates included.

    Attributes:
        case: case id.
        patient_id: whose scan it is.
        fold: whose network it is.
        geometry: the scan's grid.
        lesions: all that was found, in any order.
        warnings: reasons to distrust it.
        dice: (n,) with the annotated lesion that each finds, 0 where a better one found it or
            there is none.
        is_lung: (n,) source of that one: 1, 0, or -1 where it is unknown or there is none.
        n_reference: annotated lesions.
        patient_label: 1 lung-cancer metastasis, 0 not, None unknown.
    """

    case: str
    patient_id: str
    fold: int
    geometry: Geometry
    lesions: tuple[Lesion, ...]
    warnings: tuple[str, ...]
    dice: npt.NDArray[np.float64]
    is_lung: npt.NDArray[np.int64]
    n_reference: int
    patient_label: Literal[0, 1] | None

    def scored(self, min_volume_mm3: float = 0.0) -> ScoredCase:
        """What an operating point is chosen from; smaller lesions are left out."""
        kept = [i for i, lesion in enumerate(self.lesions) if lesion.volume_mm3 >= min_volume_mm3]
        return ScoredCase(
            scores=np.array([self.lesions[i].score for i in kept]),
            matched=(self.dice[kept] > 0).astype(int),
            n_reference=self.n_reference,
            p_lung=np.array([self.lesions[i].p_lung for i in kept]),
            patient_label=self.patient_label,
        )

    def at_temperature(self, temperature: float) -> "HeldOutCase":
        """The same with the logits of all sources divided by a temperature."""
        lesions = tuple(
            replace(lesion, p_lung=soften(lesion.p_lung, temperature)) for lesion in self.lesions
        )
        return replace(self, lesions=lesions)


def soften(probability: float, temperature: float) -> float:
    """The probability whose logit is divided by a temperature."""
    inside = float(np.clip(probability, 1e-6, 1 - 1e-6))
    return float(1 / (1 + ((1 - inside) / inside) ** (1 / temperature)))


@dataclass(frozen=True)
class Reference:
    """Annotation of a case, and how many voxels each of its lesions has."""

    instances: InstanceMap
    voxels: dict[int, int]
    labels: CaseLabels


def read_reference(case: RawCase) -> Reference:
    """Read the annotation of a case.

    Raises:
        DataError: a file is missing or broken.
    """
    instances = read_instances(case.label).array
    return Reference(instances, lesion_volumes(instances), read_case_labels(case.labels_json))


def held_out_case(
    case: str,
    fold: int,
    geometry: Geometry,
    result: CaseResult,
    reference: Reference,
    positive_class: int,
) -> HeldOutCase:
    """Find out which lesions are real.

    Args:
        case: case id.
        fold: whose network predicted it.
        geometry: the scan's grid.
        result: what was found.
        reference: its annotation.
        positive_class: number of the class of lung-cancer metastases.
    """
    labels = reference.labels
    scores = {number: lesion.score for number, lesion in enumerate(result.lesions, 1)}
    matches = match_overlaps(_overlaps(reference, result.lesions), scores, HIT_IOU)
    iou = np.array([matches[number].iou for number in scores], dtype=float)
    sources = [labels.instances.get(matches[number].reference) for number in scores]
    return HeldOutCase(
        case=case,
        patient_id=labels.patient_id or case,
        fold=fold,
        geometry=geometry,
        lesions=tuple(result.lesions),
        warnings=tuple(result.warnings),
        dice=2 * iou / (1 + iou),
        is_lung=np.array([-1 if s is None else int(s == positive_class) for s in sources], int),
        n_reference=len(labels.instances),
        patient_label=patient_label(labels, positive_class),
    )


def _overlaps(reference: Reference, lesions: Sequence[Lesion]) -> Overlaps:
    """Overlaps with lesions numbered from 1, crop by crop: nothing of the size of the scan."""
    rows = []
    for number, lesion in enumerate(lesions, 1):
        held = reference.instances[lesion.region][lesion.mask]
        for found, shared in lesion_volumes(held).items():
            iou = shared / (len(held) + reference.voxels[found] - shared)
            rows.append((found, number, iou))
    table = np.array(rows, dtype=float).reshape(-1, 3)
    return Overlaps(table[:, 0].astype(int), table[:, 1].astype(int), table[:, 2])


def gather_fold(
    folder: Path, fold: int, dataset: RawDataset, outlines: Sequence[Outline]
) -> dict[Outline, list[HeldOutCase]]:
    """Validation cases of a finished fold, with masks drawn in several ways.

    Cases that failed there are left out.

    Raises:
        DataError: files of a case are missing or broken, or the dataset lacks it.
    """
    by_name = {case.case: case for case in dataset.training}
    gathered: dict[Outline, list[HeldOutCase]] = {outline: [] for outline in outlines}
    predictions = folder / "validation"
    for case in sorted(path.stem for path in (predictions / CANDIDATES).glob("[!.]*.json")):
        raw = _raw_case(by_name, case, dataset)
        evidence = read_evidence(predictions / EVIDENCE / f"{case}.npz")
        volume, reference = read_hu(raw.image), read_reference(raw)
        for outline, cases in gathered.items():
            result = draw_lesions(evidence, volume, outline)
            cases.append(
                held_out_case(
                    case, fold, volume.geometry, result, reference, dataset.info.positive_class
                )
            )
    return gathered


def _raw_case(by_name: dict[str, RawCase], case: str, dataset: RawDataset) -> RawCase:
    found = by_name.get(case)
    files = (found.image, found.label, found.labels_json) if found else ()
    if found is None or not all(path.is_file() for path in files):
        raise DataError(
            f"{dataset.folder} lacks the image, the label map or CASE.json of {case}, which a fold "
            "has validated on. Put them back."
        )
    return found
