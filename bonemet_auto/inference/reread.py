"""Lesions of a prediction, read back from its files."""

from pathlib import Path

import numpy as np
from scipy import ndimage

from bonemet_auto.errors import DataError
from bonemet_auto.geometry import Geometry
from bonemet_auto.images import Volume, read_instances
from bonemet_auto.inference.export import CANDIDATES
from bonemet_auto.inference.place import Lesion
from bonemet_auto.inference.predict import CaseResult
from bonemet_auto.schema import CasePrediction, LesionRecord, read_json

_REMEDY = "Predict the case again."


def read_result(folder: Path, case: str) -> tuple[Geometry, CaseResult]:
    """Grid and all lesions of a case, candidates included, as `write_case` wrote them.

    Raises:
        DataError: files are missing or broken, or a lesion has no voxels or no quality.
    """
    volume = read_instances(folder / f"{case}.nii.gz")
    reported = read_json(folder / f"{case}.json", CasePrediction, _REMEDY)
    lesions = _lesions(folder / f"{case}.json", reported.lesions, volume)
    below = folder / CANDIDATES
    candidates = read_json(below / f"{case}.json", CasePrediction, _REMEDY)
    drawn = read_instances(below / f"{case}.nii.gz")
    lesions += _lesions(below / f"{case}.json", candidates.lesions, drawn)
    return volume.geometry, CaseResult(lesions, list(reported.warnings))


def _lesions(path: Path, records: tuple[LesionRecord, ...], drawn: Volume) -> list[Lesion]:
    places = ndimage.find_objects(drawn.array)
    lesions = []
    for record in records:
        place = places[record.id - 1] if record.id <= len(places) else None
        if place is None or record.mask_quality is None or record.mean_hu is None:
            raise DataError(f"{path}: lesion {record.id} has no voxels or lacks figures. {_REMEDY}")
        z, y, x = (edge.start for edge in place)
        lesions.append(
            Lesion(
                score=record.score,
                p_lung=record.p_lung_metastasis,
                mask_quality=record.mask_quality,
                mean_hu=record.mean_hu,
                mask=np.asarray(drawn.array[place] == record.id),
                start=(z, y, x),
                volume_mm3=record.volume_mm3,
                centroid_lps_mm=record.centroid_lps_mm,
            )
        )
    return lesions
