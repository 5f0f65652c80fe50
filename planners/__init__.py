"""Planning: from a dataset's fingerprint and a target machine to a plan.

A planner is a function; `PLANNERS` names them all. Nothing here touches files or needs a GPU.
"""

from typing import Protocol

import torch

from bonemet_auto.errors import UsageError
from bonemet_auto.geometry import Index, Triple
from bonemet_auto.model.precision import has_bfloat16
from bonemet_auto.plan_schema import Plan, Target
from bonemet_auto.schema import Fingerprint
from planners.default import plan_default
from planners.explain import explain_plan
from planners.fast import plan_fast
from planners.large import plan_large
from planners.memory import measured_plan

OWNER = "bonemet_auto"
"""Tells this package from a foreign one of the same name."""

GPU_CLASSES_GB = (80, 40, 24, 16, 8)
CPU_MEMORY_GB = 6.0
_REPORTED_SHARE = 0.92
"""A card sold as 24 GB reports a little less."""

__all__ = [
    "OWNER",
    "PLANNERS",
    "default_planner",
    "detect_target",
    "explain_plan",
    "measured_plan",
    "plan_default",
    "plan_fast",
    "plan_large",
]


class Planner(Protocol):
    """What every planner takes and gives."""

    def __call__(
        self,
        fingerprint: Fingerprint,
        target: Target,
        name: str,
        spacing_mm: Triple | None = None,
        patch_size: Index | None = None,
    ) -> Plan:
        """Make a plan; spacing and patch size are derived unless given."""
        ...


PLANNERS: dict[str, Planner] = {
    "default": plan_default,
    "fast": plan_fast,
    "large": plan_large,
}


def detect_target(gpu_memory_gb: float | None) -> Target:
    """The machine to plan for: the flag's, else the GPU that is visible, else a CPU.

    A GPU counts as the class (8, 16, 24, 40, 80 GB) that it reaches, so that like cards give like
    plans.

    Raises:
        UsageError: the flag is not positive.
    """
    if gpu_memory_gb is not None:
        if not gpu_memory_gb > 0:
            raise UsageError(f"--gpu-memory {gpu_memory_gb} must be above 0 (GB).")
        return Target(device="cuda", memory_gb=gpu_memory_gb, bfloat16=True)
    if not torch.cuda.is_available():
        fast = has_bfloat16(torch.device("cpu"))
        return Target(device="cpu", memory_gb=CPU_MEMORY_GB, bfloat16=fast)
    found_gb = torch.cuda.get_device_properties(0).total_memory / 1e9
    reached = [gb for gb in GPU_CLASSES_GB if found_gb >= _REPORTED_SHARE * gb]
    return Target(
        device="cuda",
        memory_gb=float(reached[0] if reached else int(found_gb) or 1),
        bfloat16=has_bfloat16(torch.device("cuda")),
    )


def default_planner(target: Target) -> str:
    """`default` on a GPU, `fast` on a CPU."""
    return "default" if target.device == "cuda" else "fast"
