import pytest
import torch
from torch import nn

from bonemet_auto.training.lanes import Lanes, lanes_for


def learn(model, part):
    loss = (model(part) ** 2).mean()
    loss.backward()
    return {"loss": loss.detach()}


def gradients(n_lanes, parts):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 1))
    losses = Lanes(model, n_lanes).run(learn, parts)
    return [parameter.grad for parameter in model.parameters()], losses


@pytest.mark.parametrize("n_lanes", [2, 3, 5])
def test_lanes_add_up_to_what_one_lane_gives(n_lanes):
    parts = list(torch.randn(5, 4, 5, generator=torch.Generator().manual_seed(1)))
    one, losses = gradients(1, parts)
    many, same_losses = gradients(n_lanes, parts)
    for ours, theirs in zip(many, one, strict=True):
        torch.testing.assert_close(ours, theirs)
    total = sum(item["loss"] for item in losses)
    torch.testing.assert_close(sum(item["loss"] for item in same_losses), total)


def test_repeated_runs_give_the_same_bits():
    parts = list(torch.randn(4, 64, 5, generator=torch.Generator().manual_seed(1)))
    first, _ = gradients(2, parts)
    for _ in range(5):
        again, _ = gradients(2, parts)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_copies_follow_the_network_when_its_weights_change():
    model = nn.Linear(3, 1)
    lanes = Lanes(model, 2)
    with torch.no_grad():
        model.weight.add_(1.0)
    assert torch.equal(lanes.replicas[1].weight, model.weight)


def test_an_error_in_a_lane_reaches_the_caller_and_threads_are_given_back():
    def fail(_model, part):
        raise ValueError(f"part {part}")

    threads = torch.get_num_threads()
    with pytest.raises(ValueError, match="part"):
        Lanes(nn.Linear(1, 1), 2).run(fail, [0, 1])
    assert torch.get_num_threads() == threads


def test_a_gpu_takes_the_batch_whole():
    assert lanes_for(torch.device("cuda"), 8) == 1
    assert lanes_for(torch.device("cpu"), 2) == 1
