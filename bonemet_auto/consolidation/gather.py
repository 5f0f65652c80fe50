"""Cases as the fold that had held them out predicts them, beside their annotation."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from bonemet_auto.errors import DataError
from bonemet_auto.evaluation.operating_point import ScoredCase
from bonemet_auto.evaluation.pairing import match_lesions
from bonemet_auto.geometry import Geometry
from bonemet_auto.images import read_instances
from bonemet_auto.inference.place import Lesion
from bonemet_auto.inference.predict import CaseResult
from bonemet_auto.inference.reread import read_result
from bonemet_auto.raw_dataset import RawCase, RawDataset, patient_label, read_case_labels

HIT_IOU = 0.1


@dataclass(frozen=True)
class HeldOutCase:
    """One case and what a network that never saw it finds there, candidates included.

    Attributes:
        case: case id.
        fold: whose network it is.
        geometry: the scan's grid.
        lesions: all that was found, in any order.
        warnings: reasons to distrust it.
        hits: (n,) whether each lesion finds an annotated one that no better one found.
        is_lung: (n,) source of that one: 1, 0, or -1 where it is unknown or there is none.
        n_reference: annotated lesions.
        patient_label: 1 lung-cancer metastasis, 0 not, None unknown.
    """

    case: str
    fold: int
    geometry: Geometry
    lesions: tuple[Lesion, ...]
    warnings: tuple[str, ...]
    hits: npt.NDArray[np.bool_]
    is_lung: npt.NDArray[np.int64]
    n_reference: int
    patient_label: Literal[0, 1] | None

    def scored(self, min_volume_mm3: float = 0.0) -> ScoredCase:
        """What an operating point is chosen from; smaller lesions are left out."""
        kept = [i for i, lesion in enumerate(self.lesions) if lesion.volume_mm3 >= min_volume_mm3]
        return ScoredCase(
            scores=np.array([self.lesions[i].score for i in kept]),
            matched=self.hits[kept].astype(int),
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


def held_out_case(
    case: str,
    fold: int,
    geometry: Geometry,
    result: CaseResult,
    reference: RawCase,
    positive_class: int,
) -> HeldOutCase:
    """Find out which lesions are real.

    Args:
        case: case id.
        fold: whose network predicted it.
        geometry: the scan's grid.
        result: what was found.
        reference: its files, with labels.
        positive_class: number of the class of lung-cancer metastases.
    """
    annotated = read_instances(reference.label).array
    labels = read_case_labels(reference.labels_json)
    drawn = np.zeros(annotated.shape, dtype=np.uint16)
    for number, lesion in enumerate(result.lesions, 1):
        drawn[lesion.region][lesion.mask] = number
    scores = {number: lesion.score for number, lesion in enumerate(result.lesions, 1)}
    matches = match_lesions(annotated, drawn, scores, HIT_IOU)
    found = [matches[number].reference for number in scores]
    sources = [labels.instances.get(reference_id) for reference_id in found]
    return HeldOutCase(
        case=case,
        fold=fold,
        geometry=geometry,
        lesions=tuple(result.lesions),
        warnings=tuple(result.warnings),
        hits=np.array(found, dtype=int) > 0,
        is_lung=np.array([-1 if s is None else int(s == positive_class) for s in sources], int),
        n_reference=len(labels.instances),
        patient_label=patient_label(labels, positive_class),
    )


def gather_fold(folder: Path, fold: int, dataset: RawDataset) -> list[HeldOutCase]:
    """Validation cases of a finished fold; those that failed there are left out.

    Raises:
        DataError: files of a case are missing or broken, or the dataset lacks it.
    """
    by_name = {case.case: case for case in dataset.training}
    predictions = folder / "validation"
    cases = sorted(path.stem for path in (predictions / "candidates").glob("*.json"))
    return [
        held_out_case(
            case, fold, *read_result(predictions, case), _reference(by_name, case, dataset),
            dataset.info.positive_class,
        )
        for case in cases
    ]  # fmt: skip


def _reference(by_name: dict[str, RawCase], case: str, dataset: RawDataset) -> RawCase:
    found = by_name.get(case)
    if found is None or not (found.label.is_file() and found.labels_json.is_file()):
        raise DataError(
            f"{dataset.folder} lacks the label map or CASE.json of {case}, which a fold has "
            "validated on. Put them back."
        )
    return found
