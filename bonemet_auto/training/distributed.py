"""Several processes that train one network together, as `torchrun` starts them.

Each takes its share of every batch, and the gradients are averaged before the step, so that the
batch is the plan's whatever the number of processes. `DistributedDataParallel` is not used: lanes
hold copies of the network that it does not know, and which parameters have a gradient changes from
step to step. Files are written by the first process alone.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bonemet_auto.errors import UsageError

_PATIENCE = timedelta(hours=12)
"""The first process may validate for long while the others wait; `torchrun` sees dead ones."""


@dataclass(frozen=True)
class World:
    """Which of how many processes this is; by itself it is the only one."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes the files and speaks."""
        return self.rank == 0

    def share_of(self, batch_size: int) -> range:
        """Places in a batch that this process works on.

        Raises:
            UsageError: the batch cannot be dealt out evenly.
        """
        if batch_size % self.size:
            raise UsageError(
                f"a batch of {batch_size} windows cannot be shared by {self.size} processes. Start "
                "as many as divide it, or change batch_size in plan.json."
            )
        each = batch_size // self.size
        return range(self.rank * each, (self.rank + 1) * each)

    def average_gradients(self, model: nn.Module) -> None:
        """Replace every gradient by its mean over the processes.

        A process without, say, lesions in its windows has no gradient in the mask head: that counts
        as zero where another process has one, and stays none where nobody has.
        """
        if self.size == 1:
            return
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        grads = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
        present = grads[0].new_tensor([float(w.grad is not None) for w in weights])
        flat = torch.cat([*(grad.reshape(-1) for grad in grads), present])
        dist.all_reduce(flat)
        *means, present = (flat / self.size).split([*(w.numel() for w in weights), len(weights)])
        for weight, mean, share in zip(weights, means, present.tolist(), strict=True):
            weight.grad = mean.view(weight.shape) if share else None

    def average(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Mean of each scalar over the processes, which must name the same ones."""
        if self.size == 1:
            return values
        stacked = torch.stack(list(values.values()))
        dist.all_reduce(stacked)
        return dict(zip(values, stacked / self.size, strict=True))

    def anybody(self, flag: bool) -> bool:
        """Whether any process says so."""
        if self.size == 1:
            return flag
        said = torch.tensor(int(flag))
        dist.all_reduce(said, dist.ReduceOp.MAX)
        return bool(said)

    def from_leader(self, value: Any) -> Any:  # noqa: ANN401, whatever the leader has
        """The leader's value, in every process."""
        if self.size == 1:
            return value
        carried = [value]
        dist.broadcast_object_list(carried)
        return carried[0]


@contextmanager
def join_world(device: torch.device) -> Iterator[World]:
    """The processes that `torchrun` started with this one; alone where it did not start it.

    Args:
        device: of this process; CUDA talks through NCCL, a CPU through gloo.
    """
    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        yield World()
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield World(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def local_processes() -> int:
    """Processes of `torchrun` on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def own_device(device: torch.device) -> torch.device:
    """The GPU of this process, where `torchrun` started several and none was named by number."""
    if device.type != "cuda" or device.index is not None:
        return device
    own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(own)
    return own
