"""Parts of a batch side by side on the cores of a CPU.

A step is thousands of small operations, and splitting each of them over cores gains little. Whole
windows are independent of each other, so each lane takes some through forward and backward in a
thread of its own, on a copy of the network that shares its parameters; the gradients are added in a
fixed order.
"""

import copy
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from bonemet_auto.processor import WINDOWS_PER_PART

Network = TypeVar("Network", bound=nn.Module)
Part = TypeVar("Part")
Losses = dict[str, Tensor]


class Lanes(Generic[Network]):
    """A network, and copies of it that share its parameters but not its gradients.

    Args:
        model: the network; its own `.grad` takes the sum.
        n_lanes: parts worked at the same time.
    """

    def __init__(self, model: Network, n_lanes: int) -> None:
        self.replicas = [model, *(copy.deepcopy(model) for _ in range(n_lanes - 1))]
        for replica in self.replicas[1:]:
            for ours, shared in zip(replica.parameters(), model.parameters(), strict=True):
                ours.data = shared.data
        self._pool = ThreadPoolExecutor(n_lanes)

    def run(self, work: Callable[[Network, Part], Losses], parts: Sequence[Part]) -> list[Losses]:
        """Do `work`, which calls backward, on every part, and add the gradients up.

        Each lane takes every n-th part, so that sums are formed in the same order in every run.
        """

        def lane(number: int) -> list[Losses]:
            replica = self.replicas[number]
            return [work(replica, part) for part in parts[number :: len(self.replicas)]]

        n_lanes, threads = len(self.replicas), torch.get_num_threads()
        if n_lanes == 1:
            return lane(0)
        torch.set_num_threads(max(1, threads // n_lanes))
        try:
            done = [self._pool.submit(lane, number) for number in range(n_lanes)]
            losses = [item for future in done for item in future.result()]
        finally:
            torch.set_num_threads(threads)
        self._gather()
        return losses

    def _gather(self) -> None:
        """Move the copies' gradients to the network's own."""
        for replica in self.replicas[1:]:
            for own, other in zip(self.replicas[0].parameters(), replica.parameters(), strict=True):
                if other.grad is not None:
                    own.grad = other.grad if own.grad is None else own.grad + other.grad
                    other.grad = None


def lanes_for(device: torch.device, batch_size: int) -> int:
    """Lanes that fit: one per part and per core on a CPU, one elsewhere."""
    if device.type != "cpu":
        return 1
    parts = -(-batch_size // WINDOWS_PER_PART)
    return max(1, min(parts, torch.get_num_threads(), os.cpu_count() or 1))
