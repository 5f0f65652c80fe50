"""`--init-weights`: where a run starts instead of at random."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bonemet_auto.errors import ModelError, UsageError
from bonemet_auto.files import results_folder

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


def initial_weights(
    options: argparse.Namespace, root: Path, dataset: str
) -> "dict[str, torch.Tensor] | None":
    """Weights that `--init-weights` names; read before any work."""
    import torch

    from bonemet_auto.checkpoint import CHECKPOINT_NAME, load_checkpoint

    if options.init_weights is None:
        return None
    if options.resume:
        raise UsageError("--resume goes on with its own weights; leave --init-weights out")
    given: Path = options.init_weights
    folder, name = (given.parent, given.name) if given.is_file() else (given, CHECKPOINT_NAME)
    weights: dict[str, torch.Tensor] = load_checkpoint(folder, torch.device("cpu"), name)["ema"]
    own = results_folder(root, dataset, options.plan_name).parent.resolve()
    source = folder.resolve()
    is_other_fold = source.name.startswith("fold_") and source.name != f"fold_{options.fold}"
    validates = options.fold != "all"
    if own in source.parents and is_other_fold and validates:
        logger.warning(
            "warning: %s has trained on validation cases of fold %d, so the figures of this fold "
            "will be too good; take fold %d of another plan, or bonemet_pretrain",
            source, options.fold, options.fold,
        )  # fmt: skip
    return weights


def initialise(model: "torch.nn.Module", weights: "dict[str, torch.Tensor]", source: Path) -> None:
    """Take what fits, and say what did not."""
    from bonemet_auto.model.transfer import transfer_weights

    try:
        done = transfer_weights(model, weights)
    except ModelError as nothing:
        raise ModelError(
            f"--init-weights {source}: {nothing}. Give a fold of this program."
        ) from None
    logger.info(
        "weights of %s: %d taken, %d kernels resized, %d left fresh%s, %d unused",
        source, len(done.taken), len(done.resized), len(done.fresh), _some(done.fresh),
        len(done.unused),
    )  # fmt: skip


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    return f" ({shown})" if names else ""
