"""The `fast` planner: for CPUs and small cohorts, minutes to an hour instead of days.

Its constants stand here, those of all planners in `planners/default.py`. Widths, depths and the
learning rate were compared on phantoms (docs/adr/0008, 0009); the others are first choices.
"""

from bonemet_auto.geometry import Index, Triple
from bonemet_auto.plan_schema import Plan, Target
from bonemet_auto.schema import Fingerprint
from planners.default import make_plan
from planners.preset import Preset

FAST = Preset(
    planner="fast",
    widths=(32, 64, 96, 128),
    depths=(0, 2, 2, 1),
    coarsest_lesion_voxels=5.0,
    fine_level_voxels=4.0,
    skip_width=16,
    neck_width=32,
    stages=(4, 4),
    min_edge=2,
    edges=(48, 40, 32, 24, 16),
    anchors_per_level=2,
    batch_sizes=(4, 4),
    drop_path=0.0,
    iterations=3000,
    epochs=30,
    learning_rate=2e-3,
    warmup_share=0.05,
    mirror_axes=(2,),
)


def plan_fast(
    fingerprint: Fingerprint,
    target: Target,
    name: str,
    spacing_mm: Triple | None = None,
    patch_size: Index | None = None,
) -> Plan:
    """Plan a small network on patches of about 48^3 voxels.

    Args:
        fingerprint: of the dataset.
        target: device and memory to fit.
        name: of the plan; its folder.
        spacing_mm: asked for by a person, instead of the derived one.
        patch_size: likewise.

    Raises:
        PlanError: the fingerprint has no case or no lesion, or nothing fits.
    """
    return make_plan(FAST, fingerprint, target, name, spacing_mm, patch_size)
