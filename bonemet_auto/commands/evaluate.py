"""`bonemet_evaluate`: figures of predictions against references."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from bonemet_auto.commands.common import EXIT_DONE, command_parser, positive, run_command
from bonemet_auto.commands.evaluate_parts import (
    evaluate,
    level_table,
    print_subgroups,
    read_predictions,
    show_comparison,
    show_folds,
    with_subgroups,
)
from bonemet_auto.errors import UsageError

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Console entry point."""
    parser = command_parser(
        "bonemet_evaluate", "Compare predictions with references, with 95 % intervals."
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--pred", type=Path, help="folder that bonemet_predict wrote, or alike")
    source.add_argument(
        "--folds",
        type=Path,
        metavar="RESULTS",
        help="instead: a plan's results; the validation cases of its folds, pooled and by fold",
    )
    parser.add_argument(
        "--ref", type=Path, required=True, help="folder of CASE.nii.gz and CASE.json, as labelsTs"
    )
    _add_analyses(parser)
    _add_outputs(parser)
    parser.add_argument(
        "-np",
        "--processes",
        type=positive,
        metavar="N",
        help="scans measured at the same time (default: cores, as memory allows)",
    )
    return run_command(parser, _work, arguments)


def _add_analyses(parser: argparse.ArgumentParser) -> None:
    """What is looked at beside the figures of the whole cohort."""
    parser.add_argument(
        "--pred-on-reference",
        type=Path,
        metavar="DIR",
        help="what bonemet_predict --lesions wrote of the references: adds figures of sources that "
        "are estimated on the references' own lesions",
    )
    parser.add_argument(
        "--versus",
        type=Path,
        metavar="P2",
        help="predictions of the same scans by another model: differences with paired intervals",
    )
    parser.add_argument(
        "--subgroups",
        type=Path,
        metavar="TABLE.csv",
        help="table with a row for each case or patient_id: figures by its columns",
    )
    parser.add_argument(
        "--by", nargs="+", default=[], metavar="COLUMN", help="columns of it; otherwise all"
    )


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    """What is written, and what stands in it."""
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


def _work(options: argparse.Namespace) -> int:
    from bonemet_auto.evaluation.cohort import useful_processes
    from bonemet_auto.evaluation.cross_validation import pool, read_folds
    from bonemet_auto.evaluation.evaluate import write_evaluation
    from bonemet_auto.evaluation.paper import (
        measured_cohort,
        read_other_cohort,
        write_paper_table,
    )
    from bonemet_auto.evaluation.table import format_table

    _refuse_clashes(options)
    images = _images(options)
    others = [read_other_cohort(options.beside, options.cohort)] if options.beside else []
    table = level_table(options)
    processes = options.processes = options.processes or useful_processes(options.ref)
    folds = read_folds(options.folds, options.ref, processes) if options.folds else {}
    cohort = pool(folds) if folds else read_predictions(options.pred, options.ref, processes)
    evaluation = with_subgroups(evaluate(options, cohort), cohort, table)
    print(format_table(evaluation, options.cohort))
    print_subgroups(evaluation)
    cohorts = [measured_cohort(evaluation, options.cohort), *others]
    if options.out:
        write_evaluation(evaluation, options.out, options.cohort)
        write_paper_table(options.out, cohorts)
    if folds:
        show_folds(folds, evaluation, options.out)
    if options.versus:
        show_comparison(options, cohort)
    if options.out and not folds:
        from bonemet_auto.report.claim import write_checklist
        from bonemet_auto.report.html import write_report

        write_checklist(options.pred, evaluation, options.cohort, options.out)
        report = write_report(options.pred, options.ref, images, evaluation, options.out, cohorts)
        logger.info("wrote %s and the tables beside it", report)
    return EXIT_DONE


def _refuse_clashes(options: argparse.Namespace) -> None:
    """Refuse flags that do not go together."""
    if options.beside and not options.out:
        raise UsageError("--beside is for the table on file; give --out too.")
    if options.by and not options.subgroups:
        raise UsageError("--by names columns of a table; give it with --subgroups.")
    if options.folds and (options.versus or options.pred_on_reference or options.images):
        raise UsageError(
            "--folds is evaluated by itself, without --versus, --pred-on-reference and --images. "
            "To compare cross-validations, give the folders cross_validation of two plans as "
            "--pred and --versus."
        )
    if options.versus and options.pred_on_reference:
        raise UsageError(
            "--versus compares two folders; to compare estimates on the references' lesions, give "
            "those as --pred and --versus."
        )


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
