"""Trained folds from disk, checked before any work."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bonemet_auto.checkpoint import CHECKPOINT_NAME, load_checkpoint
from bonemet_auto.errors import DataError, ModelError
from bonemet_auto.model.mask_rcnn import MaskRCNN, build_model
from bonemet_auto.plan_schema import Plan
from bonemet_auto.result_schema import OperatingPoint
from bonemet_auto.schema import read_json

ALL_NAME, POINT_NAME = "fold_all", "operating_point.json"
_TRAIN_AGAIN = "Train this fold to its end (bonemet_train), or copy the whole folder again."


@dataclass(frozen=True)
class Ensemble:
    """Networks of one or several folds that share a plan, and how to read their scores."""

    plan: Plan
    models: list[MaskRCNN]
    operating_point: OperatingPoint
    folders: list[Path]


def find_folds(model_folder: Path, folds: Sequence[int | str] | None) -> list[Path]:
    """Fold folders of a model: the folder itself, or the `fold_*` in it.

    Args:
        model_folder: one fold, or a folder of folds.
        folds: the folds to take, by number, or `all` for the model on all cases. None takes the
            numbered ones, or that on all cases where it is the only one.

    Raises:
        ModelError: no such folder, no fold in it, or one of the wanted folds is missing.
    """
    if not model_folder.is_dir():
        raise ModelError(
            f"model folder {model_folder} does not exist. Give a folder that holds fold_0, fold_1, "
            "..., or one of those; bonemet_train writes them."
        )
    if (model_folder / CHECKPOINT_NAME).is_file() and folds is None:
        return [model_folder]
    found = {path.name: path for path in sorted(model_folder.glob("fold_*")) if path.is_dir()}
    numbered = [name for name in found if name != ALL_NAME]
    wanted = (numbered or list(found)) if folds is None else [f"fold_{fold}" for fold in folds]
    missing = [name for name in wanted if name not in found]
    if missing or not wanted:
        raise ModelError(
            f"{model_folder} holds {', '.join(found) or 'no fold'}; expected "
            f"{', '.join(missing) or 'fold_0 or others'}. Train the fold first, or choose others "
            "with -f."
        )
    return [found[name] for name in wanted]


def load_ensemble(folders: Sequence[Path], device: torch.device) -> Ensemble:
    """Load folds that predict together.

    The ensemble's thresholds and its probability without lesions are the means of its folds'.

    Raises:
        ModelError: as `load_fold`, and folds trained with different plans.
    """
    loaded = [load_fold(folder, device) for folder in folders]
    plan = loaded[0][0]
    for folder, (other, _, _) in zip(folders, loaded, strict=True):
        differing = [
            name
            for name in ("spacing_mm", "window_hu", "mean_hu", "sd_hu", "patch_size", "inference")
            if getattr(other, name) != getattr(plan, name)
        ]
        if differing:
            raise ModelError(
                f"{folder} was trained with another plan than {folders[0]} ({', '.join(differing)} "
                "differ). Predict with each of them alone (-m FOLD_FOLDER), or train them alike."
            )
    points = [point for _, _, point in loaded]
    return Ensemble(plan, [model for _, model, _ in loaded], mean_point(points), list(folders))


def load_fold(folder: Path, device: torch.device) -> tuple[Plan, MaskRCNN, OperatingPoint]:
    """Plan, network with its averaged weights in evaluation mode, and operating point of a fold.

    Raises:
        ModelError: a file is missing, truncated or invalid, or weights and plan do not belong
            together.
    """
    try:
        plan = read_json(folder / "plan.json", Plan, _TRAIN_AGAIN)
        point = read_json(folder / POINT_NAME, OperatingPoint, _TRAIN_AGAIN)
        weights = load_checkpoint(folder, torch.device("cpu"))["ema"]
    except DataError as error:
        raise ModelError(str(error)) from None
    model = build_model(plan.network)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[1:2] or [str(error)]
        raise ModelError(
            f"{folder / CHECKPOINT_NAME} does not fit {folder / 'plan.json'} "
            f"({first[0].strip()}). The plan was changed after training, or the files are of "
            "different folds: restore them."
        ) from None
    return plan, model.to(device).eval(), point


def mean_point(points: Sequence[OperatingPoint]) -> OperatingPoint:
    """Operating point of an ensemble: the mean of its folds' thresholds; of one fold, its own."""
    if len(points) == 1:
        return points[0]

    def mean(name: str) -> float:
        return float(sum(getattr(point, name) for point in points) / len(points))

    return OperatingPoint(
        score_threshold=mean("score_threshold"),
        patient_threshold=mean("patient_threshold"),
        no_lesion_probability=mean("no_lesion_probability"),
        rule=f"mean over {len(points)} folds of: {points[0].rule}",
        sensitivity=None,
        fp_per_scan=None,
    )
