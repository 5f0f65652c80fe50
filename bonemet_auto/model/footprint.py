"""How much memory a training step takes, found out without taking it.

The real network runs forward and backward on fake tensors, which have shapes and types but no
values (`torch._subclasses.fake_tensor`); every storage that appears is counted until it is freed.
RoI heads get as many boxes as training can give them, already pooled, since which boxes there are
depends on values.
"""

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bonemet_auto.geometry import Index
from bonemet_auto.model.heads import BOX_BINS, MASK_BINS, SOURCE_BINS, Trunk
from bonemet_auto.model.losses import dense_loss
from bonemet_auto.model.mask_rcnn import (
    LESION_WEIGHT,
    MASK_ROIS,
    ROIS_PER_IMAGE,
    MaskRCNN,
    assemble_model,
)
from bonemet_auto.plan_schema import NetworkPlan

HEADROOM = {"cuda": 1.15, "cpu": 1.57}
"""What the allocator holds beyond what is asked for, and workspaces of the operations.

Measured on a CPU (docs/adr/0012), whose allocator keeps what was freed in pieces that do not fit
again; assumed on a GPU.
"""


@dataclass(frozen=True)
class Footprint:
    """Bytes of one forward and backward pass.

    Attributes:
        saved: what autograd keeps between the two, parameters aside.
        peak: highest sum of all tensors, parameters and their gradients aside.
        parameters: number of parameters.
    """

    saved: int
    peak: int
    parameters: int


def measure_footprint(plan: NetworkPlan, patch: Index, windows: int, mixed: bool) -> Footprint:
    """Footprint of `windows` windows that go through the network together.

    Args:
        plan: the network.
        patch: voxels (z, y, x) of a window.
        windows: how many.
        mixed: bfloat16 where `mixed_precision` uses it, otherwise float32.
    """
    with FakeTensorMode():
        model = _planned(plan)
        for parameter in model.parameters():
            # Autograd would make them during the backward pass; the optimiser's share is known.
            parameter.grad = torch.zeros_like(parameter)
        own = {p.untyped_storage()._cdata for p in model.parameters()}
        saved: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                saved[storage._cdata] = storage.nbytes()
            return tensor

        with _Storages() as storages:
            with (
                torch.autograd.graph.saved_tensors_hooks(keep, _same),
                torch.autocast("cpu", torch.bfloat16, enabled=mixed),
            ):
                loss = _losses(model, patch, windows)
            loss.backward()
        count = sum(parameter.numel() for parameter in model.parameters())
    return Footprint(sum(saved.values()), storages.peak, count)


def forward_bytes(plan: NetworkPlan, patch: Index, mixed: bool) -> int:
    """Highest sum of all tensors while one window is looked at without gradients.

    Parameters aside, and the RoI heads: few boxes of a window get that far at a time.

    Args:
        plan: the network.
        patch: voxels (z, y, x) of the window.
        mixed: bfloat16 where `mixed_precision` uses it, otherwise float32.
    """
    with FakeTensorMode(), torch.no_grad():
        model = _planned(plan)
        with _Storages() as storages, torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            model.propose(model.look(torch.empty(1, 1, *patch)))
    return storages.peak


def _planned(plan: NetworkPlan) -> MaskRCNN:
    """The network of a plan, laid out as `build_model` does."""
    model = assemble_model(plan)
    for parameter in model.parameters():
        if parameter.dim() == 5:
            # As `Module.to(memory_format=...)`, which fake parameters refuse.
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
    return model


def _losses(model: MaskRCNN, patch: Index, windows: int) -> Tensor:
    """A scalar that depends on all that training's losses depend on."""
    images = torch.empty(windows, 1, *patch)
    lesion = torch.empty(windows, *patch)
    trunk = model.look(images)
    dense = dense_loss(trunk.dense_logits, lesion, LESION_WEIGHT)
    coarse = model.coarse_loss(trunk, lesion)
    found = model.propose(trunk)
    return (
        dense + coarse + found.objectness.sum() + found.deltas.sum() + _heads(model, trunk, windows)
    )


def _heads(model: MaskRCNN, trunk: Trunk, windows: int) -> Tensor:
    evidence = trunk.evidence[0]

    def pooled(count: int, channels: int, bins: int) -> Tensor:
        shape = (count, bins, bins, bins, channels)
        # Through the pyramid, so that its gradient is made too.
        values = torch.empty(shape, dtype=evidence.dtype) + evidence.sum()
        return values.permute(0, 4, 1, 2, 3)

    boxes = torch.empty(MASK_ROIS, 6)
    neck = evidence.shape[1] - 1
    logits, deltas = model.box_head.read(pooled(windows * ROIS_PER_IMAGE, neck + 1, BOX_BINS))
    dense = torch.empty(MASK_ROIS, 1, MASK_BINS, MASK_BINS, MASK_BINS)
    masks, quality = model.mask_head.read(pooled(MASK_ROIS, neck + 1, MASK_BINS), dense)
    voxels = torch.empty(MASK_ROIS, 2, SOURCE_BINS, SOURCE_BINS, SOURCE_BINS)
    source = model.source_head.read(pooled(MASK_ROIS, neck, SOURCE_BINS), voxels, boxes)
    return (
        logits.sum()
        + deltas.sum()
        + dense_loss(masks, torch.empty_like(masks))
        + quality.sum()
        + source.sum()
    )


class _Storages(TorchDispatchMode):
    """Adds up the bytes of every storage from its first sight to its end."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401 - PyTorch's signature
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        name, size = storage._cdata, storage.nbytes()
        if name in self.known:
            return
        self.known.add(name)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, name, size)

    def _forget(self, name: int, size: int) -> None:
        self.known.discard(name)
        self.now -= size


def _same(tensor: Tensor) -> Tensor:
    return tensor
