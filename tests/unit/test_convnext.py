import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn import functional

from bonemet_auto.model import depthwise
from bonemet_auto.model.convnext import (
    ConvNextBlock,
    GrnLinear,
    InstanceNorm,
    build_trunk,
    compile_pointwise,
)
from tests.unit.training_fakes import make_network


def grn(x, gamma, beta):
    """Woo et al. 2023, algorithm 1, on (N, Z, Y, X, C)."""
    response = x.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()
    normalised = response / (response.mean(dim=-1, keepdim=True) + 1e-6)
    return gamma * (x * normalised) + beta + x


def plain_norm(h, weight, bias):
    """Each channel of (N, C, Z, Y, X) over its window."""
    centred = h - h.mean(dim=(2, 3, 4), keepdim=True)
    scaled = centred / (centred.square().mean(dim=(2, 3, 4), keepdim=True) + 1e-5).sqrt()
    return scaled * weight[:, None, None, None] + bias[:, None, None, None]


def plain_block(x, p):
    """A block as the paper writes it, but for the norm, from a dictionary of its parameters."""
    padding = [edge // 2 for edge in p["depthwise.weight"].shape[2:]]
    h = functional.conv3d(
        x, p["depthwise.weight"], p["depthwise.bias"], padding=padding, groups=x.shape[1]
    )
    h = plain_norm(h, p["norm.weight"], p["norm.bias"]).permute(0, 2, 3, 4, 1)
    h = functional.gelu(functional.linear(h, p["expand.weight"], p["expand.bias"]))
    h = grn(h, p["project.gamma"], p["project.beta"])
    h = functional.linear(h, p["project.linear.weight"], p["project.linear.bias"])
    return x + h.permute(0, 4, 1, 2, 3)


def shaken(module, seed=0):
    """Random parameters: at the start GRN does nothing and norms are plain."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=generator)
    return module


def relative_error(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 3, 4)])
def test_grn_folded_into_the_linear_is_grn_and_then_the_linear(size):
    torch.manual_seed(0)
    folded = shaken(GrnLinear(12, 5)).double()
    h = torch.randn(3, *size, 12, dtype=torch.float64)
    expected = folded.linear(grn(h, folded.gamma, folded.beta))
    found = folded(h.flatten(1, 3)).view_as(expected)
    assert relative_error(found, expected) < 1e-6


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 3, 5), (6, 4, 4)])
@pytest.mark.parametrize("kernel", [(1, 3, 3), (3, 3, 3)])
def test_a_block_and_its_gradients_are_those_of_the_paper(size, kernel):
    block = shaken(ConvNextBlock(6, kernel, drop_path=0))
    x = torch.randn(2, 6, *size, generator=torch.Generator().manual_seed(1)).requires_grad_()
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    (block(x) * upstream).sum().backward()

    plain = {name: p.detach().double().requires_grad_() for name, p in block.named_parameters()}
    plain_x = x.detach().double().requires_grad_()
    expected = plain_block(plain_x, plain)
    (expected * upstream).sum().backward()
    assert relative_error(block(x), expected) < 1e-5
    assert relative_error(x.grad, plain_x.grad) < 1e-5
    for name, parameter in block.named_parameters():
        difference = (parameter.grad - plain[name].grad).norm()
        assert difference < 1e-4 * (plain[name].grad.norm() + 1), name


def plain_block_2d(x, p):
    """The paper's own two-dimensional block, but for the norm, on (N, C, Y, X)."""
    kernel = p["depthwise.weight"]
    h = functional.conv2d(
        x,
        kernel[:, :, kernel.shape[2] // 2],
        p["depthwise.bias"],
        padding=kernel.shape[3] // 2,
        groups=x.shape[1],
    )
    h = functional.instance_norm(h, weight=p["norm.weight"], bias=p["norm.bias"], eps=1e-5)
    h = functional.gelu(functional.linear(h.movedim(1, -1), p["expand.weight"], p["expand.bias"]))
    h = grn(h[:, None], p["project.gamma"], p["project.beta"])[:, 0]
    h = functional.linear(h, p["project.linear.weight"], p["project.linear.bias"])
    return x + h.movedim(-1, 1)


@pytest.mark.parametrize("kernel", [(1, 3, 3), (3, 5, 5), (7, 7, 7)])
def test_on_one_slice_a_block_is_the_two_dimensional_one(kernel):
    block = shaken(ConvNextBlock(6, kernel, drop_path=0))
    x = torch.randn(2, 6, 9, 8, generator=torch.Generator().manual_seed(1))
    plain = {name: p.detach().double() for name, p in block.named_parameters()}
    assert relative_error(block(x[:, :, None])[:, :, 0], plain_block_2d(x.double(), plain)) < 1e-5


def test_grn_of_silent_channels_has_a_finite_gradient():
    folded = GrnLinear(4, 2)
    folded.gamma.data.fill_(1)
    h = torch.zeros(1, 8, 4, requires_grad=True)
    folded(h).sum().backward()
    assert torch.isfinite(h.grad).all() and torch.isfinite(folded.gamma.grad).all()


def test_grn_sees_each_window_by_itself():
    folded = shaken(GrnLinear(12, 5))
    h = torch.randn(2, 30, 12)
    together = folded(h)
    h[1] *= 100
    torch.testing.assert_close(folded(h)[0], together[0])


@pytest.mark.parametrize("offset", [0.0, 10.0, 100.0, 1e3])
def test_norms_lose_nothing_under_bfloat16_but_the_rounding_of_their_input(offset):
    norm = shaken(InstanceNorm(6))
    x = offset + torch.randn(2, 6, 12, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        precise, rounded = norm(x), norm(x.bfloat16())
    assert precise.dtype == torch.float32 and rounded.dtype == torch.bfloat16
    parameters = norm.weight.double(), norm.bias.double()
    assert relative_error(precise, plain_norm(x.double(), *parameters)) < 1e-3
    assert relative_error(rounded, plain_norm(x.bfloat16().double(), *parameters)) < 4e-3


def test_a_norm_of_a_flat_map_is_its_bias_and_has_a_finite_gradient():
    norm = shaken(InstanceNorm(3))
    for size in ((1, 1, 1), (2, 3, 4)):
        x = torch.full((1, 3, *size), 7.0, requires_grad=True)
        expected = norm.bias[:, None, None, None].expand(3, *size)
        # Float32 at the height of the map, raised by the norm of nothing: 7 / sqrt(1e-5) eps.
        torch.testing.assert_close(norm(x)[0], expected, rtol=0, atol=3e-4)
        norm(x).square().sum().backward()
        assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_a_block_in_bfloat16_stays_near_float32(scale):
    block = shaken(ConvNextBlock(16, (3, 3, 3), drop_path=0))
    x = scale * torch.randn(2, 16, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = (block(x) - x).double()
    with torch.autocast("cpu", torch.bfloat16):
        found = block(x) - x
    assert torch.isfinite(found).all()
    assert relative_error(found, expected) < 0.03


def test_grn_sums_many_large_values_without_loss():
    folded = shaken(GrnLinear(8, 8))
    h = 1e4 * (1 + torch.rand(1, 64_000, 8))
    expected = folded(h).double()
    with torch.autocast("cpu", torch.bfloat16):
        found = folded(h.bfloat16())
    assert torch.isfinite(found).all() and relative_error(found, expected) < 0.02


def test_drop_path_drops_whole_samples_in_training_only_and_keeps_the_mean():
    torch.manual_seed(0)
    block = shaken(ConvNextBlock(4, (3, 3, 3), drop_path=0.25))
    x = torch.randn(1, 4, 2, 2, 2).repeat(800, 1, 1, 1, 1)
    branch = block.eval()(x) - x
    block.train()
    kept = (block(x) - x).flatten(1)
    dropped = (kept == 0).all(dim=1)
    assert 0.18 < dropped.float().mean() < 0.32
    torch.testing.assert_close(kept[~dropped], branch.flatten(1)[~dropped] / 0.75)


STRIDES = ((1, 2, 2), (2, 2, 2), (1, 2, 2), (2, 2, 2), (2, 1, 1))


def trunk(n, **changes):
    plan = make_network(
        widths=range(4, 4 + n),
        depths=(1,) * n,
        strides=STRIDES[:n],
        kernels=((3, 3, 3),) * n,
        rpn_stages=(0,),
        anchor_sizes=(((3, 3, 3),),),
        **changes,
    )
    return plan, build_trunk(plan)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_every_stage_is_as_fine_as_its_strides_say(n):
    plan, network = trunk(n)
    network.to(memory_format=torch.channels_last_3d)
    size = tuple(2 * s for s in plan.total_stride(n - 1))
    skip, maps = network(torch.randn(2, 1, *size))
    assert skip.shape == (2, plan.skip_width, *size)
    for stage, found in enumerate(maps):
        cells = [a // b for a, b in zip(size, plan.total_stride(stage), strict=True)]
        assert found.shape == (2, plan.widths[stage], *cells)
        assert found.is_contiguous(memory_format=torch.channels_last_3d)


def test_a_window_of_one_cell_works():
    plan, network = trunk(3)
    _, maps = network(torch.randn(1, 1, *plan.total_stride(2)))
    assert maps[-1].shape[2:] == (1, 1, 1) and torch.isfinite(maps[-1]).all()


def test_drop_path_rises_from_nothing_to_its_rate():
    _, network = trunk(4, drop_path=0.3)
    rates = [m.drop_path for m in network.modules() if isinstance(m, ConvNextBlock)]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])


def test_windows_of_a_batch_do_not_see_each_other():
    _, network = trunk(3)
    x = torch.randn(2, 1, 8, 16, 16)
    together, alone = network(x)[1][-1][:1], network(x[:1])[1][-1]
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mixed", [False, True])
def test_checkpointed_blocks_give_the_same_maps_and_gradients(mixed):
    x, found = torch.randn(2, 1, 8, 16, 16), []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        _, network = trunk(3, drop_path=0.5, checkpointed=checkpointed)
        shaken(network)
        generator = torch.Generator().manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            maps = network(x, generator)[1]
        maps[-1].float().square().sum().backward()
        found.append([*maps, *(p.grad for p in network.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1])
    for plain, frugal in zip(*found, strict=True):
        torch.testing.assert_close(frugal, plain, rtol=0, atol=0)


def test_checkpointed_blocks_keep_little_between_forward_and_backward():
    kept = []
    for checkpointed in (False, True):
        _, network = trunk(3, checkpointed=checkpointed)
        sizes = []

        def keep(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            block = network.stages[0][0]
            block(torch.randn(1, 4, 8, 8, 8, requires_grad=True))
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 8


def test_compiled_blocks_are_one_graph_for_each_stage_with_the_same_answers_and_names():
    """Traced and differentiated ahead of time, but not translated: that needs a compiler."""
    plan, _ = trunk(2)
    plan = plan.model_copy(update={"depths": (3, 2)})
    plain, compiled = (shaken(build_trunk(plan)) for _ in range(2))
    compiled.load_state_dict(plain.state_dict())
    torch._dynamo.reset()
    counters.clear()
    compile_pointwise(compiled, backend="aot_eager")
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(2, 1, 4, 16, 16)
    for network in (plain, compiled):
        network(x)[1][-1].square().sum().backward()
    assert counters["stats"]["unique_graphs"] == 2
    for (name, p), q in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        error = (p.grad - q.grad).norm() if p.grad is not None else torch.zeros(())
        assert error <= 1e-4 * (1 + (0 if p.grad is None else p.grad.norm())), name


@pytest.mark.parametrize("faster", ["split", "native"])
def test_checkpointed_blocks_may_time_their_convolutions(monkeypatch, faster):
    """As on a GPU, where the first pass times both ways and the second finds the answer."""
    seconds = {"split": iter([2.0, 1.0] * 9), "native": iter([1.0, 2.0] * 9)}[faster]
    time = depthwise._time
    monkeypatch.setattr(depthwise, "_faster", {})
    monkeypatch.setattr(
        depthwise, "_time", lambda run, x, weight: (time(run, x, weight), next(seconds))[1]
    )

    def forward(self, x):
        if depthwise.split_is_faster(x, self.weight):
            return depthwise._SplitDepthwise.apply(x, self.weight, self.bias)
        return depthwise._native(x, self.weight, self.bias)

    monkeypatch.setattr(depthwise.DepthwiseConv3d, "forward", forward)
    gradients = []
    for checkpointed in (False, True):
        depthwise._faster.clear()
        torch.manual_seed(0)
        _, network = trunk(2, checkpointed=checkpointed)
        shaken(network)
        x = torch.randn(1, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        network(x)[1][-1].square().sum().backward()
        gradients.append([p.grad for p in network.parameters() if p.grad is not None])
    for plain, frugal in zip(*gradients, strict=True):
        torch.testing.assert_close(frugal, plain)
