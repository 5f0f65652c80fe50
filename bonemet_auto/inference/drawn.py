"""Sources of lesions that a person drew: half of the task, without finding and outlining."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from bonemet_auto.errors import DataError
from bonemet_auto.fingerprint import bone_mask
from bonemet_auto.geometry import Geometry, Index
from bonemet_auto.images import Volume, read_instances
from bonemet_auto.inference.batches import BatchSize, first_batch_size
from bonemet_auto.inference.cost import Cost
from bonemet_auto.inference.describe import describe_lesions
from bonemet_auto.inference.doubts import doubts
from bonemet_auto.inference.place import Lesion, measure
from bonemet_auto.inference.predict import failure
from bonemet_auto.inference.tiles import pad_to_patch
from bonemet_auto.model.mask_rcnn import MaskRCNN
from bonemet_auto.plan_schema import Plan
from bonemet_auto.preprocess import normalise, to_plan_grid
from bonemet_auto.scans import Scan, read_scan
from bonemet_auto.schema import FailedCase
from bonemet_auto.upright import turn_of, upright, upright_view

DRAWN_SCORE = 1.0
"""A person says that there is a lesion; the network is not asked."""


@dataclass(frozen=True)
class DrawnCase:
    """Lesions of a scan by the ids that they were drawn with, and reasons to distrust the rest."""

    case: str
    geometry: Geometry
    lesions: dict[int, Lesion]
    warnings: tuple[str, ...]
    cost: Cost


def describe_cases(
    scans: Mapping[str, Scan],
    masks: Mapping[str, Path],
    models: Sequence[MaskRCNN],
    plan: Plan,
    device: torch.device,
) -> Iterator[DrawnCase | FailedCase]:
    """Estimate the sources of drawn lesions, case by case; a failed case does not stop the others.

    Args:
        scans: by case.
        masks: instance map of each case, on the scan's grid.
        models: one network per fold, on `device`, in evaluation mode.
        plan: the plan that they were trained with.
        device: where to run.
    """
    for case, scan in scans.items():
        yield _describe_case(case, scan, masks[case], models, plan, device)


def _describe_case(
    case: str,
    scan: Scan,
    mask: Path,
    models: Sequence[MaskRCNN],
    plan: Plan,
    device: torch.device,
) -> DrawnCase | FailedCase:
    try:
        cost = Cost()
        with cost.stage("read"):
            volume, drawn = read_scan(scan), read_instances(mask)
        difference = volume.geometry.mismatch(drawn.geometry)
        if difference is not None:
            raise DataError(
                f"the lesions lie on another grid than the scan: {difference}. Draw them on this "
                "scan, or resample them to it with nearest neighbours."
            )
        with cost.stage("describe"):
            lesions = describe_drawn(volume, drawn.array, models, plan, device)
        standing = upright_view(volume)
        bone_hu = standing.array[bone_mask(standing.array, standing.geometry.spacing_mm)]
        warnings = tuple(doubts(standing, bone_hu, plan))
        return DrawnCase(case, volume.geometry, lesions, warnings, cost)
    except Exception as error:
        return failure(case, error)


def describe_drawn(
    volume: Volume,
    drawn: npt.NDArray[np.uint16],
    models: Sequence[MaskRCNN],
    plan: Plan,
    device: torch.device,
) -> dict[int, Lesion]:
    """Lesions by id, with what the second stage says of their source.

    Args:
        volume: the scan, int16 HU.
        drawn: (z, y, x) ids on its grid, 0 elsewhere.
        models: one network per fold, on `device`, in evaluation mode.
        plan: the plan that they were trained with.
        device: where to run.
    """
    scan, lesions = upright(volume), turn_of(volume.geometry).apply(drawn)
    places = {
        number: place for number, place in enumerate(ndimage.find_objects(lesions), 1) if place
    }
    if not places:
        return {}
    ends = np.array([[[edge.start, edge.stop] for edge in place] for place in places.values()])
    low, high = ends[..., 0].min(axis=0), ends[..., 1].max(axis=0)
    keep = (tuple(low.tolist()), tuple((high - low).tolist()))
    stored = to_plan_grid(scan.array, scan.geometry.spacing_mm, plan.spacing_mm, keep)
    boxes = stored.grid.to_stored(np.concatenate([ends[..., 0], ends[..., 1]], axis=1))
    described = describe_lesions(
        pad_to_patch(stored.hu, plan.patch_size),
        boxes,
        plan.patch_size,
        models,
        partial(normalise, window_hu=plan.window_hu, mean_hu=plan.mean_hu, sd_hu=plan.sd_hu),
        BatchSize(first_batch_size(plan, device)),
        device,
    )
    own_places = ndimage.find_objects(drawn)
    return {
        number: measure(
            drawn[own_places[number - 1]] == number,
            _first_voxel(own_places[number - 1]),
            volume,
            DRAWN_SCORE,
            description.p_lung,
            None,
        )
        for number, description in zip(places, described, strict=True)
    }


def _first_voxel(place: tuple[slice, ...]) -> Index:
    z, y, x = (edge.start for edge in place)
    return (z, y, x)
