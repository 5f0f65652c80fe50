"""From a scan to its lesions, and from many scans to many results."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from bonemet_auto.errors import BonemetError
from bonemet_auto.fingerprint import bone_mask
from bonemet_auto.geometry import Geometry
from bonemet_auto.images import Volume, read_geometry
from bonemet_auto.inference.ahead import read_ahead
from bonemet_auto.inference.batches import BatchSize, first_batch_size, is_shortage
from bonemet_auto.inference.cost import Cost
from bonemet_auto.inference.describe import BoxArray, Description, describe_lesions
from bonemet_auto.inference.doubts import doubts
from bonemet_auto.inference.evidence import Evidence
from bonemet_auto.inference.find import FloatArray, mirrors_of, run_windows
from bonemet_auto.inference.fuse import (
    USUAL_OUTLINE,
    Candidate,
    IntArray,
    Outline,
    drawn,
    fuse,
    label_components,
    leftover_candidate,
    leftover_components,
)
from bonemet_auto.inference.merge import Boxes, Clusters, unite_cut_boxes, weighted_clusters
from bonemet_auto.inference.place import Lesion, place_lesions, turned_back
from bonemet_auto.inference.tiles import (
    Tiling,
    dilate_bone,
    lay_tiles,
    pad_to_patch,
    padded_shape,
)
from bonemet_auto.model.boxes import clip_boxes
from bonemet_auto.model.mask_rcnn import MaskRCNN
from bonemet_auto.plan_schema import Plan
from bonemet_auto.preprocess import PlanGrid, normalise, preparing_bytes, to_plan_grid
from bonemet_auto.processor import free_memory_bytes
from bonemet_auto.scans import Scan, read_scan
from bonemet_auto.schema import FailedCase
from bonemet_auto.upright import turn_of, upright_view

MAX_LESIONS = 100
"""So many boxes of a scan are outlined at most: each costs a window of its own."""
MIN_SCORE = 0.02
MIN_LEFTOVER_MM3 = 20.0

_LIKELY = 0.5
"""Box score of the weakest of them from which those beyond may be lesions, too."""
_MANY = (
    f"{MAX_LESIONS} places look like lesions, as many as are outlined: there may be more, "
    "and counts and volumes are then too low"
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaseResult:
    """What was found in one scan: lesions by falling score, and reasons to distrust them."""

    lesions: list[Lesion]
    warnings: list[str]


@dataclass(frozen=True)
class Prediction:
    """A result, what it was drawn from, the scan that it belongs to, and what it took."""

    case: str
    geometry: Geometry
    evidence: Evidence
    result: CaseResult
    cost: Cost


@dataclass(frozen=True)
class Prepared:
    """A scan ready for the networks.

    Attributes:
        volume: the scan, int16 HU.
        stored: on the planned grid.
        tiling: where windows lie on that grid, once padded to a window.
        warnings: reasons to distrust what will be found.
        cost: what this took.
    """

    volume: Volume
    stored: PlanGrid
    tiling: Tiling
    warnings: tuple[str, ...]
    cost: Cost


def predict_cases(
    scans: Mapping[str, Scan],
    models: Sequence[MaskRCNN],
    plan: Plan,
    device: torch.device,
    outline: Outline = USUAL_OUTLINE,
) -> Iterator[Prediction | FailedCase]:
    """Predict cases one by one, in the order given; a case that fails does not stop the others.

    Args:
        scans: by case.
        models: one network per fold, on `device`.
        plan: the plan that they were trained with.
        device: where to run.
        outline: how masks are drawn.
    """
    prepare = partial(_read_and_prepare, plan=plan)
    coming = read_ahead(scans.values(), prepare, partial(_fits_beside, plan=plan))
    with closing(coming):
        for case in scans:
            yield _predict_case(case, coming, models, plan, device, outline)


def predict_volume(
    volume: Volume,
    models: Sequence[MaskRCNN],
    plan: Plan,
    device: torch.device,
    outline: Outline = USUAL_OUTLINE,
) -> CaseResult:
    """Find, outline and source-classify the lesions of one scan; see `find_lesions`."""
    evidence = find_lesions(prepare_scan(volume, plan), models, plan, device)
    return draw_lesions(evidence, volume, outline)


def draw_lesions(
    evidence: Evidence, volume: Volume, outline: Outline = USUAL_OUTLINE
) -> CaseResult:
    """Outline what was found in a scan, on its own grid."""
    turn = turn_of(volume.geometry)
    lesions = place_lesions(evidence.candidates, evidence.grid, upright_view(volume), outline)
    return CaseResult([turned_back(lesion, turn) for lesion in lesions], list(evidence.warnings))


def prepare_scan(volume: Volume, plan: Plan, cost: Cost | None = None) -> Prepared:
    """Bring a scan of any grid to the planned one, and lay windows where bone is.

    Args:
        volume: int16 HU.
        plan: of the networks.
        cost: where to enter what it takes.
    """
    cost = cost or Cost()
    with cost.stage("preprocess"):
        standing = upright_view(volume)
        stored = to_plan_grid(standing.array, standing.geometry.spacing_mm, plan.spacing_mm)
        bone = bone_mask(stored.hu, stored.spacing_mm)
        warnings = tuple(doubts(standing, stored.hu[bone], plan))
        skip = plan.inference.skip_windows_without_bone
        wanted = dilate_bone(bone, stored.spacing_mm) if skip else None
        shape = padded_shape(stored.hu.shape, plan.patch_size)
        tiling = lay_tiles(shape, plan.patch_size, plan.inference.overlap, wanted)
    cost.windows = int(tiling.kept.sum())
    cost.windows_left_out = tiling.kept.size - cost.windows
    return Prepared(volume, stored, tiling, warnings, cost)


def find_lesions(
    prepared: Prepared, models: Sequence[MaskRCNN], plan: Plan, device: torch.device
) -> Evidence:
    """All that the networks know of one scan: what may be a lesion, where, and of what source.

    Args:
        prepared: the scan.
        models: one network per fold, on `device`; their outputs are averaged.
        plan: the plan that they were trained with.
        device: where to run.
    """
    for model in models:
        model.eval()
    stored, tiling, cost = prepared.stored, prepared.tiling, prepared.cost
    hu = pad_to_patch(stored.hu, plan.patch_size)
    to_input = partial(normalise, window_hu=plan.window_hu, mean_hu=plan.mean_hu, sd_hu=plan.sd_hu)
    mirrors = mirrors_of(plan.inference.mirror_axes)
    batch = BatchSize(first_batch_size(plan, device), cost.notes)
    with cost.stage("network"):
        dense, raw = run_windows(hu, tiling, models, to_input, mirrors, batch, device)
        dense = dense[tuple(slice(size) for size in stored.hu.shape)]

    def describe(boxes: BoxArray) -> list[Description]:
        with cost.stage("describe"):
            return describe_lesions(hu, boxes, plan.patch_size, models, to_input, batch, device)

    with cost.stage("merge"):
        components = label_components(dense)
        clusters = consolidate(raw, tiling, len(mirrors) * len(models), components)
        least_voxels = max(1, round(MIN_LEFTOVER_MM3 / float(np.prod(stored.spacing_mm))))
        candidates = outline_candidates(dense, components, clusters, describe, least_voxels)
    warnings = prepared.warnings
    if len(clusters.boxes) == MAX_LESIONS and clusters.scores[-1] >= _LIKELY:
        warnings += (_MANY,)
    return Evidence(tuple(candidates), stored.grid, warnings)


def _read_and_prepare(scan: Scan, plan: Plan) -> Prepared:
    cost = Cost()
    with cost.stage("read"):
        volume = read_scan(scan)
    return prepare_scan(volume, plan, cost)


def _fits_beside(scan: Scan, plan: Plan) -> bool:
    """Whether a scan may be read while another one is predicted: it leaves half of the memory."""
    try:
        geometry = read_geometry(scan) if isinstance(scan, Path) else scan.geometry
    except BonemetError:
        return True  # Reading it will say what is wrong.
    if geometry is None:
        return True
    needed = preparing_bytes(geometry.shape, geometry.spacing_mm, plan.spacing_mm)
    return 2 * needed < free_memory_bytes()


def _predict_case(
    case: str,
    coming: Iterator[Future[Prepared]],
    models: Sequence[MaskRCNN],
    plan: Plan,
    device: torch.device,
    outline: Outline,
) -> Prediction | FailedCase:
    try:
        prepared = next(coming).result()
        evidence = find_lesions(prepared, models, plan, device)
        with prepared.cost.stage("draw"):
            result = draw_lesions(evidence, prepared.volume, outline)
        return Prediction(case, prepared.volume.geometry, evidence, result, prepared.cost)
    except Exception as error:
        return failure(case, error)


def consolidate(raw: Boxes, tiling: Tiling, runs: int, components: IntArray) -> Clusters:
    """One box per lesion: the `MAX_LESIONS` best above `MIN_SCORE`, cut to the scan.

    Args:
        raw: detections of all forwards.
        tiling: the windows that were run.
        runs: forwards per window (mirrors times networks).
        components: (Z, Y, X) numbered components of the dense probability.
    """
    clusters = weighted_clusters(raw, lambda centres: runs * tiling.count_covering(centres))
    inside = clip_boxes(clusters.boxes, components.shape)
    wanted = (clusters.scores > MIN_SCORE) & (inside[:, 3:] > inside[:, :3]).all(dim=1)
    clusters = Clusters(inside[wanted], clusters.scores[wanted], clusters.cut[wanted])
    clusters = unite_cut_boxes(clusters, components)
    best = torch.sort(clusters.scores, descending=True, stable=True).indices[:MAX_LESIONS]
    return Clusters(clusters.boxes[best], clusters.scores[best], clusters.cut[best])


def outline_candidates(
    dense: FloatArray,
    components: IntArray,
    clusters: Clusters,
    describe: Callable[[BoxArray], list[Description]],
    least_voxels: int,
) -> list[Candidate]:
    """What is known of each box, and of dense components that no box accounts for.

    Args:
        dense: (Z, Y, X) lesion probability.
        components: (Z, Y, X) its numbered components.
        clusters: consolidated boxes.
        describe: the second stage, for boxes (N, 6).
        least_voxels: dense components below this size are noise.
    """
    boxes, scores = clusters.boxes.numpy(), clusters.scores.tolist()
    fused = [
        fuse(dense, box, description, score)
        for box, description, score in zip(boxes, describe(boxes), scores, strict=True)
    ]
    candidates = [item for item in fused if drawn(item).any()]
    if len(candidates) < len(fused):
        _log.debug("%d lesion boxes without a mask; left out", len(fused) - len(candidates))
    left = leftover_components(dense, components, candidates, least_voxels)
    described = describe(np.asarray([item.box for item in left]).reshape(-1, 6))
    return candidates + [
        leftover_candidate(dense, components, item, description)
        for item, description in zip(left, described, strict=True)
    ]


def failure(case: str, error: Exception) -> FailedCase:
    """What is told of a case that raised an error."""
    if isinstance(error, BonemetError):
        return FailedCase(case=case, reason=str(error), fix="Mend what the reason names.")
    _log.debug("case %s failed", case, exc_info=error)
    fix = "Run again with --continue --verbose for the traceback; report it if the file is sound."
    if is_shortage(error):
        fix = "The memory ran out: use a larger machine or -device cpu, or crop the scan."
    return FailedCase(case=case, reason=f"{type(error).__name__}: {error}", fix=fix)
