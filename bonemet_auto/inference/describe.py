"""Second stage: mask, source and a second score of each lesion, from a window centred on it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from bonemet_auto.geometry import Index
from bonemet_auto.inference.batches import BatchSize, in_batches
from bonemet_auto.inference.find import FloatArray, Int16Array, ToInput, crop_windows
from bonemet_auto.model.mask_rcnn import MaskRCNN, Outlines
from bonemet_auto.model.precision import mixed_precision

SHARING_MARGIN = 0.25
"""A lesion shares another one's window if it stays this part of a window off the inner faces."""

BoxArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Description:
    """What the second stage says of one lesion.

    Attributes:
        mask: (M, M, M) probability in each bin of its box, mean over networks; None for a lesion
            larger than a window, of which no network sees the whole.
        p_lung: probability of a lung-cancer metastasis, logits averaged over networks.
        score: probability that the box holds a lesion, mean over networks.
        mask_quality: estimated Dice of the mask, if there is a lesion, mean over networks.
    """

    mask: FloatArray | None
    p_lung: float
    score: float
    mask_quality: float


@torch.inference_mode()
def describe_lesions(
    hu: Int16Array,
    boxes: BoxArray,
    patch: Index,
    models: Sequence[MaskRCNN],
    to_input: ToInput,
    batch: BatchSize,
    device: torch.device,
) -> list[Description]:
    """Outline lesions whose boxes are known: per network one forward for each lesion or group.

    Args:
        hu: (Z, Y, X), at least a window on each axis.
        boxes: (N, 6) voxels of the scan, best first.
        patch: voxels of a window.
        models: one network per fold, on `device`, in evaluation mode.
        to_input: normalises HU.
        batch: windows per forward.
        device: where the networks are.
    """
    described: dict[int, Description] = {}
    shape = (hu.shape[0], hu.shape[1], hu.shape[2])
    members = dict(share_windows(boxes, patch, shape))

    def look(starts: Sequence[Index]) -> list[list[Outlines]]:
        images = crop_windows(hu, starts, patch, to_input).to(device)
        local = [
            torch.from_numpy(np.clip(boxes[members[start]] - (start + start), 0, patch + patch))
            .float()
            .to(device)
            for start in starts
        ]
        with mixed_precision(device):
            return [model.outline(images, local) for model in models]

    for _, starts, per_model in in_batches(list(members), batch, device, look):
        for place, start in enumerate(starts):
            views = [outlines[place] for outlines in per_model]
            masks = torch.stack([view.masks.float() for view in views]).mean(dim=0).cpu().numpy()
            logits = torch.stack([torch.logit(view.p_lung.float(), eps=1e-6) for view in views])
            p_lung = logits.mean(dim=0).sigmoid().tolist()
            scores = torch.stack([view.scores.float() for view in views]).mean(dim=0).tolist()
            quality = torch.stack([view.mask_quality for view in views]).mean(dim=0).tolist()
            for row, lesion in enumerate(members[start]):
                size = boxes[lesion, 3:] - boxes[lesion, :3]
                mask = masks[row] if (size <= patch).all() else None
                described[lesion] = Description(mask, p_lung[row], scores[row], quality[row])
    return [described[lesion] for lesion in range(len(boxes))]


def share_windows(boxes: BoxArray, patch: Index, shape: Index) -> list[tuple[Index, list[int]]]:
    """Windows for the second stage, and the boxes that each of them serves.

    The best box that is left gets a window centred on it (moved into the scan where it would stick
    out); boxes that lie well inside that window share it.
    """
    size = np.asarray(patch)
    last = np.asarray(shape) - size
    left = list(range(len(boxes)))
    plan: dict[Index, list[int]] = {}
    while left:
        centre = (boxes[left[0], :3] + boxes[left[0], 3:]) / 2
        start = np.clip(np.round(centre - size / 2), 0, last).astype(int)
        margin = SHARING_MARGIN * size
        inner_low = np.where(start > 0, start + margin, -np.inf)
        inner_high = np.where(start < last, start + size - margin, np.inf)
        served = [
            i
            for i in left
            if i == left[0]
            or ((boxes[i, :3] >= inner_low).all() and (boxes[i, 3:] <= inner_high).all())
        ]
        plan.setdefault((int(start[0]), int(start[1]), int(start[2])), []).extend(served)
        left = [i for i in left if i not in served]
    return list(plan.items())
