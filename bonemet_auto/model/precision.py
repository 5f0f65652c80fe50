"""Where bfloat16 is fast, and where it is not."""

import torch
from torch import Tensor, nn

from bonemet_auto.geometry import Index


def mixed_precision(device: torch.device) -> torch.autocast:
    """Context in which convolutions and linears run in bfloat16, where the hardware has it.

    bfloat16 keeps float32's range, so no loss scaling is needed. A CPU that emulates it is several
    times slower than in float32; one that has it natively takes about half the time.

    Weights are cast anew at every use on a CPU. PyTorch's cache of cast weights belongs to the
    whole process, and a lane that leaves its context empties it under the others: whether gradients
    of a weight that is used several times are added in bfloat16 or in float32 would be chance.
    """
    cached = device.type != "cpu"
    return torch.autocast(
        device.type, torch.bfloat16, enabled=has_bfloat16(device), cache_enabled=cached
    )


def has_bfloat16(device: torch.device) -> bool:
    """Whether the hardware computes in bfloat16 itself."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


class Conv3x3x3(nn.Conv3d):
    """3^3 convolution with padding 1, in float32 where a map is thinner than the kernel.

    On CPUs the bfloat16 weight gradient (oneDNN, torch 2.13) holds garbage, often NaN, if an axis
    of the map has two voxels; see docs/adr/0006-bfloat16-on-cpu.md. Such maps are tiny, so float32
    costs nothing.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: Index = (1, 1, 1)) -> None:
        super().__init__(channels_in, channels_out, 3, stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, Z, Y, X) to (N, C_out, Z / stride, Y / stride, X / stride), rounded up."""
        if x.device.type == "cpu" and min(x.shape[2:]) < 3:
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.float())
        return super().forward(x)
