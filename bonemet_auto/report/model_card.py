"""`MODEL_CARD.md`: what the software knows of a model, and what its authors have to add."""

from pathlib import Path

from torch._subclasses.fake_tensor import FakeTensorMode

from bonemet_auto import __version__
from bonemet_auto.errors import DataError, ModelError
from bonemet_auto.model.mask_rcnn import assemble_model
from bonemet_auto.plan_schema import NetworkPlan, Plan, Scope
from bonemet_auto.report.templates import load_template
from bonemet_auto.result_schema import ConsolidatedModel, OperatingPoint
from bonemet_auto.schema import DatasetInfo, read_json

TO_FILL_IN = "to be filled in by the authors"
_TEMPLATE_NAME = "model_card.md"


def write_card(folder: Path, model: ConsolidatedModel, plan: Plan, point: OperatingPoint) -> str:
    """Text of the model card of a consolidated model.

    Args:
        folder: the model's folder, for classes and cross-validation.
        model: its `model.json`.
        plan: its plan.
        point: its thresholds.

    Raises:
        ModelError: the scope or the dataset's description is missing or broken.
    """
    if plan.scope is None:
        raise ModelError(
            f"{folder / 'plan.json'} does not say what the model was trained on (scope). "
            "Consolidate anew (bonemet_consolidate)."
        )
    try:
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
        scope=plan.scope,
        lesions=_lesions_by_class(plan.scope, labels),
        spacings=[f"{low:.3g} to {high:.3g}" for low, high in plan.scope.spacing_mm],
        table=table.read_text(encoding="utf-8").rstrip() if table.is_file() else None,
    )


def count_open(card: str) -> int:
    """How many points of a card wait for the authors."""
    return card.count(f"**{TO_FILL_IN}**")


def _parameters(network: NetworkPlan) -> int:
    with FakeTensorMode():
        return sum(weight.numel() for weight in assemble_model(network).parameters())


def _lesions_by_class(scope: Scope, labels: dict[str, int]) -> dict[str, int]:
    """Number of annotated lesions of each class that has any, and of unknown source."""
    names = {number: name for name, number in labels.items()}
    known = {names[source]: n for source, n in scope.lesions.items()}
    unknown = scope.lesions_of_unknown_source
    return known | ({"unknown source": unknown} if unknown else {})
