"""A consolidated model of a tiny network that never learned anything: for tests around it."""

from pathlib import Path

import torch

from bonemet_auto.inference.load import POINT_NAME
from bonemet_auto.inference.package import MODEL_NAME, PLAN_NAME, checksums, write_weights
from bonemet_auto.model.mask_rcnn import build_model
from bonemet_auto.schema import ConsolidatedModel, OperatingPoint, write_json
from tests.unit.training_fakes import training_plan


def write_model(folder: Path, folds=(0,), seed=0) -> Path:
    """Write a model folder; any lesion that is found counts."""
    folder.mkdir(parents=True)
    plan = training_plan((8, 16, 16))
    write_json(folder / PLAN_NAME, plan)
    torch.manual_seed(seed)
    for fold in folds:
        weights = build_model(plan.network).state_dict()
        # A fresh network is sure of nothing; this one sees lesions at random.
        weights["dense.logit.bias"].zero_()
        weights["dense.logit.weight"].mul_(30)
        write_weights(folder, fold, weights, 1.0)
    point = OperatingPoint(
        score_threshold=0.0, patient_threshold=0.5, no_lesion_probability=0.3, rule="any",
        sensitivity=None, fp_per_scan=None,
    )  # fmt: skip
    write_json(folder / POINT_NAME, point)
    model = ConsolidatedModel(
        bonemet_version="0", dataset="Dataset001_Tiny", plan=plan.name, folds=folds,
        temperatures=(1.0,) * len(folds), patient_rule_reason="", cases=1,
        sha256=checksums(folder),
    )  # fmt: skip
    write_json(folder / MODEL_NAME, model)
    return folder
