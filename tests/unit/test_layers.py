import pytest
import torch
from torch.nn import functional

from bonemet_auto.model.layers import ConvNormAct, ResidualConv


def plain_norm(x, norm):
    return functional.instance_norm(x, weight=norm.weight, bias=norm.bias, eps=1e-5)


@pytest.mark.parametrize(
    ("channels_out", "stride"), [(4, (1, 1, 1)), (6, (1, 1, 1)), (6, (1, 2, 2)), (4, (2, 2, 2))]
)
def test_a_residual_convolution_is_what_he_et_al_draw(channels_out, stride):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 4, 6, 8)
    block = ResidualConv(4, channels_out, stride)
    first, second = block.first.conv, block.second
    h = functional.conv3d(x, first.weight, first.bias, stride, padding=1)
    h = functional.leaky_relu(plain_norm(h, block.first.norm))
    h = plain_norm(functional.conv3d(h, second.weight, second.bias, padding=1), block.norm)
    assert isinstance(block.shortcut, torch.nn.Identity) == (h.shape == x.shape)
    expected = functional.leaky_relu(h + block.shortcut(x))
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)
    assert expected.shape[2:] == tuple(n // s for n, s in zip(x.shape[2:], stride, strict=True))


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 4, 6), (2, 2, 2)])
def test_thin_maps_pass(size):
    for layer in (ConvNormAct(3, 5), ResidualConv(3, 5)):
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.isfinite(layer(torch.randn(2, 3, *size))).all()
