"""A short training on an easy cohort must find, outline and tell apart unseen lesions."""

import json

import numpy as np
import pytest

from bonemet_auto.commands import evaluate, plan_and_preprocess, predict, train
from bonemet_auto.geometry import Geometry
from tests.cohort import write_case, write_dataset_json

SHAPE, SPACING_MM = (28, 56, 56), (2.0, 1.2, 1.2)
N_TRAINING, N_TEST = 12, 8


def make_scan(rng, n_lesions, is_lung):
    """A bone block in soft tissue, with holes (lung) or dense spots (other) of 8 to 16 mm."""
    hu = np.full(SHAPE, 30.0)
    hu[:, 10:46, 10:46] = 350
    grid = np.indices(SHAPE).transpose(1, 2, 3, 0) * SPACING_MM
    instances = np.zeros(SHAPE, np.uint16)
    middles = [(14, 20, 20), (14, 36, 36), (14, 20, 36)]
    for number in range(n_lesions):
        middle = (np.array(middles[number]) + rng.uniform(-4, 4, 3)) * SPACING_MM
        inside = np.linalg.norm((grid - middle) / rng.uniform(4, 8, 3), axis=-1) < 1
        instances[inside] = number + 1
        hu[inside] = 80 if is_lung else 800
    return np.rint(hu + rng.normal(0, 25, SHAPE)).astype(np.int16), instances


@pytest.fixture(scope="module")
def metrics(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    raw = root / "raw" / "Dataset001_Easy"
    write_dataset_json(raw, N_TRAINING)
    for number in range(N_TRAINING + N_TEST):
        part = "Tr" if number < N_TRAINING else "Ts"
        n_lesions, is_lung = (0, 2, 3, 1)[number % 4], number % 8 < 4
        hu, instances = make_scan(np.random.default_rng([7, number]), n_lesions, is_lung)
        classes = {i + 1: int(is_lung) for i in range(n_lesions)}
        name = f"case_{number:03d}"
        write_case(raw, name, hu, instances, classes, Geometry(SHAPE, SPACING_MM), part)
    at = ["--root", str(root)]
    out = root / "predictions"
    test = raw / "imagesTs"
    assert plan_and_preprocess.main(["-d", "1", *at, "--planner", "fast"]) == 0
    assert train.main(["1", "0", *at, "--iterations", "200", "--device", "cpu"]) == 0
    assert predict.main(["-i", str(test), "-o", str(out), "-d", "1", *at, "-f", "0"]) == 0
    folders = ["--pred", str(out), "--ref", str(raw / "labelsTs"), "--out", str(root / "eval")]
    assert evaluate.main(folders) == 0
    return json.loads((root / "eval" / "metrics.json").read_text())["figures"]


def test_lesions_are_found(metrics):
    assert metrics["detection"]["sensitivity_iou_0.1"]["value"] >= 0.75
    assert metrics["detection"]["fp_per_scan"]["value"] <= 1.0


def test_lesions_are_outlined(metrics):
    assert metrics["segmentation"]["dsc"]["value"] >= 0.6


def test_sources_are_told_apart(metrics):
    assert metrics["lesion"]["source_auc"]["value"] >= 0.8
