"""A consolidated model: one folder that holds all that prediction needs, and can travel alone."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bonemet_auto.errors import DataError, ModelError
from bonemet_auto.files import atomic_write, sha256_file
from bonemet_auto.inference.load import POINT_NAME, Ensemble
from bonemet_auto.model.mask_rcnn import MaskRCNN, build_model
from bonemet_auto.plan_schema import Plan
from bonemet_auto.result_schema import ConsolidatedModel, OperatingPoint
from bonemet_auto.schema import read_json

MODEL_NAME = "model.json"
PLAN_NAME = "plan.json"
SOURCE_LOGIT = "source_head.logit."
WEIGHTS_SUFFIX = ".safetensors"
_REMEDY = "Copy the whole model folder again, or consolidate anew (bonemet_consolidate)."


def is_package(folder: Path) -> bool:
    """Whether a folder holds a consolidated model."""
    return (folder / MODEL_NAME).is_file()


def weights_name(fold: int) -> str:
    """File of a fold's averaged weights."""
    return f"fold_{fold}{WEIGHTS_SUFFIX}"


def write_weights(
    folder: Path, fold: int, weights: Mapping[str, Tensor], temperature: float
) -> None:
    """Write the averaged weights of a fold, whose source logits come divided by a temperature."""
    cooled = {
        name: (weight / temperature if name.startswith(SOURCE_LOGIT) else weight).contiguous()
        for name, weight in weights.items()
    }
    with atomic_write(folder / weights_name(fold)) as temporary:
        save_file(cooled, temporary)


def checksums(folder: Path) -> dict[str, str]:
    """Checksum of every file of a model folder but `model.json`, by name."""
    return {
        path.name: sha256_file(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != MODEL_NAME
    }


def read_description(folder: Path) -> tuple[ConsolidatedModel, Plan, OperatingPoint]:
    """What a consolidated model says of itself, once all its files were found unchanged.

    Raises:
        ModelError: a file is missing, changed or broken, or is of a newer program.
    """
    try:
        model = read_json(folder / MODEL_NAME, ConsolidatedModel, _REMEDY)
        _require_unchanged(folder, model)
        plan = read_json(folder / PLAN_NAME, Plan, _REMEDY)
        point = read_json(folder / POINT_NAME, OperatingPoint, _REMEDY)
    except DataError as error:
        raise ModelError(str(error)) from None
    return model, plan, point


def read_package(folder: Path, device: torch.device) -> Ensemble:
    """Load a consolidated model.

    Raises:
        ModelError: a file is missing, changed or broken, or is of a newer program.
    """
    model, plan, point = read_description(folder)
    models = [_network(folder / weights_name(fold), plan, device) for fold in model.folds]
    return Ensemble(plan, models, point, [folder])


def _require_unchanged(folder: Path, model: ConsolidatedModel) -> None:
    for name, expected in model.sha256.items():
        path = folder / name
        if not path.is_file():
            raise ModelError(f"{path} is missing. {_REMEDY}")
        if sha256_file(path) != expected:
            raise ModelError(f"{path} is not the file that was consolidated. {_REMEDY}")


def _network(path: Path, plan: Plan, device: torch.device) -> MaskRCNN:
    network = build_model(plan.network)
    try:
        network.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError, OSError) as broken:
        raise ModelError(f"{path} cannot be used ({broken}). {_REMEDY}") from None
    return network.to(device).eval()
