"""Checkpoints: written atomically, read without running any code in them."""

import logging
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bonemet_auto.errors import BonemetError, ModelError
from bonemet_auto.files import atomic_write, require_file

CHECKPOINT_NAME = "checkpoint_last.pt"
PREVIOUS_NAME = "checkpoint_previous.pt"
FORMAT_VERSION = 1
logger = logging.getLogger(__name__)

_PARTS = frozenset(("progress", "model", "ema", "optimizer"))
_UNREADABLE = (RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError)
"""What torch.load raises besides pickle's own error, depending on which byte is wrong."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands. Sample numbers and random states follow from `seed` and `step`."""

    step: int
    total_steps: int
    epochs: int
    seed: int


def save_checkpoint(
    folder: Path,
    progress: Progress,
    model: nn.Module,
    ema: nn.Module,
    optimizer: dict[str, Any],
) -> None:
    """Write all that is needed to go on, and the averaged weights that prediction uses.

    The checkpoint before it is kept beside it.
    """
    content = {
        "format_version": FORMAT_VERSION,
        "progress": vars(progress),
        "model": model.state_dict(),
        "ema": ema.state_dict(),
        "optimizer": optimizer,
    }
    path = folder / CHECKPOINT_NAME
    with atomic_write(path) as temporary:
        torch.save(content, temporary)
        if path.is_file():
            path.replace(folder / PREVIOUS_NAME)


def load_to_resume(folder: Path, device: torch.device) -> dict[str, Any]:
    """The last checkpoint, or the one before it where that is broken or gone, said in the log.

    A broken one is removed then: the next save must not put it in the place of the good one.

    Raises:
        DataError: there is none.
        ModelError: neither can be used.
    """
    try:
        return load_checkpoint(folder, device)
    except BonemetError as broken:
        if not (folder / PREVIOUS_NAME).is_file():
            raise
        content = load_checkpoint(folder, device, PREVIOUS_NAME)
        (folder / CHECKPOINT_NAME).unlink(missing_ok=True)
        logger.warning(
            "%s is missing or broken; training goes on from the checkpoint before it (step %d)",
            folder / CHECKPOINT_NAME, progress_of(content).step,
        )  # fmt: skip
        logger.debug("%s", broken)
        return content


def load_checkpoint(
    folder: Path, device: torch.device, name: str = CHECKPOINT_NAME
) -> dict[str, Any]:
    """Read a checkpoint.

    Raises:
        DataError: there is none.
        ModelError: it is broken or of another format.
    """
    path = require_file(folder / name, "Train the fold first (bonemet_train).")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except (*_UNREADABLE, pickle.UnpicklingError) as broken:
        raise ModelError(f"{path} cannot be read ({broken}). Train the fold again.") from broken
    if not isinstance(content, dict):
        raise ModelError(f"{path} is no checkpoint of bonemet_train. Train the fold again.")
    found = content.get("format_version")
    if found != FORMAT_VERSION:
        raise ModelError(
            f"{path} has format version {found}, this program reads {FORMAT_VERSION}. "
            "Use the version of bonemet_auto that wrote it, or train again."
        )
    missing = sorted(_PARTS - content.keys())
    if missing:
        raise ModelError(f"{path} lacks {', '.join(missing)}. Train the fold again.")
    return content


def progress_of(content: dict[str, Any]) -> Progress:
    """Where the run stood when the checkpoint was written."""
    return Progress(**content["progress"])
