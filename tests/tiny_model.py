"""A consolidated model of tiny networks that never learned anything, for tests around it."""

from pathlib import Path

import torch

from bonemet_auto.inference.load import POINT_NAME
from bonemet_auto.inference.package import MODEL_NAME, PLAN_NAME, checksums, write_weights
from bonemet_auto.model.mask_rcnn import build_model
from bonemet_auto.result_schema import ConsolidatedModel, OperatingPoint
from bonemet_auto.schema import write_json
from bonemet_auto.scope import scope_of
from tests.cohort import write_dataset_json
from tests.nominal import nominal
from tests.unit.training_fakes import training_plan

NAME = "Dataset001_Fake"
PLAN = training_plan((8, 16, 16)).model_copy(update={"scope": scope_of(nominal(4))})


def write_model(folder: Path, folds=(0, 1), **described) -> Path:
    """Write a model folder; any lesion that is found counts.

    `described` replaces values of its `model.json`.
    """
    write_dataset_json(folder, 4)
    write_json(folder / PLAN_NAME, PLAN)
    (folder / "cross_validation.txt").write_text("4 scans of 4 patients\n")
    point = OperatingPoint(
        score_threshold=0.0, patient_threshold=0.5, no_lesion_probability=0.3, rule="any",
        sensitivity=None, fp_per_scan=None,
    )  # fmt: skip
    write_json(folder / POINT_NAME, point)
    for fold in folds:
        torch.manual_seed(fold)
        weights = build_model(PLAN.network).state_dict()
        # A fresh network is sure of nothing; this one sees lesions at random.
        weights["dense.logit.bias"].zero_()
        weights["dense.logit.weight"].mul_(30)
        write_weights(folder, fold, weights, 1.5)
    record = {
        "bonemet_version": "0.1.0",
        "dataset": NAME,
        "plan": "default",
        "folds": folds,
        "temperatures": (1.5,) * len(folds),
        "patient_rule_reason": "noisy-or",
        "cases": 4,
        "sha256": checksums(folder),
    }
    write_json(folder / MODEL_NAME, ConsolidatedModel(**(record | described)))
    return folder
