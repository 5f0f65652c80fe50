"""First stage: every window of a scan through every network, in every mirror."""

from collections.abc import Callable, Sequence
from itertools import combinations, product

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bonemet_auto.geometry import Index
from bonemet_auto.inference.batches import BatchSize, in_batches
from bonemet_auto.inference.merge import Boxes, touches_inner_face
from bonemet_auto.inference.tiles import Tiling, centre_weight, window_weight
from bonemet_auto.model.mask_rcnn import MaskRCNN
from bonemet_auto.model.precision import mixed_precision

MIN_RAW_SCORE = 0.01
MAX_RAW_BOXES = 20_000

Int16Array = npt.NDArray[np.int16]
FloatArray = npt.NDArray[np.float32]
ToInput = Callable[[Int16Array], FloatArray]


def mirrors_of(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """All sets of the axes (0 z, 1 y, 2 x) to flip, the empty one first."""
    return [flip for size in range(len(axes) + 1) for flip in combinations(axes, size)]


def crop_windows(
    hu: Int16Array, starts: Sequence[Index], patch: Index, to_input: ToInput
) -> Tensor:
    """(N, 1, Z, Y, X) network input of the windows that start at `starts`."""
    crops = [
        to_input(hu[tuple(slice(s, s + p) for s, p in zip(start, patch, strict=True))])
        for start in starts
    ]
    return torch.from_numpy(np.stack(crops))[:, None]


@torch.inference_mode()
def run_windows(
    hu: Int16Array,
    tiling: Tiling,
    models: Sequence[MaskRCNN],
    to_input: ToInput,
    mirrors: Sequence[tuple[int, ...]],
    batch: BatchSize,
    device: torch.device,
) -> tuple[FloatArray, Boxes]:
    """Dense probability and raw detections of a scan.

    Args:
        hu: (Z, Y, X), at least a window on each axis.
        tiling: windows to run.
        models: one network per fold, on `device`, in evaluation mode.
        to_input: normalises HU.
        mirrors: sets of axes to flip, as `mirrors_of` lists them.
        batch: windows per forward; which they are changes nothing but the rounding of kernels.
        device: where the networks are; the volumes stay on the CPU.

    Returns:
        (Z, Y, X) mean lesion probability, 0 where no window looked, and all boxes above
        `MIN_RAW_SCORE` in voxels of the scan.
    """
    total = np.zeros(hu.shape, dtype=np.float32)
    weight = torch.from_numpy(window_weight(tiling.patch)) / (len(mirrors) * len(models))
    raw: list[tuple[int, Index, Tensor, Tensor]] = []
    runs = list(product(mirrors, models))

    def look(starts: Sequence[Index]) -> tuple[Tensor, list[list[tuple[Tensor, Tensor]]]]:
        images = crop_windows(hu, starts, tiling.patch, to_input).to(device)
        summed = torch.zeros_like(images[:, 0])
        found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in starts]
        for axes, model in runs:
            with mixed_precision(device):
                seen = model.detect(images.flip([axis + 2 for axis in axes]))
            summed += seen.dense.flip([axis + 1 for axis in axes])
            for window, boxes, scores in zip(found, seen.boxes, seen.scores, strict=True):
                upright = flip_boxes(boxes.float().cpu(), axes, tiling.patch)
                window.append((upright, scores.float().cpu()))
        return summed.cpu() * weight, found

    for first, starts, (dense, found) in in_batches(tiling.windows, batch, device, look):
        for i, start in enumerate(starts):
            place = tuple(slice(s, s + p) for s, p in zip(start, tiling.patch, strict=True))
            total[place] += dense[i].numpy()
            for run, (boxes, scores) in enumerate(found[i]):
                raw.append(((first + i) * len(runs) + run, start, boxes, scores))
    tiling.divide_by_weight(total)
    return total, _gather(raw, tiling.patch, (hu.shape[0], hu.shape[1], hu.shape[2]))


def flip_boxes(boxes: Tensor, axes: Sequence[int], patch: Index) -> Tensor:
    """(N, 6) boxes of a window mirrored along `axes`, in the window as it lies."""
    flipped = boxes.clone()
    for axis in axes:
        flipped[:, axis] = patch[axis] - boxes[:, axis + 3]
        flipped[:, axis + 3] = patch[axis] - boxes[:, axis]
    return flipped


def _gather(raw: Sequence[tuple[int, Index, Tensor, Tensor]], patch: Index, shape: Index) -> Boxes:
    """All detections of a scan in its voxels; the best `MAX_RAW_BOXES` where there are more."""
    parts = []
    for forward, start, boxes, scores in raw:
        wanted = (scores > MIN_RAW_SCORE) & (boxes[:, 3:] > boxes[:, :3]).all(dim=1)
        boxes, scores = boxes[wanted], scores[wanted]
        middle = ((boxes[:, :3] + boxes[:, 3:]) / 2).numpy()
        parts.append(
            (
                boxes + torch.tensor([*start, *start]),
                scores,
                torch.from_numpy(centre_weight(middle, patch)),
                torch.full((len(boxes),), forward),
                touches_inner_face(boxes, start, patch, shape),
            )
        )
    boxes, scores, weights, forwards, cut = (
        torch.cat(column) for column in zip(*parts, strict=True)
    )
    best = torch.sort(scores, descending=True, stable=True).indices[:MAX_RAW_BOXES]
    return Boxes(boxes[best], scores[best], weights[best], forwards[best], cut[best])
