import pytest
import torch
from torch.nn import functional

from bonemet_auto.errors import ModelError
from bonemet_auto.model.mask_rcnn import build_model
from bonemet_auto.model.transfer import resize_kernel, transfer_weights
from tests.unit.training_fakes import make_network


def model_of(seed=0, **changes):
    torch.manual_seed(seed)
    return build_model(make_network(**changes))


def test_the_same_network_takes_everything():
    trained, model = model_of(1), model_of(2)
    done = transfer_weights(model, trained.state_dict())
    assert len(done.taken) == len(trained.state_dict())
    assert not (done.resized or done.fresh or done.unused)
    x = torch.randn(1, 1, 8, 16, 16)
    torch.testing.assert_close(model.look(x).dense_logits, trained.look(x).dense_logits)


def test_larger_kernels_start_from_smaller_ones():
    trained = model_of(1, kernels=((1, 3, 3), (3, 3, 3)))
    model = model_of(2, kernels=((1, 5, 5), (5, 5, 5)))
    done = transfer_weights(model, trained.state_dict())
    assert len(done.resized) == 2 and all("depthwise" in name for name in done.resized)
    assert not (done.fresh or done.unused)
    for name in done.resized:
        small, large = trained.state_dict()[name], model.state_dict()[name]
        every = slice(None, None, 2 if large.shape[2] > small.shape[2] else 1)
        torch.testing.assert_close(large[:, :, every, ::2, ::2], small)


def test_a_resized_kernel_keeps_its_corners_and_its_middle():
    kernel = torch.randn(4, 1, 3, 3, 3)
    large = resize_kernel(kernel, torch.Size((5, 5, 5)))
    torch.testing.assert_close(large[:, :, ::2, ::2, ::2], kernel)
    torch.testing.assert_close(
        large[:, :, 1, 0, 0], (kernel[:, :, 0, 0, 0] + kernel[:, :, 1, 0, 0]) / 2
    )
    ramp = functional.pad(torch.ones(1, 1, 1, 1, 1), (1,) * 6)
    assert resize_kernel(ramp, torch.Size((5, 5, 5))).argmax() == 62


def test_what_does_not_fit_stays_fresh_and_is_named():
    model = model_of(2, anchor_sizes=(((3, 5, 5),), ((5, 9, 9),)))
    before = model.rpn.objectness.weight.clone()
    weights = dict(model_of(1).state_dict(), extra=torch.zeros(1))
    done = transfer_weights(model, weights)
    assert {name.rsplit(".", 1)[0] for name in done.fresh} == {"rpn.objectness", "rpn.deltas"}
    assert done.unused == ("extra",)
    assert torch.equal(model.rpn.objectness.weight, before)


def test_weights_of_something_else_are_refused():
    with pytest.raises(ModelError, match="no parameter"):
        transfer_weights(model_of(), {"encoder.weight": torch.zeros(3)})
