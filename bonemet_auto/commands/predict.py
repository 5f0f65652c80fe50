"""`bonemet_predict -i IN -o OUT`: find, outline and source-classify lesions in new scans."""

import argparse
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from bonemet_auto.commands.cluster import Job, add_cluster, open_queue, own_arguments, submit
from bonemet_auto.commands.common import (
    EXIT_DONE,
    EXIT_SOME_FAILED,
    add_root,
    command_parser,
    run_command,
    share,
)
from bonemet_auto.commands.prediction_input import (
    claim_output,
    masks_of,
    own_part,
    private_file,
    require_series,
    with_inference,
)
from bonemet_auto.commands.prediction_output import note_failures, part_name, ready_output
from bonemet_auto.commands.run_report import write_run_report
from bonemet_auto.errors import StoppedError, UsageError
from bonemet_auto.files import data_root, find_dataset, results_folder

if TYPE_CHECKING:
    import torch

    from bonemet_auto.inference.cost import Cost
    from bonemet_auto.inference.drawn import DrawnCase
    from bonemet_auto.inference.load import Ensemble
    from bonemet_auto.inference.predict import Prediction
    from bonemet_auto.result_schema import CasePrediction, OperatingPoint
    from bonemet_auto.scans import Scan
    from bonemet_auto.schema import FailedCase

logger = logging.getLogger(__name__)

FORMATS = ("dicom", "seg.nrrd", "itk-snap", "bids")


def main(arguments: Sequence[str] | None = None) -> int:
    """Console script."""
    parser = command_parser(
        "bonemet_predict", "Find, outline and source-classify bone lesions in CTs."
    )
    parser.add_argument(
        "-i",
        "--input",
        type=Path,
        required=True,
        help="a CT, a folder of CTs or of DICOM series, or a zip of either",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the results")
    _add_model(parser)
    parser.add_argument("-device", "--device", default="auto", help="auto, cpu, cuda or cuda:N")
    _add_method(parser)
    _add_parts(parser)
    _add_outputs(parser)
    add_cluster(parser)
    rerun = parser.add_mutually_exclusive_group()
    rerun.add_argument("--overwrite", action="store_true", help="write into a folder with results")
    rerun.add_argument(
        "--continue", dest="go_on", action="store_true", help="skip cases that are done"
    )
    return run_command(parser, _predict, arguments)


def _add_model(parser: argparse.ArgumentParser) -> None:
    """Which networks predict."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "-m",
        "--model",
        type=Path,
        help="a model zip or folder, or a folder of trained folds (fold_0, fold_1 ...), or of one",
    )
    source.add_argument("-d", "--dataset", help="dataset whose trained folds are used")
    parser.add_argument("-p", "--plan-name", default="default", help="plan of the folds, with -d")
    parser.add_argument(
        "-f",
        "--folds",
        type=_fold,
        nargs="+",
        help="folds that predict together (otherwise the consolidated model, or all numbered ones "
        "where there is none), or all: the model that was trained on all cases",
    )
    add_root(parser)


def _add_method(parser: argparse.ArgumentParser) -> None:
    """What is done otherwise than the model says."""
    parser.add_argument(
        "--threshold", type=share, metavar="T", help="score from which a lesion counts (0 to 1)"
    )
    parser.add_argument(
        "--overlap",
        type=share,
        metavar="S",
        help="least share of a window that the next covers (0 to 0.9)",
    )
    parser.add_argument(
        "--no-mirrors", action="store_true", help="look at every window as it is only: faster"
    )
    parser.add_argument(
        "--lesions",
        type=Path,
        metavar="MASKS",
        help="a mask, or a folder of masks named after their cases, with an id for each lesion: "
        "estimate the sources of these, and find none",
    )


def _add_parts(parser: argparse.ArgumentParser) -> None:
    """Which of the cases are done."""
    parser.add_argument(
        "-num_parts", "--num-parts", type=int, default=1, metavar="N", help="split the cases by N"
    )
    parser.add_argument(
        "-part_id", "--part-id", type=int, default=0, metavar="K", help="do part K, from 0"
    )


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    """What is written beside masks and tables."""
    parser.add_argument(
        "--report", action="store_true", help="also write report.html, with pictures of every case"
    )
    parser.add_argument(
        "--viewer",
        action="store_true",
        help="also write report.html, and for every case a page that shows its lesions in 3D",
    )
    parser.add_argument(
        "--formats",
        nargs="+",
        choices=FORMATS,
        default=[],
        metavar="FORMAT",
        help=f"also write {', '.join(FORMATS)}",
    )


def _fold(text: str) -> int | str:
    if text != "all" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is no fold; write 0 to 4, or all")
    return text if text == "all" else int(text)


def _submit(options: argparse.Namespace) -> int:
    """A job for each part of the cases."""
    from bonemet_auto.scans import find_scans, unpacked

    if options.part_id:
        raise UsageError("--cluster submits all parts; leave -part_id out")
    with unpacked(options.input) as source:
        scans = find_scans(source, private_file(options.output))
    own, parts = own_arguments(options.given), options.num_parts
    jobs = []
    for part in range(parts):
        claim_output(options, own_part(scans, parts, part))
        flags = (*own, "-part_id", str(part))
        # What --overwrite is to replace must not pass for done: such a part begins anew.
        again = flags if options.overwrite else (*flags, "--continue")
        jobs.append(Job("predict", flags, again, (options.output,)))
    logs = options.output.with_name(f"{options.output.name}_jobs")
    submit(open_queue(logs, "bonemet_predict", options), jobs)
    return EXIT_DONE


def _predict(options: argparse.Namespace) -> int:
    if options.cluster:
        return _submit(options)
    from bonemet_auto.processor import tune_processor

    tune_processor()
    from bonemet_auto.scans import unpacked
    from bonemet_auto.training.stop import interruptible

    with interruptible(), unpacked(options.input) as source:
        return _predict_source(source, options)


def _predict_source(source: Path, options: argparse.Namespace) -> int:
    from bonemet_auto.inference.export import write_cohort_tables
    from bonemet_auto.inference.open import open_model
    from bonemet_auto.processor import pick_device
    from bonemet_auto.scans import find_scans

    started, clock_s = datetime.now(timezone.utc), time.perf_counter()
    of_all_parts = find_scans(source, private_file(options.output))
    scans = own_part(of_all_parts, options.num_parts, options.part_id)
    require_series(options, of_all_parts)
    scans = claim_output(options, scans)
    masks = masks_of(options, scans)
    device = pick_device(options.device)
    ensemble = open_model(_model_folder(options), device, options.folds)
    logger.info(
        "predicting %d cases with %d fold(s) on %s", len(scans), len(ensemble.models), device
    )
    ready_output(options, scans)
    try:
        costs, failed = _run(options, scans, masks, ensemble, device)
    except KeyboardInterrupt as interrupted:
        raise StoppedError(_stopped(options, scans, str(interrupted) or "Ctrl-C")) from None
    write_cohort_tables(options.output)
    note_failures(options, failed, scans, of_all_parts)
    write_run_report(
        options.output / f"run_report{part_name(options)}.json",
        options,
        ensemble,
        str(device),
        started,
        time.perf_counter() - clock_s,
        (len(scans) - len(failed), len(failed)),
        costs,
        has_studies=any(not isinstance(scan, Path) for scan in of_all_parts.values()),
    )
    if options.viewer:
        from bonemet_auto.report.viewer import write_viewer

        write_viewer(options.output, of_all_parts)
    if options.report or options.viewer:
        from bonemet_auto.report.html import write_prediction_report

        logger.info("wrote %s", write_prediction_report(options.output, of_all_parts))
    logger.info("%d of %d cases are in %s", len(scans) - len(failed), len(scans), options.output)
    return EXIT_SOME_FAILED if failed else EXIT_DONE


def _stopped(options: argparse.Namespace, scans: "Mapping[str, Scan]", by: str) -> str:
    done = sum((options.output / f"{case}.json").is_file() for case in scans)
    instead = " instead of --overwrite" if options.overwrite else ""
    return (
        f"stopped by {by}; {done} of {len(scans)} cases are in {options.output}. The same command "
        f"with --continue{instead} does the rest, and writes the tables"
    )


def _model_folder(options: argparse.Namespace) -> Path:
    if options.model is not None:
        return Path(options.model)
    root = data_root(options.root)
    return results_folder(root, find_dataset(root, options.dataset), options.plan_name)


def _run(
    options: argparse.Namespace,
    scans: "Mapping[str, Scan]",
    masks: Mapping[str, Path],
    ensemble: "Ensemble",
    device: "torch.device",
) -> "tuple[dict[str, Cost], list[FailedCase]]":
    """Predict and write case by case; return what each took, and the cases that failed."""
    from tqdm import tqdm

    from bonemet_auto.inference.ahead import write_behind
    from bonemet_auto.inference.drawn import describe_cases
    from bonemet_auto.inference.fuse import outline_of
    from bonemet_auto.inference.predict import predict_cases
    from bonemet_auto.schema import FailedCase

    point, models = ensemble.operating_point, ensemble.models
    plan = with_inference(ensemble.plan, options)
    if options.threshold is not None:
        point = point.model_copy(update={"score_threshold": options.threshold})
    outcomes: Iterator[Prediction | DrawnCase | FailedCase]
    if options.lesions:
        outcomes = describe_cases(scans, masks, models, plan, device)
    else:
        outcomes = predict_cases(scans, models, plan, device, outline_of(point))

    def write(outcome: "Prediction | DrawnCase | FailedCase") -> "Cost | FailedCase":
        if isinstance(outcome, FailedCase):
            return outcome
        with outcome.cost.stage("write"):
            failed = _write(outcome, options, scans[outcome.case], point)
        return failed or outcome.cost

    costs: dict[str, Cost] = {}
    failed = []
    shown = tqdm(outcomes, "Predicting", len(scans), unit="case", disable=None)
    with closing(write_behind(shown, write)) as done:
        for case, written in zip(scans, done, strict=True):
            if isinstance(written, FailedCase):
                logger.error("case %s failed: %s", case, written.reason)
                failed.append(written)
            else:
                costs[case] = written
    return costs, failed


def _write(
    found: "Prediction | DrawnCase",
    options: argparse.Namespace,
    scan: "Scan",
    point: "OperatingPoint",
) -> "FailedCase | None":
    """Write a case in all formats; what failed, if another format than ours did."""
    from bonemet_auto.formats.write import write_formats
    from bonemet_auto.inference.drawn import DrawnCase
    from bonemet_auto.inference.export import write_case, write_drawn_case
    from bonemet_auto.inference.predict import failure

    out, case, geometry = options.output, found.case, found.geometry
    warnings = found.warnings if isinstance(found, DrawnCase) else found.result.warnings
    for warning in warnings:
        logger.warning("warning: %s: %s", case, warning)
    failed: list[FailedCase] = []

    def other_formats(record: "CasePrediction") -> None:
        try:
            write_formats(out, scan, record, options.formats)
        except Exception as error:
            failed.append(failure(case, error))

    try:
        if isinstance(found, DrawnCase):
            write_drawn_case(out, case, geometry, found.lesions, warnings, point, other_formats)
        else:
            write_case(out, case, geometry, found.result, point, other_formats)
    except (OSError, RuntimeError) as error:  # the latter from SimpleITK
        raise StoppedError(
            f"stopped: case {case} could not be written to {out} ({error}). Make room there, then "
            "the same command with --continue does the rest"
        ) from error
    return failed[0] if failed else None
