"""A glance at fixed windows after every epoch: are lesions found that were never trained on?

The whole scans are predicted once, after training; until then a few windows of the validation cases
tell whether it learns, and a picture of them shows what.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from bonemet_auto.data.loader import UNBOXED, PatchDataset, Sample
from bonemet_auto.files import atomic_write
from bonemet_auto.model.mask_rcnn import Detections, MaskRCNN
from bonemet_auto.model.precision import mixed_precision

SAMPLES_NAME = "samples.png"
WINDOWS = 16
SHOWN = 8
SHOWN_SCORE = 0.3
FALSE_PEAKS = 1.0
"""False peaks for each window at which found lesions are counted."""

_PEAK_VOXELS, _NEAR_VOXELS = 5, 5


class Glance:
    """Plain windows of the validation cases, and how the network does on them.

    Args:
        training: augmented windows, for the picture.
        held_out: windows without augmentation, of cases that are not trained on.
        folder: takes `samples.png`.
        device: where the network is.
    """

    def __init__(
        self, training: PatchDataset, held_out: PatchDataset, folder: Path, device: torch.device
    ) -> None:
        self.training = [training[i] for i in range(SHOWN)]
        self.held_out = [held_out[i] for i in range(WINDOWS)]
        self.folder = folder
        self.device = device

    def __call__(self, model: MaskRCNN) -> dict[str, float]:
        """Dice and found lesions of the dense branch on the windows; draws `samples.png`.

        Nothing where the validation cases hold no lesion.
        """
        with mixed_precision(self.device):
            found = [model.detect(image[None].to(self.device)) for image, _, _ in self.held_out]
        dense = torch.cat([item.dense for item in found]).float().cpu()
        instances = torch.stack([target.instances for _, target, _ in self.held_out])
        with atomic_write(self.folder / SAMPLES_NAME) as temporary:
            draw_samples(self.training, self.held_out[:SHOWN], found[:SHOWN], temporary)
        seen = {
            "held_out_dice": window_dice(dense, instances),
            "held_out_found": lesions_found(dense, instances, FALSE_PEAKS),
        }
        return {name: value for name, value in seen.items() if not math.isnan(value)}


def window_dice(dense: Tensor, instances: Tensor) -> float:
    """Mean Dice of the probability (N, Z, Y, X), cut at .5, over windows that hold a lesion.

    NaN where none does.
    """
    truth, found = (instances > 0).flatten(1), (dense > 0.5).flatten(1)
    overlap, size = (truth & found).sum(dim=1), truth.sum(dim=1) + found.sum(dim=1)
    return float((2 * overlap / size.clamp_min(1))[truth.any(dim=1)].mean())


def lesions_found(dense: Tensor, instances: Tensor, false_peaks: float) -> float:
    """Share of lesions whose highest smoothed probability exceeds that of false peaks.

    Args:
        dense: (N, Z, Y, X) lesion probability.
        instances: (N, Z, Y, X) as in `Targets`.
        false_peaks: so many peaks outside lesions for each window may be higher.

    Returns:
        A share; NaN where the windows hold no lesion.
    """
    smooth = F.avg_pool3d(dense[:, None], 3, 1, 1)
    lesion = (instances > 0).float()[:, None]
    near = F.max_pool3d(lesion, _NEAR_VOXELS, 1, _NEAR_VOXELS // 2) > 0
    highest = F.max_pool3d(smooth, _PEAK_VOXELS, 1, _PEAK_VOXELS // 2) == smooth
    false = smooth[highest & ~near].sort(descending=True).values
    allowed = int(false_peaks * len(dense))
    limit = float(false[allowed]) if allowed < len(false) else 0.0
    best = [
        float(smooth[i, 0][instances[i] == number].max())
        for i in range(len(instances))
        for number in instances[i].unique().tolist()
        if 0 < number < UNBOXED
    ]
    return float(np.mean(np.array(best) > limit)) if best else float("nan")


def draw_samples(
    training: Sequence[Sample],
    held_out: Sequence[Sample],
    found: Sequence[Detections],
    path: Path,
) -> None:
    """Training windows as the network gets them, and predictions on held-out windows.

    The slice through most of the lesions; annotated outlines green, predicted ones and boxes from
    `SHOWN_SCORE` on orange.
    """
    figure = Figure(figsize=(2 * SHOWN, 4.4), layout="constrained")
    rows = figure.subplots(2, SHOWN, squeeze=False)
    for axis in rows.flat:
        axis.axis("off")
    rows[0, 0].set_title("training windows, augmented", loc="left", fontsize="small")
    rows[1, 0].set_title("held-out windows", loc="left", fontsize="small")
    for sample, axis in zip(training, rows[0], strict=False):
        _show(axis, *_slices(sample))
    for sample, seen, axis in zip(held_out, found, rows[1], strict=False):
        image, instances, z = _slices(sample)
        _show(axis, image, instances, z)
        dense = seen.dense[0].float().cpu().numpy()
        _outline(axis, dense[z] > 0.5, "orange")
        for box, score in zip(seen.boxes[0].tolist(), seen.scores[0].tolist(), strict=True):
            if score >= SHOWN_SCORE and box[0] <= z < box[3]:
                _frame(axis, box)
    figure.savefig(path, dpi=80, format="png")


def _slices(sample: Sample) -> tuple[npt.NDArray[Any], npt.NDArray[Any], int]:
    """Window, its lesions, and the slice to show of it."""
    image, instances = sample[0][0].numpy(), sample[1].instances.numpy()
    per_slice = (instances > 0).sum(axis=(1, 2))
    return image, instances, int(per_slice.argmax()) if per_slice.any() else len(image) // 2


def _show(axis: Axes, image: npt.NDArray[Any], instances: npt.NDArray[Any], z: int) -> None:
    axis.imshow(image[z], "gray", vmin=image.min(), vmax=image.max())
    _outline(axis, instances[z] > 0, "lime")


def _outline(axis: Axes, mask: npt.NDArray[np.bool_], colour: str) -> None:
    if mask.any():
        axis.contour(mask.astype(float), [0.5], colors=colour, linewidths=1)


def _frame(axis: Axes, box: Iterable[float]) -> None:
    _, top, left, _, bottom, right = (edge - 0.5 for edge in box)
    corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    axis.plot(*zip(*corners, strict=True), color="orange", linewidth=0.7, linestyle=":")
