"""Whatever kind of model a person points at."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from bonemet_auto.errors import UsageError
from bonemet_auto.files import MODEL_FOLDER
from bonemet_auto.inference.archive import read_archive
from bonemet_auto.inference.load import POINT_NAME, Ensemble, find_folds, load_ensemble
from bonemet_auto.inference.package import MODEL_NAME, is_package, read_package

logger = logging.getLogger(__name__)


def open_model(
    source: Path, device: torch.device, folds: Sequence[int | str] | None = None
) -> Ensemble:
    """A consolidated model, from its folder or zip, or the folds of a folder.

    In a plan's results the consolidated model is taken where there is one and no fold is named.

    Args:
        source: folder or zip.
        device: where the networks go.
        folds: take these, see `find_folds`.

    Raises:
        ModelError: nothing of the kind is there, or it is damaged.
        UsageError: folds of a consolidated model were named.
    """
    if folds is None and source.is_file():
        logger.info("consolidated model %s", source)
        return read_archive(source, device)
    for place in (source, source / MODEL_FOLDER):
        if folds is None and is_package(place):
            logger.info("consolidated model %s", place)
            _warn_if_older(place, source)
            return read_package(place, device)
    if source.is_file() or is_package(source):
        raise UsageError(
            f"{source} is a consolidated model, whose folds belong together; leave -f out"
        )
    return load_ensemble(find_folds(source, folds), device)


def _warn_if_older(model: Path, results: Path) -> None:
    """Say so where a fold was trained after its plan's model was consolidated."""
    consolidated = (model / MODEL_NAME).stat().st_mtime
    finished = sorted(results.glob(f"fold_[0-9]*/{POINT_NAME}"))
    newer = [path.parent.name for path in finished if path.stat().st_mtime > consolidated]
    if newer:
        logger.warning(
            "warning: %s was trained after %s was consolidated, which does not know it; run "
            "bonemet_consolidate --overwrite, or name the folds with -f",
            ", ".join(newer), model,
        )  # fmt: skip
