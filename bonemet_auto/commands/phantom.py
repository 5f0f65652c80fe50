"""`bonemet_phantom`: make a synthetic dataset folder."""

import argparse
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from bonemet_auto.commands.common import EXIT_DONE, command_parser, remove_dataset, run_command
from bonemet_auto.errors import UsageError

_log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and make the dataset; return the exit code."""
    return run_command(_parser(), _make, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "bonemet_phantom",
        "Make a dataset folder of synthetic CTs with bone lesions: same call, same bytes.",
    )
    parser.add_argument("out", type=Path, help="folder that becomes the dataset")
    parser.add_argument("--cases", type=int, default=24, help="training cases")
    parser.add_argument("--test-cases", type=int, default=16, help="test cases")
    parser.add_argument("--seed", type=int, default=0, help="0 or more; decides everything")
    parser.add_argument(
        "--size",
        choices=("small", "medium", "clinical"),
        default="small",
        help="64 to 96 or 96 to 128 voxels an axis around bone, or a whole trunk",
    )
    parser.add_argument(
        "--background",
        type=Path,
        nargs="+",
        default=[],
        metavar="CT",
        help="plant the lesions into the bone of these CTs instead of synthetic anatomy",
    )
    parser.add_argument("--processes", type=int, default=2, help="cases made at the same time")
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset that is there")
    return parser


def _make(options: argparse.Namespace) -> int:
    from bonemet_auto.phantom import write_phantom_dataset

    if options.seed < 0:
        raise UsageError(f"--seed {options.seed}: give 0 or more.")
    if options.overwrite and options.out.is_dir():
        remove_dataset(options.out)
    started = time.perf_counter()
    write_phantom_dataset(
        options.out,
        options.cases,
        options.test_cases,
        options.seed,
        options.size,
        options.background,
        options.processes,
    )
    _log.info("%s written in %.0f s", options.out, time.perf_counter() - started)
    return EXIT_DONE
