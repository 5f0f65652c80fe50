"""Suppression and clustering of boxes beside loops over boxes."""

from functools import partial

import numpy as np
import torch

from bonemet_auto.inference.merge import CLUSTER_IOU, Boxes, weighted_clusters
from bonemet_auto.model.boxes import nms, pairwise_iou
from tests.bench.side_by_side import compare

PER_OBJECT = 25
FORWARDS = 16


def suppression() -> None:
    cases = [(1000, PER_OBJECT, None), (5000, PER_OBJECT, 20), (5000, 1, None)]
    for n, per_object, target in cases:
        boxes, scores = scattered(n, per_object)
        assert nms(boxes, scores, 0.3).tolist() == greedy_loop(boxes, scores, 0.3)
        compare(
            f"nms of {n} boxes, {per_object} per object, to matrix and loop",
            partial(nms, boxes, scores, 0.3),
            partial(greedy_loop, boxes, scores, 0.3),
            target,
        )


def clustering() -> None:
    for n, per_object, target in [(5000, PER_OBJECT, 3), (5000, 1, None)]:
        boxes, scores = scattered(n, per_object)
        trust, forwards = 0.5 + 0.5 * torch.rand(n), torch.randint(0, FORWARDS, (n,))
        found = Boxes(boxes, scores, trust, forwards, torch.zeros(n, dtype=torch.bool))
        exact = (boxes.double().numpy(), scores.double().numpy())
        columns = (*exact, trust.numpy(), forwards.numpy())

        ours = partial(weighted_clusters, found, looked_at)
        naive = partial(cluster_loop, *columns, CLUSTER_IOU)
        merged = ours()
        result = np.column_stack([merged.boxes.numpy(), merged.scores.numpy()])
        np.testing.assert_allclose(result, naive(), rtol=0, atol=1e-4)
        compare(
            f"clusters of {n} boxes, {per_object} per object, to a numpy loop", ours, naive, target
        )


def scattered(n: int, per_object: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes of 12 voxels that jitter by a voxel around objects in a scan, and their scores."""
    low = (torch.rand(n // per_object, 3) * 400).repeat(per_object, 1) + torch.randn(n, 3)
    return torch.cat((low, low + 12), dim=1), torch.rand(n)


def greedy_loop(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> list[int]:
    order = scores.argsort(descending=True, stable=True).tolist()
    overlap = pairwise_iou(boxes, boxes) > threshold
    alive, kept = torch.ones(len(boxes), dtype=torch.bool), []
    for i in order:
        if alive[i]:
            kept.append(i)
            alive &= ~overlap[i]
    return kept


def looked_at(points):
    """Every lesion was in reach of all forwards."""
    return np.full(len(points), FORWARDS)


def cluster_loop(boxes, scores, trust, forwards, threshold):
    """One cluster per turn: the best box left, and what overlaps it of the others left.

    So the Medical Detection Toolkit does it. The score is ours: that of `weighted_clusters`.
    """
    volumes = (boxes[:, 3:] - boxes[:, :3]).prod(axis=1)
    left = np.argsort(-scores, kind="stable")
    clusters = []
    while left.size:
        best = left[0]
        low = np.maximum(boxes[best, :3], boxes[left, :3])
        high = np.minimum(boxes[best, 3:], boxes[left, 3:])
        inter = np.maximum(high - low, 0).prod(axis=1)
        iou = inter / (volumes[best] + volumes[left] - inter)
        near = iou > threshold
        members, left = left[near], left[~near]
        weight = iou[near] * trust[members]
        evidence = weight * scores[members]
        box = evidence @ boxes[members] / evidence.sum()
        centre = (box[:3] + box[3:]) / 2
        missing = max(0, looked_at(centre[None])[0] - len(np.unique(forwards[members])))
        score = evidence.sum() / (weight.sum() + missing * weight.mean())
        clusters.append([*box, score])
    return np.array(clusters)
