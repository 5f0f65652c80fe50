import pytest
import torch

from bonemet_auto.model import masked
from bonemet_auto.model.mask_rcnn import build_model
from bonemet_auto.model.masked import build_autoencoder
from bonemet_auto.model.transfer import transfer_weights
from tests.unit.training_fakes import make_network

SHAPE = (8, 16, 24)


def make_autoencoder(seed=0, **changes):
    torch.manual_seed(seed)
    return build_autoencoder(make_network(**changes))


def draw(model, seed=0, n=2):
    return model.draw_hidden(torch.zeros(n, 1, *SHAPE), torch.Generator().manual_seed(seed))


def test_the_share_of_whole_blocks_is_hidden_differently_in_each_window():
    model = make_autoencoder()
    assert model.block == (2, 4, 4)
    hidden = draw(model)
    assert hidden.shape == (2, 1, *SHAPE) and set(hidden.unique().tolist()) == {0.0, 1.0}
    blocks = hidden.view(2, 4, 2, 4, 4, 6, 4).permute(0, 1, 3, 5, 2, 4, 6).flatten(4)
    assert (blocks.amin(-1) == blocks.amax(-1)).all()
    share = blocks[..., 0].flatten(1).mean(1)
    torch.testing.assert_close(share, torch.full((2,), 0.6), atol=1 / 96, rtol=0)
    assert not torch.equal(hidden[0], hidden[1])
    assert torch.equal(hidden, draw(model)) and not torch.equal(hidden, draw(model, seed=1))


@pytest.mark.parametrize("neck", ["fusion", "fpn"])
def test_nothing_of_what_is_hidden_reaches_the_guess(neck):
    model = make_autoencoder(neck=neck).eval()
    images, hidden = torch.randn(2, 1, *SHAPE), draw(model)
    changed = torch.where(hidden > 0, torch.randn(2, 1, *SHAPE), images)
    torch.testing.assert_close(
        model.reconstruct(images, hidden), model.reconstruct(changed, hidden), rtol=0, atol=0
    )
    seen = torch.where(hidden > 0, images, images + 1)
    assert not torch.allclose(model.reconstruct(images, hidden), model.reconstruct(seen, hidden))


def test_only_hidden_voxels_count():
    model = make_autoencoder().eval()
    images = torch.randn(2, 1, *SHAPE)
    generator = torch.Generator().manual_seed(3)
    loss = model(images, [], generator)["reconstruction"]
    hidden = draw(model, seed=3)
    error = (model.reconstruct(images, hidden) - images)[hidden > 0]
    torch.testing.assert_close(loss, error.square().mean())


def test_it_learns_to_guess_what_continues():
    """Stripes along z: what a column shows anywhere tells its hidden part."""
    model = make_autoencoder()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(60):
        images = torch.randn(4, 1, 1, 4, 6, generator=generator).sign()
        images = images.repeat_interleave(8, 2).repeat_interleave(4, 3).repeat_interleave(4, 4)
        loss = model(images, [], generator)["reconstruction"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < 0.5 < losses[0]


def test_a_detector_takes_all_of_its_weights_but_the_guess():
    pretrained, detector = make_autoencoder(1), build_model(make_network())
    done = transfer_weights(detector, pretrained.state_dict())
    assert set(done.unused) == {"hidden_value.weight", "hidden_value.bias"}
    heads = ("rpn", "box_head", "mask_head", "source_head", "coarse_logits")
    assert all(name.startswith(heads) for name in done.fresh) and not done.resized
    torch.testing.assert_close(detector.trunk.skip.conv.weight, pretrained.trunk.skip.conv.weight)


def test_blocks_are_no_larger_than_a_small_lesion():
    deep = make_autoencoder(
        widths=(4,) * 4, depths=(1,) * 4, strides=((2, 2, 2),) * 4, kernels=((3, 3, 3),) * 4,
        rpn_stages=(3,), anchor_sizes=(((3, 3, 3),),),
    )  # fmt: skip
    assert deep.block == (8, 8, 8) and max(deep.block) <= masked.BLOCK_VOXELS
