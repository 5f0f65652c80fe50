"""`bonemet_convert SRC OUT`: a dataset of another tool, or of DICOM, becomes one of ours."""

import argparse
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bonemet_auto.commands.common import (
    EXIT_DONE,
    EXIT_SOME_FAILED,
    command_parser,
    remove_dataset,
    run_command,
)
from bonemet_auto.commands.convert_dicom import (
    add_dicom_flags,
    convert_dicom,
    list_regions,
    refuse_dicom_flags,
    require_outside,
)
from bonemet_auto.errors import UsageError

if TYPE_CHECKING:
    from bonemet_auto.convert.write import Converted

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Console script."""
    parser = command_parser(
        "bonemet_convert",
        "Convert a dataset of nnU-Net (class masks) or nnDetection (instance masks), or DICOM "
        "studies with SEG or RTSTRUCT, to a raw dataset. Scans are linked, those of DICOM are "
        "written; the source is never edited.",
    )
    parser.add_argument(
        "source", type=Path, metavar="SRC", help="folder of the dataset; folder or zip of DICOM"
    )
    parser.add_argument(
        "out",
        type=Path,
        nargs="?",
        metavar="OUT",
        help="folder to make, e.g. ROOT/raw/Dataset005_Spine",
    )
    parser.add_argument(
        "--lung", metavar="NAME", help="class, or pattern of labels, that is lung-cancer metastasis"
    )
    parser.add_argument(
        "--lesions",
        nargs="+",
        metavar="NAME",
        help="classes, or patterns of labels, that are lesions; the others become background",
    )
    parser.add_argument(
        "--source-unknown", action="store_true", help="no class tells where a lesion comes from"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset that is there")
    add_dicom_flags(parser)
    return run_command(parser, _convert, arguments)


def _convert(options: argparse.Namespace) -> int:
    from bonemet_auto.convert.foreign import DESCRIPTIONS
    from bonemet_auto.schema import write_failures

    is_dataset = any((options.source / name).is_file() for name in DESCRIPTIONS)
    if is_dataset:
        refuse_dicom_flags(options)
    elif options.list:
        list_regions(options)
        return EXIT_DONE
    if options.out is None:
        raise UsageError("give OUT, the folder to make, e.g. ROOT/raw/Dataset005_Spine.")
    kind, done = _dataset(options) if is_dataset else ("DICOM", convert_dicom(options))
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


def _dataset(options: argparse.Namespace) -> "tuple[str, Converted]":
    """Convert a dataset of nnU-Net or nnDetection; which of them it is."""
    from bonemet_auto.convert import choose_classes, convert_dataset, open_foreign

    source = open_foreign(options.source)
    classes = choose_classes(source, options.lung, options.lesions or (), options.source_unknown)
    require_outside(options)
    if options.overwrite and options.out.is_dir():
        remove_dataset(options.out)
    kind = "nnDetection" if source.has_instances else "nnU-Net"
    return kind, convert_dataset(source, options.out, classes)
