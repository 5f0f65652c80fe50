"""The folder that `bonemet_predict` writes into: cleaned after a kill, its failures kept true."""

import argparse
from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

from bonemet_auto.errors import UsageError
from bonemet_auto.files import remove_temporaries

if TYPE_CHECKING:
    from bonemet_auto.schema import FailedCase

FAILURES = "failed_cases"
_ENDINGS = (".json", ".nii.gz", ".seg.nrrd", ".txt", "_seg.dcm", "_sr.dcm")


def part_name(options: argparse.Namespace) -> str:
    """What the files of a run are called by where its cases are a part of all; empty otherwise."""
    parts: int = options.num_parts
    return "" if parts == 1 else f"_part{options.part_id}of{parts}"


def ready_output(options: argparse.Namespace, cases: Collection[str]) -> None:
    """Make the folder, and remove what no later run may take for a result of this one.

    That are the temporary files of a run that was killed, and with `--overwrite` the `CASE.json` of
    earlier results, so that `--continue` can go on if this run is stopped, too. Other parts may be
    writing at the same time: a part touches only files of its own cases.

    Raises:
        UsageError: the folder cannot be written to.
    """
    from bonemet_auto.formats.write import dicom_folder

    out: Path = options.output
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UsageError(
            f"-o {out} cannot be written to ({error.strerror}). Give another folder."
        ) from None
    own = {f"{case}{ending}" for case in cases for ending in _ENDINGS}
    for folder in (out, dicom_folder(out)):
        remove_temporaries(folder, own if options.num_parts > 1 else None)
    if options.overwrite:
        for case in cases:
            (out / f"{case}.json").unlink(missing_ok=True)


def failed_before(out: Path) -> set[str]:
    """Cases that earlier runs have listed as failed, in part or as a whole."""
    from bonemet_auto.schema import read_failures

    return {case.case for path in _lists(out) for case in read_failures(path)}


def note_failures(
    options: argparse.Namespace,
    failed: "Collection[FailedCase]",
    tried: Collection[str],
    known: Collection[str],
) -> None:
    """Write what failed in this run; lists of other parts keep what is still theirs to mend.

    Args:
        options: of the command.
        failed: cases of this run.
        tried: all cases of this run.
        known: cases of all parts.
    """
    from bonemet_auto.schema import read_failures, write_failures

    own = options.output / f"{FAILURES}{part_name(options)}.json"
    for path in _lists(options.output):
        theirs = [c for c in read_failures(path) if c.case in known and c.case not in tried]
        write_failures(path, theirs)
    write_failures(own, list(failed))


def _lists(out: Path) -> list[Path]:
    from bonemet_auto.inference.export import is_run_file

    return [path for path in sorted(out.glob(f"{FAILURES}*.json")) if is_run_file(path)]
