"""`bonemet_convert SRC OUT`: a dataset of nnU-Net or nnDetection becomes one of ours."""

import argparse
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from bonemet_auto.commands.common import (
    EXIT_DONE,
    EXIT_SOME_FAILED,
    command_parser,
    remove_dataset,
    run_command,
)
from bonemet_auto.errors import UsageError

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Console script."""
    parser = command_parser(
        "bonemet_convert",
        "Convert a dataset of nnU-Net (class masks) or nnDetection (instance masks) to a raw "
        "dataset. Scans are linked; the source is never edited.",
    )
    parser.add_argument("source", type=Path, metavar="SRC", help="folder of the dataset")
    parser.add_argument(
        "out", type=Path, metavar="OUT", help="folder to make, e.g. ROOT/raw/Dataset005_Spine"
    )
    parser.add_argument("--lung", metavar="NAME", help="class that is lung-cancer metastasis")
    parser.add_argument(
        "--lesions",
        nargs="+",
        metavar="NAME",
        help="classes that are lesions, otherwise all; the others become background",
    )
    parser.add_argument(
        "--source-unknown", action="store_true", help="no class tells where a lesion comes from"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset that is there")
    return run_command(parser, _convert, arguments)


def _convert(options: argparse.Namespace) -> int:
    from bonemet_auto.convert import choose_classes, convert_dataset, open_foreign
    from bonemet_auto.schema import write_failures

    source = open_foreign(options.source)
    classes = choose_classes(source, options.lung, options.lesions or (), options.source_unknown)
    if options.out.resolve().is_relative_to(options.source.resolve()):
        raise UsageError(f"{options.out} lies in the source, which is never edited.")
    if options.overwrite and options.out.is_dir():
        remove_dataset(options.out)
    done = convert_dataset(source, options.out, classes)
    kind = "nnDetection" if source.has_instances else "nnU-Net"
    logger.info("%s (%s): %d cases, %d lesions", options.out, kind, done.cases, done.lesions)
    if not re.fullmatch(r"Dataset\d{3}_.+", options.out.name):
        logger.warning(
            "warning: the other commands look for ROOT/raw/Dataset001_Name; rename %s", options.out
        )
    failures = options.out / "failed_cases.json"
    write_failures(failures, done.failed)
    if not done.failed:
        return EXIT_DONE
    logger.warning("%d cases could not be converted: %s", len(done.failed), failures)
    return EXIT_SOME_FAILED
