import numpy as np
import pytest
import torch

from bonemet_auto.data.loader import Batch
from bonemet_auto.model import mask_rcnn
from bonemet_auto.model.boxes import pairwise_iou
from bonemet_auto.model.mask_rcnn import build_model
from bonemet_auto.model.roi_sampling import Targets
from bonemet_auto.training.schedule import LOSS_WEIGHTS
from bonemet_auto.training.trainer import Trainer
from tests.unit.training_fakes import AIR, box_batch, box_targets, make_network, training_plan

SHAPE = (8, 16, 24)
LESION, SECOND = (1, 3, 4, 5, 9, 10), (3, 8, 14, 7, 13, 21)
WINDOWS = {
    "several": [([LESION, SECOND], [1, 0]), ([SECOND], [-1])],
    "none": [([], []), ([], [])],
    "one voxel": [([(3, 4, 5, 4, 5, 6)], [1]), ([], [])],
    "border": [([(0, 0, 0, 3, 4, 5)], [0]), ([(5, 12, 19, *SHAPE)], [1])],
    "whole window": [([(0, 0, 0, *SHAPE)], [1]), ([], [])],
    "unknown sources": [([LESION], [-1]), ([SECOND], [-1])],
}


def make_model(seed=0, **changes):
    torch.manual_seed(seed)
    return build_model(make_network(**changes))


def losses(model, batch, seed=0):
    return model(batch.images, batch.targets, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("windows", WINDOWS.values(), ids=WINDOWS)
def test_forward_gives_all_losses_finite_and_differentiable(windows):
    model = make_model()
    found = losses(model, box_batch(SHAPE, windows))
    assert set(found) == set(LOSS_WEIGHTS)
    assert all(loss.shape == () and torch.isfinite(loss) for loss in found.values())
    sum(found.values()).backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_losses_without_their_targets_are_zero():
    nothing = losses(make_model(), box_batch(SHAPE, WINDOWS["none"]))
    assert all(nothing[name] == 0 for name in ("rpn_box", "roi_box", "mask", "quality", "source"))
    assert all(nothing[name] > 0 for name in ("dense_entropy", "rpn_score", "roi_score"))
    unknown = losses(make_model(), box_batch(SHAPE, WINDOWS["unknown sources"]))
    assert unknown["source"] == 0 and unknown["mask"] > 0


def large_batch():
    """Every level has lesions of its size."""
    small, large = (4, 4, 4, 7, 7, 7), (1, 1, 8, 15, 15, 31)
    return box_batch((16, 16, 32), [([small, large], [1, 0]), ([small], [0])])


def test_every_parameter_learns_where_all_kinds_of_targets_are():
    model = make_model()
    sum(losses(model, large_batch()).values()).backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert not silent


def test_gradients_in_bfloat16_are_those_of_float32():
    batch, models = large_batch(), []
    for enabled in (False, True):
        models.append(make_model())
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found = losses(models[-1], batch)
            dense = found["dense_dice"] + found["dense_entropy"]
        dense.backward()
    for (name, p), q in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        if p.grad is not None and p.grad.norm() > 1e-6:
            assert torch.isfinite(q.grad).all(), name
            assert (p.grad - q.grad).norm() < 0.25 * p.grad.norm() + 1e-3, name


def test_losses_are_fixed_by_the_generator():
    model, batch = make_model(), box_batch(SHAPE, WINDOWS["several"])
    one, same = losses(model, batch, 1), losses(model, batch, 1)
    assert all(torch.equal(one[name], same[name]) for name in one)
    others = [losses(model, batch, seed)["roi_score"].item() for seed in range(5)]
    assert len(set(others)) > 1


def test_images_of_a_batch_share_the_rois_of_mask_and_source(monkeypatch):
    """Many lesions in the first image must not keep the others from learning."""
    crowd = [(1, y, x, 4, y + 4, x + 4) for y in (1, 9) for x in (1, 9, 17)]
    batch = box_batch(SHAPE, [(crowd, [0] * 6), ([LESION], [1]), ([SECOND], [1])])
    model, seen = make_model(), []
    head = model.mask_head.forward
    monkeypatch.setattr(
        model.mask_head, "forward", lambda t, b, i: (seen.append(i), head(t, b, i))[1]
    )
    losses(model, batch)
    assert set(seen[0].tolist()) == {0, 1, 2}


def sure_model():
    """Untrained, but with many detections: scores near one half."""
    model = make_model().eval()
    model.box_head.deltas.weight.data.normal_(0, 0.1)
    return model


def test_detections_are_sorted_and_inside_the_window():
    found = sure_model().detect(box_batch(SHAPE, WINDOWS["several"]).images)
    assert found.dense.shape == (2, *SHAPE) and ((found.dense >= 0) & (found.dense <= 1)).all()
    limit = torch.tensor([*SHAPE, *SHAPE])
    for boxes, scores in zip(found.boxes, found.scores, strict=True):
        assert len(boxes) == len(scores) > 1 and boxes.shape[1] == 6
        assert (scores.diff() <= 0).all() and ((scores > 0) & (scores <= 1)).all()
        assert (boxes >= 0).all() and (boxes <= limit).all()
        assert (boxes[:, 3:] >= boxes[:, :3]).all()
        overlap = pairwise_iou(boxes, boxes).fill_diagonal_(0)
        assert overlap.max() <= mask_rcnn.DETECTION_NMS_IOU + 1e-6
        assert not boxes.requires_grad


def test_windows_of_a_batch_are_detected_as_one_by_one():
    model, images = sure_model(), box_batch(SHAPE, WINDOWS["several"]).images
    together = model.detect(images)
    for k in range(2):
        alone = model.detect(images[k : k + 1])
        torch.testing.assert_close(together.dense[k], alone.dense[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.scores[k], alone.scores[0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(together.boxes[k], alone.boxes[0], rtol=1e-3, atol=1e-2)


def test_outlines_of_a_batch_are_those_one_by_one_and_none_are_fine():
    model, images = sure_model(), box_batch(SHAPE, WINDOWS["several"]).images
    boxes = [torch.zeros(0, 6), torch.tensor([LESION, SECOND]).float()]
    first, second = model.outline(images, boxes)
    assert len(first.masks) == len(first.p_lung) == len(first.scores) == 0
    assert second.masks.shape[0] == 2 and second.masks.ndim == 4
    for k in range(2):
        (alone,) = model.outline(images[1:], [boxes[1][k : k + 1]])
        for name in ("masks", "p_lung", "scores"):
            one = getattr(second, name)[k : k + 1]
            torch.testing.assert_close(one, getattr(alone, name), rtol=1e-3, atol=1e-4)
            assert ((one >= 0) & (one <= 1)).all()
    nothing = model.outline(images, [torch.zeros(0, 6)] * 2)
    assert [len(item.scores) for item in nothing] == [0, 0]


def test_the_score_of_an_outline_is_that_of_its_box_in_detection():
    model, images = sure_model(), box_batch(SHAPE, WINDOWS["several"]).images[:1]
    proposals = model.rpn.proposals(model.propose(model.look(images)), SHAPE, 3)[0][0]
    trunk = model.look(images)
    expected = model.box_head(trunk, proposals, torch.zeros(3, dtype=torch.long))[0].sigmoid()
    torch.testing.assert_close(model.outline(images, [proposals])[0].scores, expected)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_anisotropic_networks_of_any_depth_train_and_detect(n):
    shape = (8, 32, 32)
    model = make_model(
        widths=(4, 6, 8, 10)[:n],
        depths=(1, 2, 1, 1)[:n],
        strides=((1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 4, 4))[:n],
        kernels=((1, 3, 3), *((3, 3, 3),) * 3)[:n],
        rpn_stages=(n - 1,),
        anchor_sizes=(((4, 8, 8),),),
        drop_path=0.2,
    )
    batch = box_batch(shape, [([(1, 3, 4, 5, 9, 10)], [1])])
    found = losses(model, batch)
    sum(found.values()).backward()
    assert all(torch.isfinite(loss) for loss in found.values())
    assert model.eval().detect(batch.images).dense.shape == (1, *shape)


def test_the_global_seed_fixes_the_weights():
    one, same, other = (make_model(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


EDGE = 24
PADDED = (slice(None), slice(None), slice(16, None))


def ball_window(rng, centre=None, radius=4.0, padded=False):
    """Noise, maybe half of it padding, with one bright ball: image and targets."""
    image = rng.normal(0, 0.3, (EDGE,) * 3)
    instances = np.zeros((EDGE,) * 3, np.int16)
    if centre is not None:
        away = sum((g - c) ** 2 for g, c in zip(np.indices(image.shape), centre, strict=True))
        instances[away < radius**2] = 1
    image[instances == 1] += 2
    if padded:
        image[PADDED], instances[PADDED] = AIR, 0
    if not instances.any():
        return torch.from_numpy(image.astype(np.float32))[None], box_targets(image.shape, [])
    inside = np.argwhere(instances)
    box = torch.tensor([[*inside.min(0), *(inside.max(0) + 1)]]).float()
    targets = Targets(box, torch.from_numpy(instances), torch.tensor([1]))
    return torch.from_numpy(image.astype(np.float32))[None], targets


@pytest.fixture(scope="module")
def overfitted():
    """The averaged network after a short run on six windows."""
    network = make_network(
        widths=(8, 16),
        strides=((2, 2, 2), (2, 2, 2)),
        kernels=((3, 3, 3),) * 2,
        neck_width=16,
        anchor_sizes=(((6, 6, 6),), ((10, 10, 10),)),
    )
    rng = np.random.default_rng(0)
    windows = [
        ball_window(rng, rng.uniform(2, 22, 3), rng.uniform(3, 5)),
        ball_window(rng, rng.uniform(2, 15, 3), rng.uniform(3, 5), padded=True),
        ball_window(rng),
        ball_window(rng, rng.uniform(2, 22, 3), rng.uniform(3, 5)),
        ball_window(rng, rng.uniform(6, 14, 3), rng.uniform(3, 5), padded=True),
        ball_window(rng, padded=True),
    ]
    settings = training_plan().training.model_copy(
        update={"learning_rate": 2e-3, "warmup_share": 0.05, "weight_decay": 0.01}
    )
    n_steps = 160
    torch.manual_seed(0)
    trainer = Trainer(build_model(network), settings, 2, n_steps, 0, torch.device("cpu"))
    for step in range(n_steps):
        pair = [windows[(2 * step + k) % len(windows)] for k in range(2)]
        images = torch.stack([image for image, _ in pair])
        trainer.step(step, Batch(images, [target for _, target in pair], ["a", "b"]))
    return trainer.ema


@pytest.mark.parametrize(
    ("centre", "padded"),
    [((12, 11, 13), False), ((12, 12, 1.5), False), ((1, 22, 2), False), ((11, 12, 12), True)],
    ids=["centre", "border", "corner", "beside padding"],
)
def test_an_overfitted_network_finds_and_outlines_a_ball_it_never_saw(overfitted, centre, padded):
    image, target = ball_window(np.random.default_rng(99), centre, padded=padded)
    found = overfitted.detect(image[None])
    assert found.scores[0][0] > 0.6
    assert pairwise_iou(found.boxes[0][:1], target.boxes).item() > 0.3
    lesion = target.instances > 0
    assert found.dense[0][lesion].mean() > 0.5 > 5 * found.dense[0][~lesion].mean()
    (outline,) = overfitted.outline(image[None], [target.boxes])
    middle = outline.masks[0, 5:9, 5:9, 5:9]
    assert middle.mean() > 0.5 and outline.scores[0] > 0.5


def test_an_overfitted_network_scores_empty_windows_low(overfitted):
    for padded in (False, True):
        image, _ = ball_window(np.random.default_rng(98), padded=padded)
        scores = overfitted.detect(image[None]).scores[0]
        assert not len(scores) or scores[0] < 0.5


def test_maps_stay_channels_last_all_the_way():
    model = make_model()
    trunk = model.look(box_batch((16, 16, 32), WINDOWS["none"]).images)
    for level in (*trunk.pyramid, *trunk.evidence):
        assert level.is_contiguous(memory_format=torch.channels_last_3d)


def test_a_plan_may_ask_for_the_plain_pyramid():
    model = make_model(neck="fpn")
    found = losses(model, large_batch())
    assert set(found) == set(LOSS_WEIGHTS)
    sum(found.values()).backward()
    assert not any("up_convs" in name for name, _ in model.named_parameters())
    assert all(p.grad is not None for name, p in model.named_parameters() if "neck" in name)
