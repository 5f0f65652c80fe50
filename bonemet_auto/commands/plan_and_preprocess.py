"""`bonemet_plan_and_preprocess -d D`: check the data, plan, and preprocess."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bonemet_auto.commands.cluster import Job, add_cluster, open_queue, own_arguments, submit
from bonemet_auto.commands.common import (
    EXIT_DONE,
    EXIT_REFUSED,
    EXIT_SOME_FAILED,
    add_root,
    command_parser,
    run_command,
)
from bonemet_auto.errors import DataError, UsageError
from bonemet_auto.files import data_root, find_dataset, preprocessed_folder, raw_folder, write_text

if TYPE_CHECKING:
    from bonemet_auto.integrity import Inspection
    from bonemet_auto.plan_schema import Plan
    from bonemet_auto.schema import FailedCase, Fingerprint, InspectionMemory, Splits

logger = logging.getLogger(__name__)

MEMORY_NAME = "inspection.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Console script."""
    parser = command_parser(
        "bonemet_plan_and_preprocess",
        "Check every file of a raw dataset, plan network and training for it, and preprocess it.",
    )
    parser.add_argument(
        "-d", "--dataset", required=True, help="number, name or folder name of the dataset"
    )
    add_root(parser)
    parser.add_argument(
        "--planner", help="default, large or fast; otherwise what the machine allows"
    )
    parser.add_argument("--plan-name", default="default", help="folder of the plan")
    parser.add_argument(
        "--gpu-memory", type=float, metavar="GB", help="plan for a GPU with so much memory"
    )
    parser.add_argument(
        "--spacing", type=float, nargs=3, metavar=("Z", "Y", "X"), help="planned spacing in mm"
    )
    parser.add_argument(
        "--patch-size", type=int, nargs=3, metavar=("Z", "Y", "X"), help="planned patch in voxels"
    )
    parser.add_argument(
        "--keep-plan", action="store_true", help="use the plan.json that is there, edited by hand"
    )
    parser.add_argument(
        "-np", "--processes", type=int, help="worker processes (default: cores, as memory allows)"
    )
    parser.add_argument(
        "--skip-bad-cases", action="store_true", help="leave out cases with faults, exit with 3"
    )
    parser.add_argument("--plan-only", action="store_true", help="do not preprocess")
    add_cluster(parser)
    return run_command(parser, _plan_and_preprocess, arguments)


def _submit(options: argparse.Namespace) -> int:
    """One job; a second run of it passes over the cases that the first one stored."""
    root = data_root(options.root)
    name = find_dataset(root, options.dataset)
    job = Job("plan_and_preprocess", tuple(own_arguments(options.given)))
    queue = open_queue(preprocessed_folder(root, name) / "jobs", f"bonemet_{name}", options)
    submit(queue, [job])
    return EXIT_DONE


def _plan_and_preprocess(options: argparse.Namespace) -> int:
    if options.cluster:
        return _submit(options)
    from bonemet_auto.integrity import inspect_dataset, inspection_bytes
    from bonemet_auto.processor import processes_for
    from bonemet_auto.raw_dataset import open_raw_dataset
    from bonemet_auto.report.fingerprint import draw_fingerprint
    from bonemet_auto.schema import write_failures, write_json

    if options.processes is not None and options.processes < 1:
        raise UsageError(f"-np {options.processes}: give at least one process.")
    root = data_root(options.root)
    name = find_dataset(root, options.dataset)
    folder = preprocessed_folder(root, name)
    dataset = open_raw_dataset(raw_folder(root, name))
    previous = _previous_fingerprint(folder)
    processes = options.processes or processes_for(inspection_bytes(dataset))
    inspection = inspect_dataset(dataset, _memory(folder), processes)
    write_json(folder / MEMORY_NAME, inspection.memory)
    failed = _report(inspection, options.skip_bad_cases)
    if failed is None:
        return EXIT_REFUSED
    fingerprint = inspection.fingerprint
    splits = _splits(folder, fingerprint, previous)
    write_json(folder / "fingerprint.json", fingerprint)
    write_json(folder / "splits.json", splits)
    plan = _plan(options, fingerprint, folder / options.plan_name)
    draw_fingerprint(fingerprint, dataset.info.labels, plan, folder / "fingerprint.png")
    _describe(fingerprint, splits, plan, folder / options.plan_name)
    if not options.plan_only:
        from bonemet_auto.preprocess import preprocess_dataset, preprocessing_bytes

        processes = options.processes or processes_for(preprocessing_bytes(fingerprint, plan))
        cases = folder / options.plan_name / "cases"
        failed += preprocess_dataset(dataset, fingerprint, plan, cases, processes)
    write_failures(folder / "failed_cases.json", failed)
    if not failed:
        return EXIT_DONE
    count = len({case.case for case in failed})
    print(f"{count} cases failed or were left out: {folder / 'failed_cases.json'}")
    return EXIT_SOME_FAILED


def _previous_fingerprint(folder: Path) -> "Fingerprint | None":
    """The last fingerprint; one that cannot be read (older format) is simply taken anew."""
    from bonemet_auto.schema import Fingerprint, read_json

    try:
        return read_json(folder / "fingerprint.json", Fingerprint)
    except DataError:
        return None


def _memory(folder: Path) -> "InspectionMemory | None":
    """What earlier runs remember of the raw files; in another format it counts for nothing."""
    from bonemet_auto.schema import InspectionMemory, read_json

    try:
        return read_json(folder / MEMORY_NAME, InspectionMemory)
    except DataError:
        return None


def _report(inspection: "Inspection", skip_bad_cases: bool) -> "list[FailedCase] | None":
    """Show warnings and faults; the cases left out, or None where the dataset is refused."""
    from bonemet_auto.integrity import fault_table
    from bonemet_auto.schema import FailedCase

    for warning in inspection.warnings:
        logger.warning("warning: %s", warning)
    faults = inspection.faults
    if not faults:
        return []
    print(fault_table(faults))
    if not skip_bad_cases or any(not fault.case for fault in faults):
        advice = "Mend them" if skip_bad_cases else "Mend them, or leave them out: --skip-bad-cases"
        print(f"{len(faults)} faults; nothing was planned. {advice}.")
        return None
    if not inspection.fingerprint.cases:
        raise DataError("every case has a fault; nothing is left to plan for. Mend the faults.")
    print(f"{len({fault.case for fault in faults})} cases with faults are left out.")
    return [
        FailedCase(case=fault.case, reason=f"{fault.file}: {fault.problem}", fix=fault.fix)
        for fault in faults
    ]


def _splits(folder: Path, fingerprint: "Fingerprint", previous: "Fingerprint | None") -> "Splits":
    """New folds, or those on file if they were made by hand or still fit."""
    from bonemet_auto.folds import check_splits, make_splits
    from bonemet_auto.schema import Splits, read_json

    path = folder / "splits.json"
    if not path.is_file():
        return make_splits(fingerprint)
    kept = read_json(path, Splits)
    if previous is not None and kept == make_splits(previous, seed=kept.seed):
        return make_splits(fingerprint, seed=kept.seed)
    check_splits(kept, fingerprint)
    logger.info("keeping the folds of %s", path)
    return kept


def _plan(options: argparse.Namespace, fingerprint: "Fingerprint", folder: Path) -> "Plan":
    """Make the plan (or read the edited one), and write it with its explanation."""
    import planners
    from bonemet_auto.plan_file import PLAN_NAME, inherits, read_plan
    from bonemet_auto.schema import write_json

    path = folder / PLAN_NAME
    if getattr(planners, "OWNER", None) != "bonemet_auto":
        raise UsageError(
            f"another package named 'planners' hides ours: {planners.__file__}. Uninstall it, or "
            "install bonemet_auto into an environment of its own."
        )
    if options.keep_plan or inherits(path):
        kept = read_plan(path, "Run once without --keep-plan.")
        _refuse_derivation(options, path, kept.planner)
        plan = planners.measured_plan(kept)
        logger.info("keeping the edited plan %s", path)
        needed_gb = plan.memory_bytes / 1e9
        if needed_gb > plan.target.memory_gb:
            logger.warning(
                "warning: the edited plan needs %.1f GB, its target has %g GB: make the patch or "
                "the batch smaller",
                needed_gb,
                plan.target.memory_gb,
            )
    else:
        target = planners.detect_target(options.gpu_memory)
        planner = options.planner or planners.default_planner(target)
        if planner not in planners.PLANNERS:
            known = ", ".join(sorted(planners.PLANNERS))
            raise UsageError(f"--planner {planner} is unknown. Give one of: {known}.")
        plan = planners.PLANNERS[planner](
            fingerprint,
            target,
            options.plan_name,
            tuple(options.spacing) if options.spacing else None,
            tuple(options.patch_size) if options.patch_size else None,
        )
        plan = planners.measured_plan(plan)
        write_json(path, plan)
    write_text(folder / "plan.md", planners.explain_plan(plan, fingerprint))
    return plan


def _refuse_derivation(options: argparse.Namespace, path: Path, planner: str) -> None:
    """Flags that make a plan say nothing about one that is kept."""
    flags = ("gpu_memory", "spacing", "patch_size")
    given = [f"--{flag.replace('_', '-')}" for flag in flags if getattr(options, flag) is not None]
    if options.planner not in (None, planner):
        given.append(f"--planner {options.planner}")
    if given:
        raise UsageError(
            f"{', '.join(given)}: {path} is a person's own and is kept. Edit it, leave the flags "
            "out, or give another --plan-name."
        )


def _describe(fingerprint: "Fingerprint", splits: "Splits", plan: "Plan", folder: Path) -> None:
    from bonemet_auto.folds import patient_labels

    lesions = [lesion for case in fingerprint.cases for lesion in case.lesions]
    labels = list(patient_labels(fingerprint.cases).values())
    print(
        f"{fingerprint.dataset}: {len(fingerprint.cases)} cases of {len(labels)} patients "
        f"({labels.count(1)} lung metastasis, {labels.count(0)} other, {labels.count(None)} "
        f"unknown), {len(lesions)} lesions, {len(splits.validation)} folds\n"
        f"planner    {plan.planner}, for {plan.target.device} with {plan.target.memory_gb:g} GB\n"
        f"spacing    {_times(plan.spacing_mm)} mm (z, y, x)\n"
        f"patch      {_times(plan.patch_size)} voxels, batch size {plan.batch_size}\n"
        f"memory     {plan.memory_bytes / 1e9:.2f} GB estimated\n"
        f"files      {folder} (plan.md explains every choice)"
    )


def _times(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
