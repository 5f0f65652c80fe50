"""What independent programs say of seeded instance maps: asked live, or recorded once.

    pip install surface-distance monai
    pip install --no-deps picai_eval mlxtend report_guided_annotation
    pip install --no-deps panoptica ruamel.yaml typer shellingham rich plotly narwhals
    pip install --no-deps connected-components-3d
    python -m tests.oracle.opinions

writes `tests/oracle/fixtures/PROGRAM.json`. The pins of panoptica (numpy < 2.3, pandas < 3) clash
with ours, so that it was installed without its dependencies, in an environment of its own.
"""

import json
import random
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path

import numpy as np

FIXTURES = Path(__file__).parent / "fixtures"
SHAPE, SPACING_MM = (20, 30, 30), (2.5, 0.8, 0.9)
CELL = 10
FROC_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


def pair_of_maps(seed: int) -> tuple[np.ndarray, np.ndarray, dict[int, float]]:
    """Annotated and predicted instances, and the scores of the latter.

    Each cell of 10^3 voxels holds at most one lesion and one prediction, so that every rule of
    assignment gives the same pairs; map 0 is empty, 1 has no lesion, 2 no prediction.
    Only `Random.random` is drawn from: its sequence never changes.
    """
    draw = random.Random(seed).random
    reference, predicted = np.zeros(SHAPE, np.uint16), np.zeros(SHAPE, np.uint16)
    scores: dict[int, float] = {}
    lesions = 0
    for cell in np.ndindex(*(n // CELL for n in SHAPE)):
        centre = [CELL * c + 4 + 2 * draw() for c in cell]
        radii = [1 + 2.4 * draw() for _ in cell]
        moved = [c + 2.4 * (draw() - 0.5) for c in centre]
        swollen = [1 + 2.2 * draw() for _ in cell]
        score = (1 + int(1022 * draw())) / 1024  # without rounding in single precision
        annotated = draw() < 0.5
        found = draw() < (0.8 if annotated else 0.25)
        if annotated and seed not in (0, 1):
            lesions += 1
            reference[ellipsoid(centre, radii)] = lesions
        if found and seed not in (0, 2):
            number = len(scores) + 1
            predicted[ellipsoid(moved, swollen)] = number
            scores[number] = score
    return reference, predicted, scores


def ellipsoid(centre: list[float], radii: list[float]) -> np.ndarray:
    grid = np.ogrid[tuple(slice(n) for n in SHAPE)]
    return sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radii, strict=True)) <= 1


def overlapping(reference: np.ndarray, predicted: np.ndarray) -> dict[int, int]:
    """For each annotated lesion that any prediction touches the highest such prediction's id."""
    touched = {n: int(predicted[reference == n].max()) for n in range(1, int(reference.max()) + 1)}
    return {lesion: number for lesion, number in touched.items() if number}


SEEDS = range(24)


def surface_distance() -> list[dict]:
    """NSD and HD95 of each pair that has two surfaces; that program gives NaN for others."""
    program = import_module("surface_distance")
    answers = []
    for seed in SEEDS:
        reference, predicted, _ = pair_of_maps(seed)
        if not (reference.any() and predicted.any()):
            continue
        found = program.compute_surface_distances(reference > 0, predicted > 0, SPACING_MM)
        nsd = [float(program.compute_surface_dice_at_tolerance(found, mm)) for mm in (1, 2)]
        hd95_mm = float(program.compute_robust_hausdorff(found, 95))
        answers.append({"seed": seed, "nsd": nsd, "hd95_mm": hd95_mm})
    return answers


def monai() -> list[dict]:
    """DSC, surface Dice with sub-voxels, HD95 by its own definition, and the points of FROC."""
    program, torch = import_module("monai.metrics"), import_module("torch")
    answers = []
    for seed in SEEDS:
        reference, predicted, _ = pair_of_maps(seed)
        y, y_pred = (torch.from_numpy((m > 0)[None, None].copy()) for m in (reference, predicted))
        nsd = [
            program.compute_surface_dice(
                y_pred, y, [mm], include_background=True, spacing=SPACING_MM, use_subvoxels=True
            ).item()
            for mm in (1, 2)
        ]
        hd95_mm = {
            lesion: program.compute_hausdorff_distance(
                *(torch.from_numpy((m == n)[None, None].copy()) for m, n in pair),
                include_background=True,
                percentile=95,
                spacing=SPACING_MM,
            ).item()
            for lesion, number in overlapping(reference, predicted).items()
            for pair in [((predicted, number), (reference, lesion))]
        }
        dsc = program.compute_dice(y_pred, y, ignore_empty=False).item()
        answers.append({"seed": seed, "dsc": dsc, "nsd": nsd, "hd95_mm": hd95_mm})
    return answers + [{"froc": _monai_froc(program)}]


def _monai_froc(program) -> list[list[float]]:
    """False positives per scan and sensitivity at each threshold: hits by the centre's voxel."""
    false, true, lesions = [], [], 0
    for seed in SEEDS:
        reference, predicted, scores = pair_of_maps(seed)
        numbers = list(scores)
        centres = np.array([np.argwhere(predicted == n).mean(axis=0) for n in numbers])
        found = program.compute_fp_tp_probs_nd(
            np.array([scores[n] for n in numbers]),
            np.floor(centres.reshape(-1, 3) + 0.5).astype(int),
            reference.astype(int),
        )
        false.append(found[0])
        true.append(found[1].astype(float))
        lesions += found[2]
    points = program.compute_froc_curve_data(
        np.concatenate(false), np.concatenate(true), lesions, len(SEEDS)
    )
    return np.stack(points, axis=1).tolist()


def picai_eval() -> list[dict]:
    """AP, and sensitivity at given false positives per scan, of all maps as one cohort."""
    program = import_module("picai_eval")
    maps = [pair_of_maps(seed) for seed in SEEDS]
    detections = [
        np.vectorize(lambda n, s=scores: s.get(n, 0.0), otypes=[np.float32])(predicted)
        for _, predicted, scores in maps
    ]
    metrics = program.evaluate(
        y_det=detections,
        y_true=[(reference > 0).astype(np.int32) for reference, _, _ in maps],
        min_overlap=0.1,
        allow_unmatched_candidates_with_minimal_overlap=False,
        num_parallel_calls=1,
    )
    at_rates = [float(metrics.lesion_TPR_at_FPR(rate)) for rate in FROC_RATES]
    return [{"ap": float(metrics.AP), "lesions": int(metrics.num_lesions), "at_rates": at_rates}]


def panoptica() -> list[dict]:
    """Counts of matched instances at IoU .1 and their mean IoU and DSC, map by map."""
    program, metrics = import_module("panoptica"), import_module("panoptica.metrics").Metric
    evaluator = program.Panoptica_Evaluator(
        expected_input=program.InputType.UNMATCHED_INSTANCE,
        instance_matcher=program.NaiveThresholdMatching(matching_threshold=0.1),
        instance_metrics=[metrics.DSC, metrics.IOU],
        global_metrics=[],
    )
    answers = []
    for seed in SEEDS:
        reference, predicted, _ = pair_of_maps(seed)
        result = evaluator.evaluate(predicted, reference, verbose=False)["ungrouped"]
        counts = {name: int(getattr(result, name)) for name in ("tp", "fp", "fn")}
        means = {"iou": result.sq, "dsc": result.sq_dsc} if counts["tp"] else {}
        answers.append({"seed": seed, **counts, **{k: float(v) for k, v in means.items()}})
    return answers


PROGRAMS: dict[str, Callable[[], list[dict]]] = {
    "surface_distance": surface_distance,
    "monai": monai,
    "picai_eval": picai_eval,
    "panoptica": panoptica,
}


def main() -> None:
    for name, ask in PROGRAMS.items():
        distribution = name.replace("_", "-")
        versions = {each: metadata.version(each) for each in (distribution, "numpy", "scipy")}
        record = {"versions": versions, "answers": ask()}
        text = json.dumps(record, indent=1).replace("NaN", "null") + "\n"
        (FIXTURES / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
