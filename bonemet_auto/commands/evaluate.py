"""`bonemet_evaluate`: figures of predictions against references."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from bonemet_auto.commands.common import EXIT_DONE, command_parser, run_command

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
        "--out", type=Path, help="folder for metrics.json, patients.csv and lesions.csv"
    )
    return run_command(parser, _work, arguments)


def _work(options: argparse.Namespace) -> int:
    from bonemet_auto.evaluation.evaluate import evaluate_folders, write_evaluation
    from bonemet_auto.evaluation.table import format_table

    evaluation = evaluate_folders(options.pred, options.ref)
    if evaluation.left_out:
        logger.warning("left out, no reference: %s", ", ".join(evaluation.left_out))
    print(format_table(evaluation))
    if options.out:
        write_evaluation(evaluation, options.out)
        logger.info("wrote %s", options.out)
    return EXIT_DONE
