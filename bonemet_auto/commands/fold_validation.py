"""The end of a fold: predict its validation cases as users do, and choose thresholds."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from bonemet_auto.consolidation.gather import held_out_case, read_reference
from bonemet_auto.errors import DataError
from bonemet_auto.evaluation.operating_point import choose_operating_point
from bonemet_auto.inference.evidence import EVIDENCE, write_evidence
from bonemet_auto.inference.export import write_case, write_cohort_tables
from bonemet_auto.inference.load import POINT_NAME, mean_point
from bonemet_auto.inference.predict import Prediction, predict_cases
from bonemet_auto.model.mask_rcnn import MaskRCNN
from bonemet_auto.plan_schema import Plan
from bonemet_auto.raw_dataset import RawCase, open_raw_dataset
from bonemet_auto.result_schema import OperatingPoint
from bonemet_auto.schema import FailedCase, read_json, write_failures, write_json

logger = logging.getLogger(__name__)


def require_raw_cases(raw: Path, cases: Sequence[str]) -> None:
    """See before training that the validation after it can read its cases.

    Raises:
        DataError: the raw dataset is not usable, or a file of a case is gone.
    """
    by_name = {case.case: case for case in open_raw_dataset(raw).training}
    gone = [case for case in cases if case not in by_name or not _is_whole(by_name[case])]
    if gone:
        raise DataError(
            f"{raw} lacks the image, the label map or CASE.json of {', '.join(gone)}, which "
            "validate this fold. Put them back, or run bonemet_plan_and_preprocess again."
        )


def _is_whole(case: RawCase) -> bool:
    return all(path.is_file() for path in (case.image, case.label, case.labels_json))


def validate_fold(
    model: MaskRCNN,
    plan: Plan,
    raw: Path,
    cases: Sequence[str],
    folder: Path,
    device: torch.device,
) -> OperatingPoint:
    """Predict the validation cases, find the fold's thresholds, and write both into `folder`.

    Args:
        model: the fold's averaged network, on `device`.
        plan: the plan it was trained with.
        raw: the raw dataset's folder.
        cases: validation cases; may be empty.
        folder: takes `operating_point.json` and `validation/`.
        device: where to predict.
    """
    dataset = open_raw_dataset(raw)
    by_name = {case.case: case for case in dataset.training}
    images = {case: by_name[case].image for case in cases}
    predictions: list[Prediction] = []
    failed: list[FailedCase] = []
    for outcome in tqdm(
        predict_cases(images, [model], plan, device),
        total=len(images),
        desc="validation",
        unit="case",
        disable=None,
    ):
        if isinstance(outcome, FailedCase):
            failed.append(outcome)
        else:
            predictions.append(outcome)
    positive = dataset.info.positive_class
    held_out = [
        held_out_case(
            item.case, 0, item.geometry, item.result, read_reference(by_name[item.case]), positive
        )
        for item in predictions
    ]
    point = choose_operating_point([item.scored() for item in held_out])
    out = folder / "validation"
    # A case that an earlier run held out may have been trained on by this one.
    shutil.rmtree(out, ignore_errors=True)
    for item in predictions:
        write_case(out, item.case, item.geometry, item.result, point)
        write_evidence(out / EVIDENCE / f"{item.case}.npz", item.evidence)
    write_cohort_tables(out)
    for failure in failed:
        logger.warning("validation case %s failed: %s", failure.case, failure.reason)
    write_failures(out / "failed_cases.json", failed)
    write_json(folder / POINT_NAME, point)
    return point


def borrow_point(folder: Path) -> OperatingPoint:
    """Thresholds for a model on all cases: the mean of its plan's finished folds, if there are any.

    Args:
        folder: of the model; takes `operating_point.json`.
    """
    files = sorted(folder.parent.glob(f"fold_[0-9]*/{POINT_NAME}"))
    points = [read_json(file, OperatingPoint) for file in files]
    point = mean_point(points) if points else choose_operating_point([])
    write_json(
        folder / POINT_NAME, point.model_copy(update={"sensitivity": None, "fp_per_scan": None})
    )
    return point
