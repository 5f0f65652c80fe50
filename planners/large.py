"""The `large` planner: for one large GPU and many days.

The network is the one that `default` takes with twice the memory and three times the lesions, which
may be the same one, and training is twice as long; the patch gives way where the memory does not
suffice for both.
"""

from dataclasses import replace

from bonemet_auto.geometry import Index, Triple
from bonemet_auto.plan_schema import Plan, Target
from bonemet_auto.schema import Fingerprint
from planners.default import count_lesions, make_plan
from planners.preset import choose_family

LONGER = 2
MORE_MEMORY, MORE_LESIONS = 2, 3


def plan_large(
    fingerprint: Fingerprint,
    target: Target,
    name: str,
    spacing_mm: Triple | None = None,
    patch_size: Index | None = None,
) -> Plan:
    """Plan at least the ConvNeXt-V2 family of `plan_default`, trained for twice as long.

    Args:
        fingerprint: of the dataset.
        target: device and memory to fit.
        name: of the plan; its folder.
        spacing_mm: asked for by a person, instead of the derived one.
        patch_size: likewise.

    Raises:
        PlanError: the fingerprint has no case or no lesion, or nothing fits.
    """
    family = choose_family(
        MORE_MEMORY * target.memory_gb, MORE_LESIONS * count_lesions(fingerprint)
    )
    preset = replace(family, planner="large", iterations=LONGER * family.iterations, drop_path=0.2)
    return make_plan(preset, fingerprint, target, name, spacing_mm, patch_size)
