"""What all commands share: the parser's frame, exit codes, and how an error is shown."""

import argparse
import logging
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bonemet_auto import __version__
from bonemet_auto.errors import BonemetError, StoppedError, UsageError

EXIT_DONE = 0
EXIT_REFUSED = 2
EXIT_SOME_FAILED = 3
EXIT_STOPPED = 4

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}

RESEARCH_NOTE = "Research use only; not a medical device."


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


def command_parser(name: str, description: str) -> argparse.ArgumentParser:
    """A parser with the flags that every command has."""
    parser = argparse.ArgumentParser(
        prog=name,
        description=f"{description} {RESEARCH_NOTE}",
        allow_abbrev=False,
        formatter_class=_Help,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("--verbose", action="store_true", help="more detail, tracebacks too")
    return parser


def add_root(parser: argparse.ArgumentParser) -> None:
    """Add `--root`."""
    parser.add_argument(
        "--root",
        type=Path,
        help="data root that holds raw, preprocessed and results; otherwise $BONEMET_ROOT, "
        "otherwise ./bonemet_data",
    )


def parse_duration(text: str) -> float:
    """Seconds of `90s`, `30m`, `8h` or `2d`; a number alone could be meant in either unit."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip().lower())
    if match is None:
        raise argparse.ArgumentTypeError(f"'{text}' is no duration; write 90s, 30m, 8h or 2d")
    number, unit = match.groups()
    if not unit:
        raise argparse.ArgumentTypeError(
            f"'{text}' has no unit; write {number}s for seconds, {number}m for minutes"
        )
    return float(number) * _UNITS_S[unit]


def positive(text: str) -> int:
    """A whole number from 1 up, as a flag's type."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no positive whole number")
    return int(text)


def natural(text: str) -> int:
    """A whole number from 0 up, as a flag's type."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number from 0 up")
    return int(text)


def share(text: str) -> float:
    """A number from 0 to 1, as a flag's type."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no number from 0 to 1")
    return value


def run_command(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace], int],
    arguments: Sequence[str] | None,
) -> int:
    """Parse, work, and turn every outcome into an exit code and at most one line of complaint.

    `work` finds the arguments as they were typed in `given`.
    """
    options = parser.parse_args(arguments)
    options.given = sys.argv[1:] if arguments is None else list(arguments)
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.INFO,
        format="%(message)s",
        stream=sys.stderr,
    )
    for noisy in ("matplotlib", "PIL", "numexpr"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        return work(options)
    except StoppedError as stopped:
        print(f"{parser.prog}: {stopped}", file=sys.stderr)
        return EXIT_STOPPED
    except BonemetError as error:
        if options.verbose:
            logging.exception("%s failed", parser.prog)
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return EXIT_REFUSED
    except KeyboardInterrupt:
        print(f"{parser.prog}: stopped", file=sys.stderr)
        return EXIT_STOPPED


def remove_dataset(folder: Path) -> None:
    """Remove a dataset folder, and nothing that does not look like one.

    Raises:
        UsageError: it holds files and no `dataset.json`.
    """
    if any(folder.iterdir()) and not (folder / "dataset.json").is_file():
        raise UsageError(
            f"--overwrite: {folder} holds files but no dataset.json, so it is left alone. "
            "Give another folder."
        )
    shutil.rmtree(folder)
