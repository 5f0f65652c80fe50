"""How many windows go through the networks together, and what is done when that is too many."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from bonemet_auto.geometry import Index
from bonemet_auto.model.footprint import HEADROOM, forward_bytes
from bonemet_auto.model.precision import has_bfloat16
from bonemet_auto.plan_schema import Plan

CPU_BATCH = 2
LARGEST_GPU_BATCH = 16
_SHARE_OF_FREE = 0.8
_SHORTAGES = ("DefaultCPUAllocator", "out of memory", "STATUS_ALLOC_FAILED")
"""What PyTorch's CPU allocator, the CUDA driver, and cuDNN or cuBLAS say."""

Done = TypeVar("Done")

_log = logging.getLogger(__name__)


@dataclass
class BatchSize:
    """Windows per forward; halved, to 1 at least, whenever memory runs out.

    Attributes:
        size: as it is now.
        notes: what was halved, in words for the person who runs it.
    """

    size: int
    notes: list[str] = field(default_factory=list)

    def halve(self, device: torch.device) -> None:
        """Go on with half as many windows."""
        note = f"memory ran out with {self.size} windows at once; goes on with {self.size // 2}"
        self.size //= 2
        self.notes.append(note)
        _log.warning("warning: %s", note)
        if device.type == "cuda":
            torch.cuda.empty_cache()


def first_batch_size(plan: Plan, device: torch.device) -> int:
    """Windows per forward that the memory left has room for.

    A GPU takes up to `LARGEST_GPU_BATCH`, by what the planned network needs without gradients; more
    would not be faster. On a CPU more than `CPU_BATCH` is slower.
    """
    if device.type != "cuda":
        return CPU_BATCH
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    each = forward_bytes(plan.network, plan.patch_size, has_bfloat16(device))
    return windows_that_fit(free, each)


def windows_that_fit(free_bytes: int, bytes_each: int) -> int:
    """Windows of `bytes_each` in most of the memory of a GPU; 1 at least."""
    room = _SHARE_OF_FREE * free_bytes / HEADROOM["cuda"]
    return max(1, min(LARGEST_GPU_BATCH, int(room // bytes_each)))


def in_batches(
    starts: Sequence[Index],
    batch: BatchSize,
    device: torch.device,
    work: Callable[[Sequence[Index]], Done],
) -> Iterator[tuple[int, Sequence[Index], Done]]:
    """Do work on runs of windows; a run that finds no memory is done again in smaller ones.

    Args:
        starts: first voxels of the windows.
        batch: how many at once; halved where memory runs out, for what comes after too.
        device: where the work is done.
        work: takes starts; must leave nothing behind when it fails.

    Yields:
        Number of the run's first window, the run, and what `work` made of it.
    """
    begin = 0
    while begin < len(starts):
        run = starts[begin : begin + batch.size]
        try:
            done = work(run)
        except (MemoryError, RuntimeError) as error:
            if batch.size == 1 or not is_shortage(error):
                raise
            # The traceback holds the tensors that are in the way: it ends with this block.
            done = None
        if done is None:
            batch.halve(device)
            continue
        yield begin, run, done
        begin += len(run)


def is_shortage(error: Exception) -> bool:
    """Whether an error says that memory ran out, on a GPU or a CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SHORTAGES)
