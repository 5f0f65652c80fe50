import pytest
import torch
from torch.nn import functional

from bonemet_auto.model.layers import (
    ConvNormAct,
    Expand,
    ResidualConv,
    instance_norm,
    join_channels,
)


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


@pytest.mark.parametrize("channels", [1, 3, 16, 17, 40])
@pytest.mark.parametrize("voxels", [1, 3, 8, 100, 4096])
@pytest.mark.parametrize("channels_last", [True, False])
def test_the_norm_and_its_gradients_are_those_of_double_precision(channels, voxels, channels_last):
    """In whatever layout the map and the gradient come; two windows that must not mix."""
    random = torch.Generator().manual_seed(channels * voxels)
    h, up = (3 + torch.randn(2, channels, voxels, generator=random) for _ in range(2))
    h[1] *= 5
    weight, bias = torch.rand(2, channels, generator=random)
    for dtype, tolerance in ((torch.float32, 1e-3), (torch.bfloat16, 6e-3)):
        given = [item.to(dtype).transpose(1, 2) for item in (h, up)]
        exact = [item.double().requires_grad_() for item in (given[0], weight, bias)]
        centred = exact[0] - exact[0].mean(dim=1, keepdim=True)
        variance = centred.square().mean(dim=1, keepdim=True)
        expected = [centred / (variance + 1e-5).sqrt() * exact[1] + exact[2]]
        expected += torch.autograd.grad(expected[0], exact, given[1].double())
        if channels_last:
            given = [item.contiguous() for item in given]
        own = [item.detach().clone().requires_grad_() for item in (given[0], weight, bias)]
        if not channels_last:
            own[0] = given[0].detach().requires_grad_()
        found = [instance_norm(*own)]
        found += torch.autograd.grad(found[0], own, given[1])
        for one, other in zip(found, expected, strict=True):
            error = (one.double() - other).norm() / (other.norm() + 1e-2)
            assert error < tolerance


def test_joined_channels_stay_in_order_and_channels_last():
    maps = [torch.randn(2, n, 3, 4, 5, dtype=t) for n, t in ((4, torch.bfloat16), (1, torch.float))]
    joined = join_channels(*maps)
    assert joined.dtype == torch.bfloat16
    assert joined.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(joined, torch.cat([item.bfloat16() for item in maps], dim=1))


@pytest.mark.parametrize("stride", [(1, 2, 2), (2, 2, 2), (2, 1, 3)])
def test_expanding_is_a_transposed_convolution(stride):
    torch.manual_seed(0)
    layer = Expand(5, 3, stride)
    x = torch.randn(2, 5, 3, 4, 2, requires_grad=True)
    expected = functional.conv_transpose3d(x, layer.weight, layer.bias, stride)
    found = layer(x)
    assert found.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(found, expected)
    up = torch.randn(expected.shape)
    inputs = [x, layer.weight, layer.bias]
    for one, other in zip(
        torch.autograd.grad(found, inputs, up),
        torch.autograd.grad(expected, inputs, up),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
