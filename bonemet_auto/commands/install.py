"""`bonemet_install MODEL.zip`: check a model zip and put its model in place."""

import argparse
import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bonemet_auto.commands.common import EXIT_DONE, add_root, command_parser, run_command
from bonemet_auto.errors import UsageError
from bonemet_auto.files import atomic_folder, data_root, models_folder

if TYPE_CHECKING:
    from bonemet_auto.result_schema import ConsolidatedModel

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Console script."""
    parser = command_parser(
        "bonemet_install",
        "Check a zip of bonemet_export and put its model into a folder to predict with.",
    )
    parser.add_argument("archive", type=Path, metavar="MODEL.zip", help="zip of bonemet_export")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        help="folder that becomes the model; otherwise ROOT/models/DATASET_PLAN",
    )
    add_root(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace a model that is there")
    return run_command(parser, _install, arguments)


def _install(options: argparse.Namespace) -> int:
    import torch

    from bonemet_auto.inference.archive import CARD_NAME, open_archive, unpack_model

    with open_archive(options.archive) as archive:
        usual = models_folder(data_root(options.root)) / _folder_name(archive.model)
        target = (options.output or usual).resolve()
        _require_free(target, options.overwrite)
        try:
            with atomic_folder(target) as new:
                unpack_model(archive, new, torch.device("cpu"))
        except OSError as error:
            raise UsageError(
                f"{target} cannot be made ({error}); -o takes another folder"
            ) from None
    logger.info("model of %d networks in %s", len(archive.model.folds), target)
    logger.info("its model card: %s", target / CARD_NAME)
    logger.info("bonemet_predict -i SCANS -o RESULTS -m %s", shlex.quote(str(target)))
    return EXIT_DONE


def _folder_name(model: "ConsolidatedModel") -> str:
    """Dataset and plan as one folder name, whatever was written into the zip."""
    name = f"{model.dataset}_{model.plan}"
    plain = "".join(letter if letter.isalnum() or letter in "_- ." else "_" for letter in name)
    return plain.strip(". ")[:100]


def _require_free(target: Path, overwrite: bool) -> None:
    """Refuse to replace what nobody said to give up, and what is no model."""
    from bonemet_auto.inference.package import is_package

    if not target.exists():
        return
    if not overwrite:
        raise UsageError(f"{target} exists; --overwrite replaces it, -o takes another folder")
    if not is_package(target):
        raise UsageError(
            f"--overwrite: {target} holds no model.json, so it is left alone. Give another folder."
        )
