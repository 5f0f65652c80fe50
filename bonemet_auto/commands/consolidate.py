"""`bonemet_consolidate D`: the trained folds become one model folder."""

import argparse
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bonemet_auto import __version__
from bonemet_auto.commands.common import (
    EXIT_DONE,
    add_root,
    command_parser,
    run_command,
)
from bonemet_auto.errors import ModelError, UsageError
from bonemet_auto.files import (
    MODEL_FOLDER,
    atomic_folder,
    data_root,
    find_dataset,
    preprocessed_folder,
    raw_folder,
    results_folder,
    write_text,
)

if TYPE_CHECKING:
    from bonemet_auto.consolidation.gather import HeldOutCase
    from bonemet_auto.consolidation.settings import Settings
    from bonemet_auto.inference.fuse import Outline
    from bonemet_auto.plan_schema import Plan
    from bonemet_auto.result_schema import OperatingPoint

logger = logging.getLogger(__name__)

CROSS_VALIDATION = "cross_validation"
TABLE_NAME = "cross_validation.txt"
DATASET_NAME = "dataset.json"
FINGERPRINT_NAME = "fingerprint.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Console script."""
    parser = command_parser(
        "bonemet_consolidate",
        "Choose thresholds, smallest lesion, source calibration and patient rule on the cases that "
        "each fold had held out, and put the trained folds into one model folder.",
    )
    parser.add_argument("dataset", help="number, name or folder name of the dataset")
    add_root(parser)
    parser.add_argument("-p", "--plan-name", default="default", help="plan of the folds")
    parser.add_argument("--overwrite", action="store_true", help="replace a consolidated model")
    return run_command(parser, _consolidate, arguments)


def _consolidate(options: argparse.Namespace) -> int:
    from bonemet_auto.consolidation.gather import gather_fold
    from bonemet_auto.consolidation.settings import OUTLINES, find_settings
    from bonemet_auto.inference.fuse import USUAL_OUTLINE
    from bonemet_auto.raw_dataset import open_raw_dataset

    root = data_root(options.root)
    name = find_dataset(root, options.dataset)
    results = results_folder(root, name, options.plan_name)
    out = results / MODEL_FOLDER
    if out.exists() and not options.overwrite:
        raise UsageError(f"{out} exists; --overwrite replaces it")
    folds = _finished_folds(root, name, results)
    plan = _shared_plan(results, folds, preprocessed_folder(root, name) / FINGERPRINT_NAME)
    dataset = open_raw_dataset(raw_folder(root, name))
    parts = [gather_fold(results / f"fold_{fold}", fold, dataset, OUTLINES) for fold in folds]
    drawn = {outline: [case for part in parts for case in part[outline]] for outline in OUTLINES}
    cases = drawn[USUAL_OUTLINE]
    if not cases:
        raise ModelError(f"the folds in {results} have no validation case; nothing to choose on")
    _require_once(cases, results)
    settings = find_settings(drawn)
    logger.info("%d held-out cases of folds %s", len(cases), ", ".join(map(str, folds)))
    logger.info("%s", _in_words(settings.point))
    logger.info("patient: %s", settings.reason)
    _cross_validate(drawn, dataset.folder / "labelsTr", results)
    _write_model(root, name, results, plan, folds, settings, len(cases))
    logger.info("%s is complete; bonemet_predict -i SCANS -o RESULTS -m %s", out, out)
    return EXIT_DONE


def _in_words(point: "OperatingPoint") -> str:
    return (
        f"masks: {point.mask_weight:.0%} second stage, from {point.mask_threshold:.1f}; lesions "
        f"from {point.min_volume_mm3:g} mm3; {point.rule}"
    )


def _finished_folds(root: Path, name: str, results: Path) -> list[int]:
    """Folds that were trained to their end; what the others would add is said."""
    from bonemet_auto.commands.fold_folder import FINISHED_NAME
    from bonemet_auto.schema import Splits, read_json

    remedy = f"Run bonemet_plan_and_preprocess -d {name} first."
    splits = read_json(preprocessed_folder(root, name) / "splits.json", Splits, remedy)
    planned = range(len(splits.validation))
    folds = [fold for fold in planned if (results / f"fold_{fold}" / FINISHED_NAME).is_file()]
    if not folds:
        raise UsageError(f"no finished fold in {results}; train them (bonemet_train {name} 0)")
    missing = [str(fold) for fold in planned if fold not in folds]
    if missing:
        without = sum(len(splits.validation[int(fold)]) for fold in missing)
        logger.warning(
            "warning: fold %s not trained to the end: the ensemble is smaller, and %d cases tell "
            "nothing about thresholds, calibration and patients",
            ", ".join(missing), without,
        )  # fmt: skip
    return folds


def _cross_validate(
    drawn: "Mapping[Outline, list[HeldOutCase]]", labels: Path, results: Path
) -> None:
    """Write every case by settings of the other folds, and their figures."""
    from bonemet_auto.consolidation.settings import settings_without
    from bonemet_auto.evaluation.evaluate import evaluate_folders
    from bonemet_auto.evaluation.table import format_table
    from bonemet_auto.inference.export import write_case, write_cohort_tables
    from bonemet_auto.inference.fuse import USUAL_OUTLINE, outline_of
    from bonemet_auto.inference.predict import CaseResult

    cases = drawn[USUAL_OUTLINE]
    folds = sorted({case.fold for case in cases})
    out = results / CROSS_VALIDATION
    shutil.rmtree(out, ignore_errors=True)
    (results / TABLE_NAME).unlink(missing_ok=True)
    if len(folds) < 2:
        logger.warning("warning: a single fold cannot be cross-validated; no figures are written")
        return
    for fold in folds:
        settings = settings_without(fold, drawn)
        for case in (case for case in drawn[outline_of(settings.point)] if case.fold == fold):
            calibrated = case.at_temperature(settings.temperatures[fold])
            found = CaseResult(list(calibrated.lesions), list(case.warnings))
            write_case(out, case.case, case.geometry, found, settings.point)
    write_cohort_tables(out)
    evaluation = evaluate_folders(out, labels, cases={case.case for case in cases})
    table = format_table(evaluation, "internal")
    write_text(results / TABLE_NAME, table + "\n")
    logger.info("cross-validation, by settings that left each case's fold out:")
    logger.info("%s", table)


def _write_model(
    root: Path,
    name: str,
    results: Path,
    plan: "Plan",
    folds: list[int],
    settings: "Settings",
    n_cases: int,
) -> None:
    """Write the model folder beside its place, then put it there with what people had added."""
    import torch

    from bonemet_auto.checkpoint import load_checkpoint
    from bonemet_auto.inference.load import POINT_NAME
    from bonemet_auto.inference.package import MODEL_NAME, PLAN_NAME, checksums, write_weights
    from bonemet_auto.result_schema import ConsolidatedModel
    from bonemet_auto.schema import DatasetInfo, read_json, write_json

    out = results / MODEL_FOLDER
    with atomic_folder(out) as new:
        write_json(new / PLAN_NAME, plan)
        for fold in folds:
            weights = load_checkpoint(results / f"fold_{fold}", torch.device("cpu"))["ema"]
            write_weights(new, fold, weights, settings.temperatures[fold])
        # What else people wrote there stays with the data: the model may go to others.
        info = read_json(raw_folder(root, name) / DATASET_NAME, DatasetInfo)
        write_json(new / DATASET_NAME, info)
        if (results / TABLE_NAME).is_file():
            shutil.copy(results / TABLE_NAME, new)
        write_json(new / POINT_NAME, settings.point)
        model = ConsolidatedModel(
            bonemet_version=__version__,
            dataset=name,
            plan=results.name,
            folds=tuple(folds),
            temperatures=tuple(settings.temperatures[fold] for fold in folds),
            patient_rule_reason=settings.reason,
            cases=n_cases,
            sha256=checksums(new),
        )
        write_json(new / MODEL_NAME, model)
        _keep_added(out, new)


def _keep_added(old: Path, new: Path) -> None:
    """Copy what people put into the model folder that gives way, such as a filled-in card."""
    from bonemet_auto.inference.package import WEIGHTS_SUFFIX

    if not old.is_dir():
        return
    # Models once held the fingerprint, which names the training cases; it is no one's addition.
    written = {path.name for path in new.iterdir()} | {TABLE_NAME, FINGERPRINT_NAME}
    added = [p for p in old.iterdir() if p.name not in written and p.suffix != WEIGHTS_SUFFIX]
    for path in added:
        (shutil.copytree if path.is_dir() else shutil.copy2)(path, new / path.name)
    if added:
        logger.warning(
            "warning: %s kept in %s; see whether it holds for the new model, too",
            ", ".join(sorted(path.name for path in added)), old,
        )  # fmt: skip


def _shared_plan(results: Path, folds: list[int], known: Path) -> "Plan":
    """The plan of all folds, which must be one, with the scope of the data that it is for.

    The model tells of its training data by that scope, without naming cases.
    """
    from bonemet_auto.plan_schema import Plan
    from bonemet_auto.schema import Fingerprint, read_json
    from bonemet_auto.scope import scope_of

    texts = {fold: (results / f"fold_{fold}" / "plan.json").read_text("utf-8") for fold in folds}
    first = folds[0]
    differing = [str(fold) for fold in folds if texts[fold] != texts[first]]
    if differing:
        raise ModelError(
            f"fold {', '.join(differing)} of {results} was trained with another plan than fold "
            f"{first}; train them alike"
        )
    plan = read_json(results / f"fold_{first}" / "plan.json", Plan)
    if plan.scope is not None:
        return plan
    fingerprint = read_json(known, Fingerprint, "Run bonemet_plan_and_preprocess first.")
    return plan.model_copy(update={"scope": scope_of(fingerprint)})


def _require_once(cases: "list[HeldOutCase]", results: Path) -> None:
    """Refuse folds of different splits: one would be judged on what another learned from."""
    owners: dict[str, list[int]] = {}
    for case in cases:
        owners.setdefault(case.case, []).append(case.fold)
    twice = [f"{case} (folds {folds})" for case, folds in owners.items() if len(folds) > 1]
    if twice:
        raise ModelError(
            f"{results}: {', '.join(twice)} validated more than one fold, so splits.json has "
            "changed between their trainings; train them anew"
        )
