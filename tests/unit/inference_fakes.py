"""A network that sees bright blobs, a plan for it, and scans with blobs at known places."""

import numpy as np
import torch
from scipy import ndimage

from bonemet_auto.geometry import Geometry
from bonemet_auto.images import Volume
from bonemet_auto.model.mask_rcnn import Detections, Outlines
from bonemet_auto.plan_schema import Plan
from bonemet_auto.result_schema import OperatingPoint

TISSUE_HU, LESION_HU, BRIGHT_HU = 40, 700, 1100
BINS = 8
QUALITY = 0.7
POINT = OperatingPoint(
    score_threshold=0.5,
    patient_threshold=0.5,
    no_lesion_probability=0.17,
    rule="fixed",
    sensitivity=None,
    fp_per_scan=None,
)


def make_plan(patch=(16, 16, 16), spacing_mm=(1.0, 1.0, 1.0), mirror_axes=(), skip=True):
    return Plan.model_validate(
        {
            "name": "default",
            "planner": "fast",
            "dataset": "Dataset001_Fake",
            "target": {"device": "cpu", "memory_gb": 1},
            "spacing_mm": spacing_mm,
            "window_hu": (-200, 1400),
            "mean_hu": 0,
            "sd_hu": 1000,
            "patch_size": patch,
            "batch_size": 2,
            "memory_bytes": 1,
            "network": {
                "widths": [4, 4],
                "depths": [1, 1],
                "strides": [[2, 2, 2], [2, 2, 2]],
                "kernels": [[3, 3, 3], [3, 3, 3]],
                "skip_width": 2,
                "neck_width": 4,
                "rpn_stages": [1],
                "anchor_sizes": [[[4, 4, 4]]],
                "drop_path": 0,
            },
            "training": {
                "iterations": 1,
                "epochs": 1,
                "learning_rate": 1e-3,
                "weight_decay": 0,
                "warmup_share": 0,
                "lesion_share": 0.5,
            },
            "inference": {
                "overlap": 0.5,
                "mirror_axes": mirror_axes,
                "skip_windows_without_bone": skip,
            },
        }
    )


class BlobNetwork:
    """Boxes and outlines the components of each brightness band; the dense branch sees one band."""

    def __init__(self, p_lung=0.8, score=0.9, blind=False, separates=False):
        self.p_lung, self.score, self.blind, self.separates = p_lung, score, blind, separates
        self.outlined_windows = 0
        self.detected_windows = 0

    def eval(self):
        return self

    def detect(self, images):
        self.detected_windows += len(images)
        found = [[] if self.blind else self._boxes(image[0].numpy()) for image in images]
        boxes = [torch.tensor(item, dtype=torch.float32).reshape(-1, 6) for item in found]
        scores = [torch.full((len(item),), self.score) for item in boxes]
        return Detections(self._dense(images[:, 0]), boxes, scores)

    def outline(self, images, boxes):
        self.outlined_windows += len(images)
        return [self._outline(image[0], item) for image, item in zip(images, boxes, strict=True)]

    def _outline(self, image, boxes):
        masks = torch.zeros((len(boxes), BINS, BINS, BINS))
        for row, box in enumerate(boxes):
            low, high = box[:3].floor().int().tolist(), box[3:].ceil().int().tolist()
            crop = image[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
            brightness = crop[tuple(n // 2 for n in crop.shape)]
            same = self._dense(crop)
            if self.separates:
                same = same * ((crop > 0.9) == (brightness > 0.9))
            masks[row] = torch.nn.functional.interpolate(
                same[None, None], (BINS,) * 3, mode="trilinear"
            )[0, 0]
        flat = torch.ones(len(boxes))
        score = 0 if self.blind else self.score
        return Outlines(masks, flat * self.p_lung, flat * score, flat * QUALITY)

    def _dense(self, image):
        return torch.sigmoid((image - 0.4) * 30)

    def _boxes(self, image):
        bands = [(image > 0.4) & (image <= 0.9), image > 0.9] if self.separates else [image > 0.4]
        return [
            [edge.start for edge in place] + [edge.stop for edge in place]
            for band in bands
            for place in ndimage.find_objects(ndimage.label(band)[0])
        ]


def tissue(shape, geometry=None):
    array = np.full(shape, TISSUE_HU, dtype=np.int16)
    return Volume(array, geometry or Geometry(tuple(shape), (1.0, 1.0, 1.0)))


def add_ball(volume, centre_mm, radius_mm, hu=LESION_HU):
    indices = np.moveaxis(np.indices(volume.array.shape), 0, -1)
    away_mm = np.linalg.norm(volume.geometry.index_to_lps(indices) - centre_mm, axis=-1)
    volume.array[away_mm < radius_mm] = hu
    return volume
