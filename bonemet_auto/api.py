"""Prediction from Python, without files.

    from bonemet_auto.api import load_model

    model = load_model("model")
    found = model.predict("scan.nii.gz")
    for lesion in found.lesions:
        print(lesion.id, lesion.score, lesion.p_lung_metastasis, lesion.volume_mm3)
    print(found.patient.probability)

Importing this module loads neither torch nor anything else that is large. Research use only: it
estimates, it never diagnoses.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from bonemet_auto.images import Volume
    from bonemet_auto.inference.load import Ensemble
    from bonemet_auto.result_schema import LesionRecord, PatientRecord


@dataclass(frozen=True)
class Findings:
    """What a model estimates of one scan.

    Attributes:
        lesions: at or above the score threshold and the smallest volume, best first; `id` is their
            number in `instances`.
        candidates: the others.
        patient: estimate for the patient.
        warnings: reasons to distrust all this.
        instances: uint16 ids of the lesions on the scan's own grid, 0 elsewhere.
    """

    lesions: "tuple[LesionRecord, ...]"
    candidates: "tuple[LesionRecord, ...]"
    patient: "PatientRecord"
    warnings: tuple[str, ...]
    instances: "Volume"

    def to_sitk(self) -> Any:  # noqa: ANN401  SimpleITK has no types
        """`instances` as a SimpleITK image."""
        from bonemet_auto.images import to_sitk

        return to_sitk(self.instances)


class Model:
    """Networks that predict together, on a device, with their thresholds; see `load_model`."""

    def __init__(self, ensemble: "Ensemble", device: "torch.device") -> None:
        self._ensemble = ensemble
        self._device = device

    def predict(self, scan: "str | Path | Volume | Any") -> Findings:  # noqa: ANN401
        """Find, outline and source-classify the lesions of one CT.

        Args:
            scan: an image file, a `bonemet_auto.images.Volume` of HU, or a SimpleITK image of HU.

        Raises:
            DataError: the file is missing or broken, or this is no three-dimensional CT.
        """
        from bonemet_auto.images import Volume, from_sitk, read_hu
        from bonemet_auto.inference.export import split_case
        from bonemet_auto.inference.fuse import outline_of
        from bonemet_auto.inference.predict import predict_volume

        if isinstance(scan, str | Path):
            scan = read_hu(Path(scan))
        elif not isinstance(scan, Volume):
            scan = from_sitk(scan)
        plan, point = self._ensemble.plan, self._ensemble.operating_point
        outline = outline_of(point)
        result = predict_volume(scan, self._ensemble.models, plan, self._device, outline)
        reported, below = split_case("scan", scan.geometry, result, point)
        record = reported.record
        assert record.patient is not None
        return Findings(
            lesions=record.lesions,
            candidates=below.record.lesions,
            patient=record.patient,
            warnings=record.warnings,
            instances=reported.drawn(scan.geometry),
        )


def load_model(path: str | Path, device: str = "auto") -> Model:
    """Load a consolidated model, a fold, or a folder of folds.

    Args:
        path: the folder, or the zip that `bonemet_export` made.
        device: `auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`.

    Raises:
        ModelError: no model there, or it is damaged.
        UsageError: no such device.
    """
    from bonemet_auto.processor import tune_processor

    tune_processor()
    from bonemet_auto.inference.open import open_model
    from bonemet_auto.processor import pick_device

    chosen = pick_device(device)
    return Model(open_model(Path(path), chosen), chosen)
