"""`bonemet_export D -o MODEL.zip`: a consolidated model as one checked zip, with a model card."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from bonemet_auto.commands.common import EXIT_DONE, add_root, command_parser, run_command
from bonemet_auto.errors import DataError, UsageError
from bonemet_auto.files import MODEL_FOLDER, data_root, find_dataset, results_folder, sha256_file

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Console script."""
    parser = command_parser(
        "bonemet_export",
        "Pack a consolidated model into one zip with its checksums and a model card, to be shared.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "dataset", nargs="?", help="number, name or folder name of the dataset of the model"
    )
    source.add_argument("-m", "--model", type=Path, help="or the consolidated model's own folder")
    parser.add_argument("-p", "--plan-name", default="default", help="plan, with a dataset")
    add_root(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, help="the zip to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a zip that is there")
    return run_command(parser, _export, arguments)


def _export(options: argparse.Namespace) -> int:
    from bonemet_auto.inference.archive import CARD_NAME, pack_model
    from bonemet_auto.inference.package import read_description
    from bonemet_auto.report.model_card import count_open, write_card

    folder, out = _model_folder(options), options.output
    if out.is_dir():
        raise UsageError(f"-o {out} is a folder; name the zip in it ({out / 'MODEL.zip'})")
    if out.exists() and not options.overwrite:
        raise UsageError(f"-o {out} exists; --overwrite replaces it")
    model, plan, point = read_description(folder)
    filled_in = folder / CARD_NAME
    if filled_in.is_file():
        logger.info("model card: %s, as it is", filled_in)
        card = _read_card(filled_in)
    else:
        card = write_card(folder, model, plan, point)
    pack_model(folder, model, card, out)
    logger.info("%s: model card, %d networks, sha256 %s", out, len(model.folds), sha256_file(out))
    if gaps := count_open(card):
        logger.info(
            "%d points of %s are to be filled in by you: put the filled-in file into %s and export "
            "again", gaps, CARD_NAME, folder,
        )  # fmt: skip
    return EXIT_DONE


def _read_card(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as broken:
        raise DataError(f"{path} is no UTF-8 text ({broken}). Save it as UTF-8.") from None


def _model_folder(options: argparse.Namespace) -> Path:
    """The folder of the wanted model, which must be a consolidated one."""
    from bonemet_auto.inference.package import is_package

    if options.model is not None:
        folder, consolidate = (
            Path(options.model),
            "bonemet_consolidate writes one, results/DATASET/PLAN/model",
        )
    else:
        root = data_root(options.root)
        name = find_dataset(root, options.dataset)
        folder = results_folder(root, name, options.plan_name) / MODEL_FOLDER
        consolidate = f"run bonemet_consolidate {name} -p {options.plan_name} first"
    if not is_package(folder):
        raise UsageError(f"{folder} is no consolidated model: no model.json there; {consolidate}")
    return folder
