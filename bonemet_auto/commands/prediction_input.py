"""What `bonemet_predict` is to work on, settled before any work."""

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bonemet_auto.commands.prediction_output import failed_before
from bonemet_auto.errors import UsageError

if TYPE_CHECKING:
    from bonemet_auto.plan_schema import Plan
    from bonemet_auto.scans import Scan

MOST_OVERLAP = 0.9
"""Beyond it windows lie on each other, and their number explodes."""

logger = logging.getLogger(__name__)


def private_file(output: Path) -> Path:
    """Beside the results, which may be handed on: it says who the pseudonyms are."""
    return output.resolve().with_name(f"{output.resolve().name}_private.json")


def own_part(scans: "Mapping[str, Scan]", parts: int, part: int) -> "dict[str, Scan]":
    """Every `parts`-th case, from number `part` on."""
    if parts < 1 or part not in range(parts):
        raise UsageError(
            f"-num_parts {parts} -part_id {part}: give N parts, N >= 1, and K from 0 to N - 1."
        )
    return dict(list(scans.items())[part::parts])


def claim_output(options: argparse.Namespace, scans: "Mapping[str, Scan]") -> "dict[str, Scan]":
    """The cases to do, once it is sure that no earlier result is lost against the user's will."""
    from bonemet_auto.inference.export import is_run_file

    out, source = options.output.resolve(), options.input.resolve()
    if out.exists() and not out.is_dir():
        raise UsageError(f"-o {options.output} is a file; give a folder.")
    if source.is_dir() and out.is_relative_to(source):
        raise UsageError(
            f"-o {options.output} lies in the input folder {options.input}, where results would be "
            "taken for scans. Give another folder."
        )
    reserved = [case for case in scans if is_run_file(out / f"{case}.json")]
    if reserved:
        raise UsageError(f"case '{reserved[0]}' has the name of a file that we write; rename it.")
    done = [case for case in scans if (out / f"{case}.json").is_file()]
    if options.go_on:
        failed = failed_before(out)
        done = [case for case in done if case not in failed]
        return {case: scan for case, scan in scans.items() if case not in done}
    # Other parts write into the same folder at the same time: only own cases count then.
    taken = bool(done) if options.num_parts > 1 else out.is_dir() and any(out.iterdir())
    if taken and not options.overwrite:
        raise UsageError(
            f"-o {options.output} is not empty. Give another folder, --continue to skip the cases "
            "that are done, or --overwrite."
        )
    return dict(scans)


def with_inference(plan: "Plan", options: argparse.Namespace) -> "Plan":
    """A model's plan with the overlap and mirrors that were asked for; a change is told."""
    wanted: dict[str, object] = {}
    if options.overlap is not None:
        wanted["overlap"] = min(options.overlap, MOST_OVERLAP)
    if options.no_mirrors:
        wanted["mirror_axes"] = ()
    changed = {
        name: value for name, value in wanted.items() if getattr(plan.inference, name) != value
    }
    for name, value in changed.items():
        logger.warning(
            "warning: %s is %s, and the model's thresholds were found with %s",
            name, value, getattr(plan.inference, name),
        )  # fmt: skip
    return plan.model_copy(update={"inference": plan.inference.model_copy(update=changed)})


def require_series(options: argparse.Namespace, scans: "Mapping[str, Scan]") -> None:
    """Refuse to write DICOM where none is read."""
    if "dicom" in options.formats and all(isinstance(scan, Path) for scan in scans.values()):
        raise UsageError(
            "--formats dicom writes on the slices of a DICOM series, and no scan is one. Give the "
            "DICOM folder as -i, or another format."
        )


def masks_of(options: argparse.Namespace, scans: "Mapping[str, Scan]") -> dict[str, Path]:
    """Drawn lesions of every scan, none without `--lesions`.

    A single mask belongs to a single scan whatever its name.
    """
    from bonemet_auto.images import find_images

    if options.lesions is None:
        return {}
    if options.threshold is not None:
        raise UsageError("--threshold: all lesions of --lesions count; leave it out.")
    masks = find_images(options.lesions)
    if len(scans) == len(masks) == 1:
        return dict(zip(scans, masks.values(), strict=True))
    missing = [case for case in scans if case not in masks]
    if missing:
        raise UsageError(
            f"--lesions {options.lesions} has no mask for {len(missing)} of {len(scans)} scans: "
            f"{', '.join(missing[:5])}. Name masks after their cases (CASE.nii.gz)."
        )
    return masks
