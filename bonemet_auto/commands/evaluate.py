"""`bonemet_evaluate`: figures of predictions against references."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from bonemet_auto.commands.common import EXIT_DONE, command_parser, run_command
from bonemet_auto.errors import UsageError

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Console entry point."""
    parser = command_parser(
        "bonemet_evaluate", "Compare predictions with references, with 95 % intervals."
    )
    parser.add_argument(
        "--pred", type=Path, required=True, help="folder that bonemet_predict wrote, or alike"
    )
    parser.add_argument(
        "--ref", type=Path, required=True, help="folder of CASE.nii.gz and CASE.json, as labelsTs"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for metrics.json, patients.csv, lesions.csv and report.html",
    )
    parser.add_argument(
        "--images",
        type=Path,
        help="folder of the scans, for the report's pictures; otherwise imagesTs beside labelsTs",
    )
    parser.add_argument(
        "-np",
        "--processes",
        type=int,
        metavar="N",
        help="scans measured at the same time (default: cores, as memory allows)",
    )
    return run_command(parser, _work, arguments)


def _work(options: argparse.Namespace) -> int:
    from bonemet_auto.evaluation.cohort import useful_processes
    from bonemet_auto.evaluation.evaluate import evaluate_folders, write_evaluation
    from bonemet_auto.evaluation.table import format_table

    if options.processes is not None and options.processes < 1:
        raise UsageError(f"-np {options.processes}: give at least one process.")
    images = _images(options)
    processes = options.processes or useful_processes(options.ref)
    evaluation = evaluate_folders(options.pred, options.ref, processes=processes)
    for note in evaluation.notes:
        logger.warning("%s", note)
    if evaluation.left_out:
        logger.warning("left out, no reference: %s", ", ".join(evaluation.left_out))
    print(format_table(evaluation))
    if options.out:
        from bonemet_auto.report.html import write_report

        write_evaluation(evaluation, options.out)
        report = write_report(options.pred, options.ref, images, evaluation, options.out)
        logger.info("wrote %s and the tables beside it", report)
    return EXIT_DONE


def _images(options: argparse.Namespace) -> dict[str, Path]:
    """The scans by case: of `--images`, else of `imagesTs` beside `labelsTs`, else none."""
    from bonemet_auto.images import find_images, list_images

    if options.images:
        if not options.out:
            raise UsageError("--images is for the report's pictures; give --out too.")
        return find_images(options.images)
    reference = options.ref.resolve()
    beside = reference.with_name(reference.name.replace("labels", "images", 1))
    return list_images(beside) if beside != reference and beside.is_dir() else {}
