"""`bonemet_evaluate`: figures of predictions against references."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bonemet_auto.commands.common import EXIT_DONE, command_parser, run_command
from bonemet_auto.errors import UsageError

if TYPE_CHECKING:
    from bonemet_auto.evaluation.evaluate import Evaluation
    from bonemet_auto.evaluation.paper import MeasuredCohort

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
        help="folder for metrics.json, tables, figures, report.html and claim_checklist.md",
    )
    parser.add_argument(
        "--cohort",
        choices=("internal", "external"),
        default="external",
        help="which cohort of the publication stands beside the figures; otherwise external",
    )
    parser.add_argument(
        "--beside",
        type=Path,
        metavar="OTHER_OUT",
        help="folder of an earlier evaluation of the other cohort, for a table of both",
    )
    parser.add_argument(
        "--images",
        type=Path,
        help="folder of the scans, for the report's pictures; otherwise imagesTs beside labelsTs",
    )
    return run_command(parser, _work, arguments)


def _work(options: argparse.Namespace) -> int:
    from bonemet_auto.evaluation.evaluate import evaluate_folders
    from bonemet_auto.evaluation.paper import measured_cohort, read_other_cohort
    from bonemet_auto.evaluation.table import format_table

    images = _images(options)
    if options.beside and not options.out:
        raise UsageError("--beside is for the table on file; give --out too.")
    others = [read_other_cohort(options.beside, options.cohort)] if options.beside else []
    evaluation = evaluate_folders(options.pred, options.ref)
    if evaluation.left_out:
        logger.warning("left out, no reference: %s", ", ".join(evaluation.left_out))
    print(format_table(evaluation, options.cohort))
    if options.out:
        _write(options, images, evaluation, [measured_cohort(evaluation, options.cohort), *others])
    return EXIT_DONE


def _write(
    options: argparse.Namespace,
    images: dict[str, Path],
    evaluation: "Evaluation",
    cohorts: "Sequence[MeasuredCohort]",
) -> None:
    """All files of `--out`."""
    from bonemet_auto.evaluation.evaluate import write_evaluation
    from bonemet_auto.evaluation.paper import write_paper_table
    from bonemet_auto.report.claim import write_checklist
    from bonemet_auto.report.html import write_report

    write_evaluation(evaluation, options.out, options.cohort)
    write_paper_table(options.out, cohorts)
    write_checklist(options.pred, evaluation, options.cohort, options.out)
    report = write_report(options.pred, options.ref, images, evaluation, options.out, cohorts)
    logger.info("wrote %s and the tables beside it", report)


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
