"""Depthwise convolution and whole ConvNeXt-V2 blocks beside what PyTorch offers."""

import itertools
from collections import defaultdict

import torch
from torch.nn import functional

from bonemet_auto.model.convnext import ConvNextBlock
from bonemet_auto.model.depthwise import DepthwiseConv3d
from bonemet_auto.model.precision import has_bfloat16
from tests.bench.side_by_side import compare

BLOCK_SHAPE = (2, 64, 24, 32, 32)
SAME = 1e-5
AIM = 2.5


def depthwise() -> None:
    shapes = [(24, 32), (48, 16), (96, 8), (160, 4)]
    cases = [((3, 3, 3), *s) for s in shapes]
    cases += [((1, 3, 3), *shapes[0]), *[((k, k, k), 48, 16) for k in (5, 7)]]
    for kernel, channels, edge in cases:
        conv = DepthwiseConv3d(channels, kernel)
        grad = torch.randn(2, channels, edge, edge, edge)
        for layout in (torch.channels_last_3d, torch.contiguous_format):
            inputs = torch.randn_like(grad).contiguous(memory_format=layout).requires_grad_()
            out = grad.contiguous(memory_format=layout)
            nhwc = inputs.detach().contiguous(memory_format=torch.channels_last_3d).requires_grad_()
            nhwc_out = grad.contiguous(memory_format=torch.channels_last_3d)

            def naive(conv=conv, inputs=inputs, out=out):
                padding = [edge // 2 for edge in conv.kernel]
                functional.conv3d(
                    inputs, conv.weight, conv.bias, padding=padding, groups=len(conv.weight)
                ).backward(out)

            def ours(conv=conv, nhwc=nhwc, nhwc_out=nhwc_out):
                conv(nhwc).backward(nhwc_out)

            against = "channels-last" if layout == torch.channels_last_3d else "channels-first"
            size = f"[2, {channels}, {edge}^3] k={kernel}"
            compare(f"depthwise {size} to {against}", ours, naive)


def blocks() -> None:
    """Forward and backward of one block: the same numbers in float32, then both ways timed.

    bfloat16 is what training runs in where the processor has it.
    """
    precisions = [False, True] if has_bfloat16(torch.device("cpu")) else [False]
    for edge, half in itertools.product((7, 5, 3), precisions):
        block = ConvNextBlock(BLOCK_SHAPE[1], (edge,) * 3, drop_path=0)
        with torch.no_grad():
            # At the start GRN does nothing and norms are plain.
            for parameter in block.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        parameters = dict(block.named_parameters())
        x, grad = torch.randn(2, *BLOCK_SHAPE)
        last = torch.channels_last_3d
        nhwc, nhwc_grad = x.contiguous(memory_format=last), grad.contiguous(memory_format=last)
        x.requires_grad_(), nhwc.requires_grad_()

        def ours(block=block, half=half, p=parameters, x=nhwc, grad=nhwc_grad):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                out = block(x)
            return out.detach(), *torch.autograd.grad(out, [x, *p.values()], grad)

        def naive(half=half, p=parameters, x=x, grad=grad):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                out = textbook_block(x, p)
            return out.detach(), *torch.autograd.grad(out, [x, *p.values()], grad)

        if not half:
            assert_same(["output", "input", *parameters], ours(), naive())
        size, number = ", ".join(map(str, BLOCK_SHAPE)), "bfloat16" if half else "float32"
        compare(
            f"block [{size}] k={edge} {number} to the textbook's",
            ours,
            naive,
            AIM if edge == 7 else None,
        )


def textbook_block(x, p):
    """A block as the paper writes it, but for the norm, of channels-first maps."""
    padding = [edge // 2 for edge in p["depthwise.weight"].shape[2:]]
    h = functional.conv3d(
        x, p["depthwise.weight"], p["depthwise.bias"], padding=padding, groups=x.shape[1]
    )
    h = functional.instance_norm(h, weight=p["norm.weight"], bias=p["norm.bias"])
    h = h.permute(0, 2, 3, 4, 1)
    h = functional.gelu(functional.linear(h, p["expand.weight"], p["expand.bias"]))
    response = torch.linalg.vector_norm(h, dim=(1, 2, 3), keepdim=True)
    normalised = response / (response.mean(dim=-1, keepdim=True) + 1e-6)
    h = p["project.gamma"] * (h * normalised) + p["project.beta"] + h
    h = functional.linear(h, p["project.linear.weight"], p["project.linear.bias"])
    return x + h.permute(0, 4, 1, 2, 3)


def assert_same(names, found, expected):
    """Layer by layer: the norm cancels the depthwise bias, whose own gradient is rounding alone."""
    layers = defaultdict(list)
    for name, *pair in zip(names, found, expected, strict=True):
        layers[name.rpartition(".")[0] or name].append([t.double().flatten() for t in pair])
    for layer, pairs in layers.items():
        one, other = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        error = ((one - other).norm() / other.norm()).item()
        assert error < SAME, f"{layer} differs by {error:.1e}"
