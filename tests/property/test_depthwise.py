import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from bonemet_auto.model import depthwise as module
from bonemet_auto.model.depthwise import DepthwiseConv3d

EDGE = st.sampled_from([1, 3, 5])


def run(conv, x, grad):
    """Output and gradients of x, weight and bias."""
    x = x.detach().requires_grad_()
    y = conv(x)
    parameters = [p for p in conv.parameters()] if isinstance(conv, torch.nn.Module) else []
    return [y.detach(), *torch.autograd.grad(y, [x, *parameters], grad)]


def native(conv):
    twin = DepthwiseConv3d(len(conv.weight), conv.kernel, conv.bias is not None)
    twin.load_state_dict(conv.state_dict())
    twin.to(conv.weight.dtype)
    padding = [edge // 2 for edge in conv.kernel]
    twin.forward = lambda x: functional.conv3d(
        x, twin.weight, twin.bias, padding=padding, groups=len(twin.weight)
    )
    return twin


def example(channels, kernel, shape, seed, bias=True, dtype=torch.float32):
    torch.manual_seed(seed)
    conv = DepthwiseConv3d(channels, kernel, bias).to(dtype)
    for parameter in conv.parameters():
        torch.nn.init.normal_(parameter)
    x, grad = torch.randn(2, *shape[:1], channels, *shape[1:], dtype=dtype)
    return conv, x, grad


def assert_same(found, expected, tolerance):
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        error = (one.double() - other.double()).abs().max()
        assert error <= tolerance * other.abs().max().clamp(min=1e-6)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 5),
    st.tuples(EDGE, EDGE, EDGE),
    st.tuples(st.integers(1, 3), *[st.integers(1, 7)] * 3),
    st.booleans(),
    st.booleans(),
    st.integers(0, 99),
)
def test_values_and_gradients_equal_autograd(channels, kernel, shape, bias, channels_last, seed):
    conv, x, grad = example(channels, kernel, shape, seed, bias)
    if channels_last:
        x, grad = (t.contiguous(memory_format=torch.channels_last_3d) for t in (x, grad))
    found = run(conv, x, grad)
    double = [t.double() for t in (x, grad)]
    assert_same(found, run(native(conv).double(), *double), 1e-5)


@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 3, 3), (3, 1, 1), (5, 3, 3), (5, 5, 5)])
@pytest.mark.parametrize("shape", [(2, 12, 13, 14), (1, 3, 70, 71), (2, 40, 33, 32)])
def test_large_maps_equal_autograd_in_float64(kernel, shape):
    conv, x, grad = example(4, kernel, shape, 0)
    expected = run(native(conv).double(), x.double(), grad.double())
    assert_same(run(conv, x, grad), expected, 1e-5)


@pytest.mark.parametrize("kernel", [(3, 3, 3), (5, 3, 3), (1, 3, 3)])
@pytest.mark.parametrize("depth", [1, 2, 9])
def test_both_ways_to_the_weight_gradient_agree_across_their_cuts(kernel, depth, monkeypatch):
    monkeypatch.setattr(module, "_SLAB_VOXELS", 70)
    monkeypatch.setattr(module, "_STACK_VOXELS", 70)
    _, x, grad = example(3, kernel, (2, depth, 5, 7), 1, dtype=torch.float64)
    size = torch.Size(kernel)
    slabs = module._weight_gradient_by_slabs(x, grad, size)
    torch.testing.assert_close(module._weight_gradient_by_planes(x, grad, size), slabs)
    conv = DepthwiseConv3d(3, kernel, bias=False).double()
    torch.testing.assert_close(slabs, run(native(conv), x, grad)[2])


def test_gradcheck_in_double_precision():
    conv, x, _ = example(2, (3, 1, 3), (1, 2, 3, 2), 0, dtype=torch.float64)
    assert torch.autograd.gradcheck(conv, x.requires_grad_())


def test_autocast_runs_in_bfloat16_and_sums_the_weight_gradient_in_float32():
    conv, x, grad = example(4, (3, 3, 3), (2, 12, 12, 12), 0)
    with torch.autocast("cpu", torch.bfloat16):
        x.requires_grad_()
        y = conv(x)
        # Backward inside the context as well: the sums must not be rounded there either.
        found = torch.autograd.grad(y, [x, conv.weight, conv.bias], grad.bfloat16())
    assert y.dtype == torch.bfloat16
    assert [g.dtype for g in found] == [torch.float32] * 3
    rounded = [t.detach().bfloat16().double() for t in (x, grad)]
    expected = run(native(conv).double(), *rounded)[1:]
    assert_same(found[1:], expected[1:], 1e-5)
    assert_same(found[:1], expected[:1], 2e-2)


def test_gradients_nobody_asks_for_are_not_computed():
    conv, x, grad = example(2, (3, 3, 3), (1, 4, 4, 4), 0)
    conv.requires_grad_(False)
    assert len(run(lambda t: functional.silu(conv(t)), x, grad)) == 2
    conv.requires_grad_(True)
    conv(x).backward(grad)
    assert x.grad is None
    assert conv.weight.grad is not None


def test_an_even_kernel_is_refused():
    with pytest.raises(ValueError, match=r"odd, found \(3, 2, 3\)"):
        DepthwiseConv3d(4, (3, 2, 3))


def test_on_the_meta_device_only_shapes_are_computed():
    conv = DepthwiseConv3d(4, (3, 3, 3)).to("meta")
    assert conv(torch.empty(1, 4, 5, 6, 7, device="meta")).shape == (1, 4, 5, 6, 7)


def test_the_faster_backward_pass_is_found_by_timing_once_per_shape(monkeypatch):
    conv, x, _ = example(4, (3, 3, 3), (1, 5, 6, 7), 0)
    timed, seconds = [], iter([1.0, 2.0, 2.0, 1.0])
    time = module._time

    def recorded(run, x, weight):
        timed.append((run, x.shape))
        assert time(run, x, weight) > 0
        return next(seconds)

    monkeypatch.setattr(module, "_faster", {})
    monkeypatch.setattr(module, "_time", recorded)
    assert not module.split_is_faster(x, conv.weight)
    assert not module.split_is_faster(x, conv.weight)
    assert module.split_is_faster(x[:, :, :4], conv.weight)
    assert len(timed) == 4 and len({run for run, _ in timed}) == 2
    assert conv.weight.grad is None
