import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from bonemet_auto.model import roi_sampling
from bonemet_auto.model.boxes import clip_boxes, pairwise_iou
from bonemet_auto.model.roi_sampling import SampledRois, mask_targets, sample_rois
from tests.unit.training_fakes import box_targets

SHAPE = (12, 20, 24)
LESIONS = [(2, 3, 4, 6, 9, 10), (7, 12, 14, 10, 15, 18)]
TARGETS = [box_targets(SHAPE, LESIONS), box_targets(SHAPE, [])]


def proposals(n=30, seed=0):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, [8, 14, 18], (n, 3))
    boxes = torch.from_numpy(np.hstack([low, low + rng.uniform(2, 6, (n, 3))])).float()
    near = torch.tensor(LESIONS).float().repeat(4, 1) + torch.linspace(0, 1, 8)[:, None]
    return clip_boxes(torch.cat([near, boxes]), SHAPE), torch.linspace(1, 0, n + 8)


def draw(n_per_image=24, seed=0, targets=TARGETS):
    generator = torch.Generator().manual_seed(seed)
    return sample_rois([proposals(seed=k) for k in range(2)], targets, n_per_image, generator)


@pytest.mark.parametrize("n", [2, 5, 24, 200])
def test_positives_overlap_their_lesion_and_negatives_overlap_none(n):
    rois = draw(n)
    for box, image, lesion in zip(rois.boxes, rois.image_index, rois.matched, strict=True):
        truth = TARGETS[image].boxes
        if lesion >= 0:
            overlaps = pairwise_iou(box[None], truth)[0]
            assert overlaps.argmax() == lesion
            assert overlaps[lesion] >= roi_sampling.POSITIVE_IOU
        elif len(truth):
            assert pairwise_iou(box[None], truth).max() < roi_sampling.NEGATIVE_IOU
    for image in (0, 1):
        here = rois.image_index == image
        positives = (rois.matched[here] >= 0).sum()
        assert here.sum() <= n and positives <= n // 2


def test_a_window_without_lesions_gives_the_best_proposals_as_background():
    rois = draw(10)
    assert (rois.matched[rois.image_index == 1] == -1).all()
    torch.testing.assert_close(rois.boxes[rois.image_index == 1], proposals(seed=1)[0][:10])


def test_true_boxes_and_honest_copies_are_among_the_positives():
    rois = draw(200)
    positive = rois.boxes[rois.matched >= 0]
    exact = (pairwise_iou(torch.tensor(LESIONS).float(), positive) > 0.9999).any(dim=1)
    assert exact.all()
    proposed = proposals()[0]
    own = pairwise_iou(positive, torch.cat([proposed, torch.tensor(LESIONS).float()])).amax(dim=1)
    assert (own < 0.9999).any()


def test_copies_stay_inside_the_window():
    corner = [box_targets(SHAPE, [(0, 0, 0, 3, 3, 3)]), box_targets(SHAPE, [(9, 17, 21, *SHAPE)])]
    for seed in range(5):
        boxes = draw(200, seed, corner).boxes
        assert (boxes >= 0).all() and (boxes <= torch.tensor([*SHAPE, *SHAPE])).all()


def test_the_generator_alone_decides():
    one, same, other = draw(12, 1), draw(12, 1), draw(12, 2)
    for name in ("boxes", "image_index", "matched"):
        assert torch.equal(getattr(one, name), getattr(same, name))
    assert not torch.equal(one.boxes, other.boxes)


def test_no_proposals_are_enough_where_there_are_lesions():
    nothing = (torch.zeros(0, 6), torch.zeros(0))
    rois = sample_rois([nothing], TARGETS[:1], 24, torch.Generator().manual_seed(0))
    assert {0, 1} <= set(rois.matched.tolist())


def occupancy(box, lesion, bins):
    """Share of each bin of `box` inside the cuboid `lesion`: a product of three overlaps."""
    shares = []
    for axis in range(3):
        edges = np.linspace(box[axis], box[axis + 3], bins + 1)
        inside = np.clip(edges, lesion[axis], lesion[axis + 3])
        shares.append(np.diff(inside) / np.diff(edges))
    return np.einsum("i,j,k->ijk", *shares)


def as_rois(boxes, images, lesions):
    return SampledRois(torch.tensor(boxes).float(), torch.tensor(images), torch.tensor(lesions))


@pytest.mark.parametrize("bins", [3, 6])
def test_the_mask_of_a_cuboid_is_one_inside_and_zero_outside(bins):
    """Bins of whole voxels: interpolation cannot blur them beyond the next bin."""
    lesion = (2, 3, 4, 8, 9, 10)
    box = (2 - 6, 3, 4, 8, 9, 10 + 6)
    (mask,) = mask_targets(
        as_rois([box], [0], [0]), [box_targets((20, 20, 24), [lesion])], (bins,) * 3
    )
    expected = occupancy(box, lesion, bins)
    far_from_a_face = (expected == 0) | (expected == 1)
    assert mask.shape == (bins,) * 3 and far_from_a_face.any()
    np.testing.assert_allclose(mask, expected, atol=0.26)
    assert abs(mask.mean().item() - expected.mean()) < 0.02


def test_a_lesion_that_fills_its_box_fills_its_mask():
    rois = as_rois([LESIONS[0], LESIONS[1]], [0, 0], [0, 1])
    inner = mask_targets(rois, TARGETS, (8, 8, 8))[:, 1:-1, 1:-1, 1:-1]
    assert (inner > 0.9).all()


HALF = tuple(n // 2 for n in SHAPE)


def halved(lesion, target=TARGETS[0]):
    """Share of each 2^3 block: two samples a voxel apart meet the centres of its voxels."""
    return functional.avg_pool3d((target.instances == lesion)[None].float(), 2)[0]


def test_each_mask_holds_its_own_lesion_only():
    window = (0, 0, 0, *SHAPE)
    rois = as_rois([window, window], [0, 0], [0, 1])
    masks = mask_targets(rois, TARGETS, HALF)
    torch.testing.assert_close(masks, torch.stack([halved(1), halved(2)]), atol=1e-5, rtol=0)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 8), min_size=3, max_size=3), st.integers(0, 10**6))
def test_masks_of_cuboids_are_the_analytic_occupancy_where_bins_hold_whole_voxels(size, seed):
    rng = np.random.default_rng(seed)
    start = [int(rng.integers(0, n - s + 1)) for n, s in zip(SHAPE, size, strict=True)]
    lesion = (*start, *(a + s for a, s in zip(start, size, strict=True)))
    target = box_targets(SHAPE, [lesion])
    (mask,) = mask_targets(as_rois([(0, 0, 0, *SHAPE)], [0], [0]), [target], HALF)
    torch.testing.assert_close(mask, halved(1, target), atol=1e-5, rtol=0)


def test_voxels_of_no_lesion_to_detect_are_in_no_mask():
    target = box_targets(SHAPE, LESIONS[:1])
    target.instances[7:10, 12:15, 14:18] = 10_000
    (mask,) = mask_targets(as_rois([(0, 0, 0, *SHAPE)], [0], [0]), [target], HALF)
    assert mask[3:, 6:].max() < 1e-5 < mask.max()


@pytest.mark.parametrize(
    ("images", "n", "taken"),
    [
        ([0, 0, 0, 0, 2], 2, [0, 4]),
        ([0, 0, 0, 1, 1], 4, [0, 3, 1, 4]),
        ([1, 1], 5, [0, 1]),
        ([0, 1, 2], 2, [0, 1]),
    ],
)
def test_rois_are_taken_from_the_images_in_turn(images, n, taken):
    assert roi_sampling.take_in_turn(torch.tensor(images), n).tolist() == taken
