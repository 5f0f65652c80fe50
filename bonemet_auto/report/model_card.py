"""`MODEL_CARD.md`: what the software knows of a model, and what its authors have to add."""

from collections import Counter
from pathlib import Path

from torch._subclasses.fake_tensor import FakeTensorMode

from bonemet_auto import __version__
from bonemet_auto.errors import DataError, ModelError
from bonemet_auto.model.mask_rcnn import assemble_model
from bonemet_auto.plan_schema import NetworkPlan, Plan
from bonemet_auto.report.templates import load_template
from bonemet_auto.schema import (
    ConsolidatedModel,
    DatasetInfo,
    Fingerprint,
    OperatingPoint,
    read_json,
)

TO_FILL_IN = "to be filled in by the authors"
_TEMPLATE_NAME = "model_card.md"


def write_card(folder: Path, model: ConsolidatedModel, plan: Plan, point: OperatingPoint) -> str:
    """Text of the model card of a consolidated model.

    Args:
        folder: the model's folder, for fingerprint, classes and cross-validation.
        model: its `model.json`.
        plan: its plan.
        point: its thresholds.

    Raises:
        ModelError: the fingerprint or the dataset's description is missing or broken.
    """
    try:
        fingerprint = read_json(folder / "fingerprint.json", Fingerprint)
        labels = read_json(folder / "dataset.json", DatasetInfo).labels
    except DataError as error:
        raise ModelError(f"{error} Consolidate anew (bonemet_consolidate).") from None
    table = folder / "cross_validation.txt"
    return load_template(_TEMPLATE_NAME).render(
        todo=f"**{TO_FILL_IN}**",
        version=__version__,
        model=model,
        plan=plan,
        point=point,
        parameters=_parameters(plan.network),
        cases=len(fingerprint.cases),
        patients=len({case.patient_id for case in fingerprint.cases}),
        lesions=_lesions_by_class(fingerprint, labels),
        spacings=_spacing_ranges(fingerprint),
        table=table.read_text(encoding="utf-8").rstrip() if table.is_file() else None,
    )


def count_open(card: str) -> int:
    """How many points of a card wait for the authors."""
    return card.count(f"**{TO_FILL_IN}**")


def _parameters(network: NetworkPlan) -> int:
    with FakeTensorMode():
        return sum(weight.numel() for weight in assemble_model(network).parameters())


def _lesions_by_class(fingerprint: Fingerprint, labels: dict[str, int]) -> dict[str, int]:
    """Number of annotated lesions of each class that has any, and of unknown source."""
    names: dict[int | None, str] = {number: name for name, number in labels.items()}
    counts = Counter(lesion.source for case in fingerprint.cases for lesion in case.lesions)
    return {
        names.get(source, "unknown source"): n
        for source, n in sorted(counts.items(), key=lambda item: (item[0] is None, item[0] or 0))
    }


def _spacing_ranges(fingerprint: Fingerprint) -> list[str]:
    """Smallest and largest voxel edge of the scans along z, y, x, in mm."""
    per_axis = zip(*(case.spacing_mm for case in fingerprint.cases), strict=True)
    return [f"{min(edges):.3g} to {max(edges):.3g}" for edges in per_axis]
