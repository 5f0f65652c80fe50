"""Start from the weights of another network: what fits is taken, the rest stays as initialised."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bonemet_auto.errors import ModelError


@dataclass(frozen=True)
class Transfer:
    """Names of parameters by what became of them.

    Attributes:
        taken: copied as they are.
        resized: depthwise kernels of another size, interpolated.
        fresh: of the network alone, or of another shape; left as they were.
        unused: of the other weights alone.
    """

    taken: tuple[str, ...]
    resized: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]


@torch.no_grad()
def transfer_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> Transfer:
    """Copy by name what fits, and interpolate depthwise kernels to the size they have here.

    The latter is UpKern: a network of 5^3 kernels that starts from a trained one of 3^3 learns what
    it would not from scratch. Source: Roy et al. 2023, "MedNeXt". Norms follow the kernels, so
    their scale does not matter.

    Args:
        model: takes the weights, in place.
        weights: parameters of another network by name.

    Raises:
        ModelError: nothing fits.
    """
    taken, resized, fresh = [], [], []
    own = model.state_dict()
    for name, target in own.items():
        source = weights.get(name)
        if source is not None and source.shape == target.shape:
            target.copy_(source)
            taken.append(name)
        elif source is not None and _is_kernel_of_another_size(source, target):
            target.copy_(resize_kernel(source, target.shape[2:]))
            resized.append(name)
        else:
            fresh.append(name)
    if not (taken or resized):
        raise ModelError("no parameter has the name and shape of one in the given weights")
    unused = tuple(name for name in weights if name not in own)
    return Transfer(tuple(taken), tuple(resized), tuple(fresh), unused)


def resize_kernel(kernel: Tensor, size: torch.Size) -> Tensor:
    """Interpolate depthwise kernels (C, 1, kz, ky, kx) linearly to (C, 1, *size)."""
    return F.interpolate(kernel, size=tuple(size), mode="trilinear", align_corners=True)


def _is_kernel_of_another_size(source: Tensor, target: Tensor) -> bool:
    depthwise = source.ndim == target.ndim == 5 and target.shape[1] == 1
    return depthwise and source.shape[:2] == target.shape[:2]
