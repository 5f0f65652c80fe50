import pytest
import torch

from bonemet_auto.model import heads
from bonemet_auto.model.heads import (
    BoxHead,
    MaskHead,
    SourceHead,
    Trunk,
    enlarge,
    pool_pyramid,
    scale_gradient,
    weighted_mean,
)
from bonemet_auto.model.losses import dice_loss, quality_loss
from bonemet_auto.model.roi_align import pyramid_levels, roi_align

WINDOW = (16, 32, 32)
STRIDES = [(1, 2, 2), (2, 4, 4), (4, 8, 8)]
WIDTH = 8
BOXES = torch.tensor(
    [
        [2.0, 3, 4, 6, 9, 10],
        [0.0, 0, 0, 16, 32, 32],
        [5.0, 5, 5, 6, 6, 6],
        [10.0, 20, 24, 16, 32, 32],
        [1.5, 2, 2, 12, 20, 20],
    ]
)
IMAGES = torch.tensor([0, 1, 1, 0, 1])


def make_trunk(seed=0, requires_grad=False):
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(shape, generator=generator)

    cells = [[w // s for w, s in zip(WINDOW, stride, strict=True)] for stride in STRIDES]
    return Trunk(
        images=noise(2, 1, *WINDOW),
        pyramid=[noise(2, WIDTH, *size).requires_grad_(requires_grad) for size in cells],
        strides=STRIDES,
        dense_logits=noise(2, *WINDOW).requires_grad_(requires_grad),
    )


def test_each_box_is_read_on_its_level_and_in_its_image():
    trunk = make_trunk()
    pooled = pool_pyramid(trunk, BOXES, IMAGES, 5)
    levels = pyramid_levels(BOXES, STRIDES)
    assert len(levels.unique()) > 1
    for row, level in enumerate(levels.tolist()):
        one = slice(row, row + 1)
        alone = roi_align(trunk.pyramid[level], BOXES[one], IMAGES[one], STRIDES[level], (5, 5, 5))
        torch.testing.assert_close(pooled[one, :WIDTH], alone)


HEADS = [BoxHead, MaskHead, SourceHead]


def answers(head, trunk, boxes=BOXES, image_index=IMAGES):
    found = head(trunk, boxes, image_index)
    return found if isinstance(found, tuple) else (found,)


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_answers_each_box_alone_as_among_others(kind):
    torch.manual_seed(0)
    head, trunk = kind(WIDTH), make_trunk()
    together = answers(head, trunk)
    for row in range(len(BOXES)):
        one = slice(row, row + 1)
        alone = answers(head, trunk, BOXES[one], IMAGES[one])
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[one], b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", HEADS)
def test_no_boxes_no_answers(kind):
    found = answers(kind(WIDTH), make_trunk(), torch.zeros(0, 6), torch.zeros(0, dtype=torch.long))
    assert all(len(item) == 0 for item in found)


@pytest.mark.parametrize("kind", HEADS)
def test_answers_are_finite_for_the_oddest_boxes_and_in_bfloat16(kind):
    head, trunk = kind(WIDTH), make_trunk()
    boxes = torch.tensor([[3.0, 3, 3, 3, 3, 3], [0.0, 0, 0, 0, 32, 32], [16.0, 32, 32, 16, 32, 32]])
    index = torch.zeros(3, dtype=torch.long)
    for item in answers(head, trunk, boxes, index):
        assert torch.isfinite(item).all()
    with torch.autocast("cpu", torch.bfloat16):
        for item in answers(head, trunk, boxes, index):
            assert torch.isfinite(item).all() and item.dtype == torch.float32


def test_a_silent_mask_head_repeats_the_dense_branch():
    head, trunk = MaskHead(WIDTH), make_trunk()
    for p in head.logit.parameters():
        p.data.zero_()
    size = (heads.MASK_BINS,) * 3
    dense = roi_align(trunk.dense_logits[:, None], BOXES, IMAGES, (1, 1, 1), size)[:, 0]
    torch.testing.assert_close(head(trunk, BOXES, IMAGES)[0], dense)


def test_the_quality_of_masks_is_learnt_and_teaches_nothing_else():
    """Masks whose features say how good they are; the mask head itself must not move for it."""
    torch.manual_seed(0)
    head = MaskHead(WIDTH)
    for p in head.logit.parameters():
        p.data.zero_()
    rates = 0.9 * torch.rand(64)
    pooled = torch.randn(64, WIDTH + 1, 6, 6, 6) + 4 * rates[:, None, None, None, None]
    dense, truth = torch.full((64, 1, 6, 6, 6), -4.0), torch.zeros(64, 6, 6, 6)
    dense[:, :, :, :, :3], truth[:, :, :, :3] = 4.0, 1.0
    for row, rate in enumerate(rates):
        truth[row, : round(6 * rate.item())] = 0
    own = [p for name, p in head.named_parameters() if "quality" in name]
    optimizer = torch.optim.Adam(own, 0.1)
    for _ in range(150):
        masks, quality = head.read(pooled, dense)
        loss = quality_loss(quality, masks, truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(p.grad is None for p in (*head.convs.parameters(), *head.logit.parameters()))
    masks, quality = head.read(pooled, dense)
    dice = [1 - dice_loss((30 * m)[None], t[None]) for m, t in zip(masks, truth, strict=True)]
    error = (quality.sigmoid() - torch.stack(dice)).abs().mean()
    assert error < 0.08 < 0.5 * torch.stack(dice).std()


@pytest.mark.parametrize("kind", HEADS)
def test_no_head_teaches_the_dense_branch(kind):
    trunk = make_trunk(requires_grad=True)
    sum(item.square().sum() for item in answers(kind(WIDTH), trunk)).backward()
    assert trunk.dense_logits.grad is None
    assert trunk.pyramid[0].grad.abs().sum() > 0


def test_only_the_stated_share_of_the_source_gradient_reaches_the_features(monkeypatch):
    torch.manual_seed(0)
    head = SourceHead(WIDTH)

    def gradients():
        trunk = make_trunk(requires_grad=True)
        head.zero_grad()
        head(trunk, BOXES, IMAGES).square().sum().backward()
        return trunk.pyramid[0].grad, head.convs[0].conv.weight.grad

    share = heads.SOURCE_GRADIENT
    scaled, own = gradients()
    monkeypatch.setattr(heads, "SOURCE_GRADIENT", 1.0)
    full, own_at_full = gradients()
    assert 0 < share < 1
    torch.testing.assert_close(scaled, share * full)
    torch.testing.assert_close(own, own_at_full)


def test_the_source_head_sees_hu_in_the_lesion_and_around_it_but_not_far_away():
    torch.manual_seed(0)
    head, trunk, box = SourceHead(WIDTH), make_trunk(), torch.tensor([[4.0, 8, 8, 8, 14, 14]])
    index = torch.zeros(1, dtype=torch.long)
    before = head(trunk, box, index).item()

    def after_brightening(where):
        changed = make_trunk()
        changed.images[where] += 5
        return head(changed, box, index).item()

    assert after_brightening((0, 0, slice(5, 7), slice(10, 12), slice(10, 12))) != before
    just_outside = (0, 0, slice(5, 7), slice(10, 12), slice(14, 16))
    assert after_brightening(just_outside) != before
    assert after_brightening((0, 0, slice(14, 16))) == before
    assert after_brightening((1,)) == before


def test_source_gradients_are_finite_where_the_lesion_is_flat_or_invisible():
    for logit in (-80.0, 80.0):
        trunk = make_trunk(requires_grad=True)
        trunk.images.fill_(2.5)
        trunk.dense_logits.data.fill_(logit)
        head = SourceHead(WIDTH)
        head(trunk, BOXES, IMAGES).sum().backward()
        assert torch.isfinite(trunk.pyramid[0].grad).all()
        assert all(torch.isfinite(p.grad).all() for p in head.parameters())


def test_boxes_grow_about_their_centre():
    grown = enlarge(torch.tensor([[0.0, 2, 4, 2, 6, 10]]), 2)
    assert grown.tolist() == [[-1, 0, 1, 3, 8, 13]]


def test_scaling_a_gradient_keeps_the_values():
    x = torch.randn(5, requires_grad=True)
    y = scale_gradient(x, 0.25)
    torch.testing.assert_close(y, x)
    y.sum().backward()
    assert (x.grad == 0.25).all()


def test_a_weighted_mean_without_weight_is_zero():
    values, weight = torch.randn(2, 3, 2, 2, 2), torch.rand(2, 1, 2, 2, 2)
    expected = torch.stack(
        [
            torch.stack([(v * w[0]).sum() / w.sum() for v in channels])
            for channels, w in zip(values, weight, strict=True)
        ]
    )
    torch.testing.assert_close(weighted_mean(values, weight), expected)
    assert (weighted_mean(values, torch.zeros_like(weight)) == 0).all()
