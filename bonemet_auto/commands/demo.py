"""`bonemet_demo`: the whole pipeline on a synthetic cohort made on the spot, up to the report."""

import argparse
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bonemet_auto.commands.common import (
    EXIT_DONE,
    command_parser,
    parse_duration,
    run_command,
)
from bonemet_auto.errors import UsageError
from bonemet_auto.files import write_text

logger = logging.getLogger(__name__)

TRAINING_CASES, HELD_OUT_CASES, TIME_BUDGET = 40, 16, "570s"
"""A cohort that one fold learns from within minutes on two cores."""
FAST_TRAINING_CASES, FAST_HELD_OUT_CASES, FAST_ITERATIONS = 8, 3, 40

DATASET = "Dataset001_Phantom"
MARKER = "made_by_bonemet_demo.txt"
_PATIENCE_S = 3.0

Stage = tuple[str, list[str]]
"""A module of `bonemet_auto.commands`, and its arguments."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Console script."""
    parser = command_parser(
        "bonemet_demo",
        "Make a synthetic cohort, plan, train one fold, predict held-out cases, evaluate, report.",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("bonemet_demo"), help="folder for all of it"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the cohort and of training")
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--time-budget",
        type=parse_duration,
        default=TIME_BUDGET,
        metavar="7m",
        help="wall-clock time for training, the longest of the stages",
    )
    length.add_argument(
        "--fast", action="store_true", help="a minute's check that all stages run; finds no lesions"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier demo")
    return run_command(parser, _demo, arguments)


def _demo(options: argparse.Namespace) -> int:
    _claim_folder(options.out, options.overwrite)
    seconds: dict[str, float] = {}
    for module, arguments in _stages(options):
        logger.info("\n== bonemet_%s %s", module, " ".join(arguments))
        started = time.perf_counter()
        code = _run_stage(module, arguments)
        seconds[module] = time.perf_counter() - started
        if code != EXIT_DONE:
            logger.error(
                "bonemet_demo: bonemet_%s ended with exit code %d; what it said stands above. "
                "Everything so far is in %s; --overwrite starts over.",
                module,
                code,
                options.out,
            )
            return code
    print(f"\n{'stage':22}seconds")
    for module, elapsed_s in seconds.items():
        print(f"{module:22}{elapsed_s:7.0f}")
    print(f"{'all':22}{sum(seconds.values()):7.0f}")
    if options.fast:
        print(
            "\nThis was --fast: far too little training to find lesions; run without it for that."
        )
    print(f"\nOpen {options.out.resolve() / 'evaluation' / 'report.html'}")
    return EXIT_DONE


def _stages(options: argparse.Namespace) -> list[Stage]:
    """The commands that a user would type, one after the other."""
    out, seed = options.out, str(options.seed)
    root = ["--root", str(out)]
    raw = out / "raw" / DATASET
    n_training = FAST_TRAINING_CASES if options.fast else TRAINING_CASES
    n_held_out = FAST_HELD_OUT_CASES if options.fast else HELD_OUT_CASES
    cohort = ["--cases", str(n_training), "--test-cases", str(n_held_out)]
    if options.fast:
        length = ["--iterations", str(FAST_ITERATIONS)]
    else:
        length = ["--time-budget", f"{options.time_budget:g}s"]
    pred, evaluation = str(out / "predictions"), str(out / "evaluation")
    return [
        ("phantom", [str(raw), *cohort, "--size", "small", "--seed", seed]),
        ("plan_and_preprocess", ["-d", DATASET, *root]),
        ("train", [DATASET, "0", *root, *length, "--seed", seed]),
        ("predict", ["-i", str(raw / "imagesTs"), "-o", pred, "-d", DATASET, *root]),
        ("evaluate", ["--pred", pred, "--ref", str(raw / "labelsTs"), "--out", evaluation]),
    ]


def _claim_folder(folder: Path, overwrite: bool) -> None:
    """Take a new or empty folder, or with `overwrite` one that an earlier demo has made.

    The marker is written before anything else, so that a demo that was killed can be replaced too.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {folder} is a file; give a folder.")
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / MARKER).is_file():
            raise UsageError(
                f"--out {folder} holds files that no demo has made, so it is left alone. "
                "Give another folder."
            )
        if not overwrite:
            raise UsageError(
                f"--out {folder} holds an earlier demo, finished or not; --overwrite replaces it."
            )
        shutil.rmtree(folder)
    write_text(folder / MARKER, "bonemet_demo made this folder; its --overwrite deletes it.\n")


def _run_stage(module: str, arguments: list[str]) -> int:
    """Run a command in a process of its own, which gives its memory back; return its exit code."""
    start = f"from bonemet_auto.commands.{module} import main; raise SystemExit(main())"
    # As for a console script, no file of the working folder may hide a module.
    environment = os.environ | {"PYTHONSAFEPATH": "1"}
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    process = subprocess.Popen([sys.executable, "-c", start, *arguments], env=environment)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        _stop(process)
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)
    if code < 0:
        logger.error("%s", signal.strsignal(-code) or f"signal {-code}")
        return 128 - code
    return code


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Wait for a stage that Ctrl-C has reached too; tell it, and in the end kill it, if not."""
    for request in (signal.SIGINT, signal.SIGKILL):
        try:
            process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:  # noqa: PERF203  two tries
            process.send_signal(request)
        else:
            return
    process.wait()
