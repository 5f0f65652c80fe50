import pytest
import torch
import torch.nn.functional as F

from bonemet_auto.model import precision
from bonemet_auto.model.precision import Conv3x3x3, mixed_precision


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 3, 3), (2, 4, 4), (4, 2, 5), (3, 3, 3), (6, 6, 6)])
def test_bfloat16_weight_gradient_is_right_on_maps_of_any_size(size):
    torch.manual_seed(0)
    conv = Conv3x3x3(16, 16).to(memory_format=torch.channels_last_3d)
    for _ in range(8):
        x = torch.randn(4, 16, *size).to(memory_format=torch.channels_last_3d)
        grad = torch.randn(4, 16, *size)
        reference = conv.weight.detach().clone().requires_grad_()
        F.conv3d(x, reference, padding=1).backward(grad)
        conv.zero_grad()
        with mixed_precision(torch.device("cpu")):
            y = conv(x)
        y.float().backward(grad)
        error = (conv.weight.grad - reference.grad).abs().max() / reference.grad.abs().max()
        assert error < 0.02


def test_mixed_precision_is_off_where_the_processor_has_no_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    with mixed_precision(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_gradients_do_not_depend_on_when_another_lane_ends(monkeypatch):
    """A context that ends empties the process's cache of cast weights."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    torch.manual_seed(0)
    layer, first, second = torch.nn.Linear(32, 32), *torch.randn(2, 64, 32)

    def gradient(between):
        layer.zero_grad()
        with mixed_precision(torch.device("cpu")):
            once = layer(first)
            between()
            loss = once.square().mean() + layer(second).square().mean()
        loss.backward()
        return layer.weight.grad.clone()

    assert torch.equal(gradient(lambda: None), gradient(torch.clear_autocast_cache))
