"""The part of `bonemet_convert` for DICOM studies with SEG or RTSTRUCT."""

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from bonemet_auto.commands.common import remove_dataset
from bonemet_auto.commands.prediction_input import private_file
from bonemet_auto.errors import DataError, UsageError

if TYPE_CHECKING:
    from bonemet_auto.convert.choice import Choice
    from bonemet_auto.convert.write import Converted
    from bonemet_auto.dicom import Study

logger = logging.getLogger(__name__)

_FLAGS = ("list", "other", "exclude", "sources", "objects", "merge", "unannotated_empty")


def add_dicom_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that only DICOM has."""
    dicom = parser.add_argument_group("DICOM", "patterns may hold * and ?; case does not matter")
    dicom.add_argument(
        "--list", action="store_true", help="show the labels that are there, and convert nothing"
    )
    dicom.add_argument("--other", metavar="NAME", help="labels of lesions of another source")
    dicom.add_argument(
        "--exclude", nargs="+", metavar="NAME", help="labels of what is no lesion (body, organs)"
    )
    dicom.add_argument(
        "--sources",
        type=Path,
        metavar="CSV",
        help="sources of lesions: columns source, and patient_id, study_uid or label",
    )
    dicom.add_argument(
        "--instances",
        choices=("auto", "regions", "components"),
        default="auto",
        help="a segment or ROI is one lesion (regions), or each of its connected components is; "
        "auto: one lesion if it carries a tracking id",
    )
    dicom.add_argument(
        "--objects", nargs="+", metavar="NAME", help="read only these SEG or RTSTRUCT objects"
    )
    dicom.add_argument(
        "--merge", action="store_true", help="take several objects on one series together"
    )
    dicom.add_argument(
        "--unannotated-empty",
        action="store_true",
        help="studies where no lesion is drawn have none; otherwise they are left out",
    )


def refuse_dicom_flags(options: argparse.Namespace) -> None:
    """Refuse flags that mean nothing to other datasets."""
    given = [name for name in _FLAGS if getattr(options, name)]
    given += ["instances"] if options.instances != "auto" else []
    if given:
        raise UsageError(
            f"--{given[0].replace('_', '-')} is for DICOM, and {options.source} is a dataset of "
            "nnU-Net or nnDetection. Leave it out."
        )


def require_outside(options: argparse.Namespace) -> None:
    """Refuse to write into the source."""
    if options.out.resolve().is_relative_to(options.source.resolve()):
        raise UsageError(f"{options.out} lies in the source, which is never edited.")


def list_regions(options: argparse.Namespace) -> None:
    """Print the labels that are there, and what would become of them."""
    from bonemet_auto.convert.survey import survey
    from bonemet_auto.scans import unpacked

    choice = _choice(options)
    with unpacked(options.source) as folder:
        table, reasons = survey(_studies(options.source, folder), choice)
    print("no segment, no ROI" if table.empty else table.to_string(index=False))
    for reason, count in reasons.most_common():
        print(f"{count} not converted: {reason}")


def convert_dicom(options: argparse.Namespace) -> "Converted":
    """Convert DICOM studies."""
    from bonemet_auto.convert.dicom_dataset import convert_studies
    from bonemet_auto.scans import unpacked

    choice = _choice(options)
    with unpacked(options.source) as folder:
        studies = _studies(options.source, folder)
        require_outside(options)
        if options.overwrite and options.out.is_dir():
            remove_dataset(options.out)
        return convert_studies(studies, options.out, choice, private_file(options.out))


def _choice(options: argparse.Namespace) -> "Choice":
    from bonemet_auto.convert.choice import Choice, flag_rules, read_rules

    if options.source_unknown and (options.lung or options.other or options.sources):
        raise UsageError("--source-unknown contradicts --lung, --other and --sources.")
    table = read_rules(options.sources) if options.sources else ()
    return Choice(
        lesions=tuple(options.lesions or ()),
        exclude=tuple(options.exclude or ()),
        objects=tuple(options.objects or ()),
        merge=options.merge,
        instances=options.instances,
        unannotated_empty=options.unannotated_empty,
        rules=(*table, *flag_rules(options.lung, options.other)),
    )


def _studies(source: Path, folder: Path) -> "list[Study]":
    from bonemet_auto.convert.foreign import DESCRIPTIONS
    from bonemet_auto.dicom import find_studies

    if not source.exists():
        raise DataError(f"{source} does not exist. Give the folder of a dataset.")
    studies = find_studies(folder)
    if not studies:
        raise DataError(
            f"{source} holds none of {', '.join(DESCRIPTIONS)}, and no DICOM. Give the folder of a "
            "dataset of nnU-Net or nnDetection, or a folder or zip of DICOM studies."
        )
    return studies
