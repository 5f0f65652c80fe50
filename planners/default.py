"""The `default` planner, for GPUs, and the derivation that all planners share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bonemet_auto.errors import PlanError
from bonemet_auto.geometry import Index, Triple
from bonemet_auto.schema import (
    Fingerprint,
    InferencePlan,
    NetworkPlan,
    Plan,
    Target,
    TrainingPlan,
)
from planners.anchors import Sizes, choose_stages, search_anchors
from planners.memory import Blueprint, training_bytes
from planners.patch import Topology, given_patch, largest_patch, shape_patch
from planners.spacing import intensities, lesion_sizes, planned_shapes, target_spacing

LIMIT_PERCENTILE = 95
LARGE_LESION_PERCENTILE = 99
CONTEXT_MM = 20.0
"""Seen around a lesion: is there a rim, is the cortex breached?"""
DEEPEST_CELLS = 4
"""Cells of the deepest map that span a large lesion with its context: one block sees it whole."""
SEED = 0
OUTSIDE_BONE_SHARE = 0.02
FINEST_SPACING_MM, COARSEST_SPACING_MM = 0.1, 20.0
MEMORY_SHARE = 0.9
"""Of the target's memory that a step may take; the rest is for the display and fragmentation."""


@dataclass(frozen=True)
class Preset:
    """What a planner fixes before it has seen the data.

    Attributes:
        planner: its name.
        widths: channels per stage; a stage beyond repeats the last.
        depths: blocks per stage, likewise.
        coarsest_lesion_voxels: the spacing is coarsened until a small lesion (10th percentile)
            spans this many voxels; None keeps the scans' own.
        fine_level_voxels: lesions of which the 10th percentile is smaller are also proposed at
            stride 2, where most cells are.
        skip_width: channels of the full-resolution skip.
        neck_width: channels of the neck and heads.
        stages: fewest and most stages to build, as the patch allows.
        min_edge: fewest cells along an axis of the deepest map.
        edges: candidates for the patch edge along the finest axis, in voxels.
        anchors_per_level: anchor sizes per level.
        batch_sizes: smallest and largest batch.
        drop_path: rate at the last block.
        iterations: of training.
        epochs: that they are counted in.
        learning_rate: peak.
        warmup_share: of the iterations.
        mirror_axes: mirrored at inference.
    """

    planner: str
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    coarsest_lesion_voxels: float | None
    fine_level_voxels: float
    skip_width: int
    neck_width: int
    stages: tuple[int, int]
    min_edge: int
    edges: tuple[int, ...]
    anchors_per_level: int
    batch_sizes: tuple[int, int]
    drop_path: float
    iterations: int
    epochs: int
    learning_rate: float
    warmup_share: float
    mirror_axes: tuple[int, ...]


_ATTO = Preset(
    planner="default",
    widths=(40, 80, 160, 320),
    depths=(2, 2, 6, 2),
    coarsest_lesion_voxels=None,
    fine_level_voxels=8.0,
    skip_width=16,
    neck_width=64,
    stages=(4, 6),
    min_edge=4,
    edges=tuple(range(64, 257, 16)),
    anchors_per_level=3,
    batch_sizes=(2, 8),
    drop_path=0.1,
    iterations=250_000,
    epochs=1000,
    learning_rate=4e-4,
    warmup_share=0.02,
    mirror_axes=(0, 1, 2),
)
FAMILIES = (
    (0, 0, _ATTO),
    (16, 100, replace(_ATTO, widths=(48, 96, 192, 384))),
    (24, 300, replace(_ATTO, widths=(64, 128, 256, 512), neck_width=96)),
    (40, 1000, replace(_ATTO, widths=(80, 160, 320, 640), depths=(2, 2, 8, 2), neck_width=96)),
    (80, 3000, replace(_ATTO, widths=(96, 192, 384, 768), depths=(3, 3, 9, 3), neck_width=128)),
    (80, 10000, replace(_ATTO, widths=(128, 256, 512, 1024), depths=(3, 3, 27, 3), neck_width=128)),
)
"""ConvNeXt-V2 atto, femto, pico, nano, tiny, base: from which memory (GB) and number of lesions."""


def plan_default(
    fingerprint: Fingerprint,
    target: Target,
    name: str,
    spacing_mm: Triple | None = None,
    patch_size: Index | None = None,
) -> Plan:
    """Plan the largest ConvNeXt-V2 family that memory and number of lesions allow.

    Args:
        fingerprint: of the dataset.
        target: device and memory to fit.
        name: of the plan; its folder.
        spacing_mm: asked for by a person, instead of the derived one.
        patch_size: likewise.

    Raises:
        PlanError: the fingerprint has no case or no lesion, or nothing fits.
    """
    preset = choose_family(target.memory_gb, count_lesions(fingerprint))
    return make_plan(preset, fingerprint, target, name, spacing_mm, patch_size)


def choose_family(memory_gb: float, lesions: int) -> Preset:
    """The last family whose memory and number of lesions are both reached."""
    return [preset for gb, least, preset in FAMILIES if memory_gb >= gb and lesions >= least][-1]


def count_lesions(fingerprint: Fingerprint) -> int:
    """Lesions of all cases."""
    return sum(len(case.lesions) for case in fingerprint.cases)


def make_plan(
    preset: Preset,
    fingerprint: Fingerprint,
    target: Target,
    name: str,
    spacing_mm: Triple | None,
    patch_size: Index | None,
) -> Plan:
    """Derive everything that follows from a preset, a dataset and a target.

    Raises:
        PlanError: see `plan_default`.
    """
    spacing = _checked_spacing(spacing_mm) or target_spacing(
        fingerprint, preset.coarsest_lesion_voxels
    )
    lesions = lesion_sizes(fingerprint, spacing)
    hu = intensities(fingerprint)

    def blueprint(found: Topology) -> Blueprint:
        return _blueprint(preset, found, lesions, spacing)

    depth = depth_for(lesions, spacing, preset.stages)
    patch, found = _patch(preset, depth, fingerprint, target, spacing, patch_size, blueprint)
    batch = _batch_size(preset, patch, blueprint(found), target)
    return Plan(
        name=name,
        planner=preset.planner,
        dataset=fingerprint.dataset,
        target=target,
        spacing_mm=spacing,
        window_hu=hu.window_hu,
        mean_hu=hu.mean_hu,
        sd_hu=hu.sd_hu,
        patch_size=patch,
        batch_size=batch,
        memory_bytes=training_bytes(blueprint(found), patch, batch, target),
        network=_network(preset, blueprint(found), lesions),
        training=TrainingPlan(
            iterations=preset.iterations,
            epochs=preset.epochs,
            learning_rate=preset.learning_rate,
            weight_decay=0.05,
            warmup_share=preset.warmup_share,
            lesion_share=0.5,
        ),
        inference=InferencePlan(
            overlap=0.5,
            mirror_axes=preset.mirror_axes,
            skip_windows_without_bone=share_outside_bone(fingerprint) <= OUTSIDE_BONE_SHARE,
        ),
    )


def share_outside_bone(fingerprint: Fingerprint) -> float:
    """Share of lesions of which more than half lies outside bone."""
    shares = [lesion.share_outside_bone for case in fingerprint.cases for lesion in case.lesions]
    return float(np.mean([share > 0.5 for share in shares])) if shares else 0.0


def size_limit(fingerprint: Fingerprint, spacing: Triple) -> Sequence[float]:
    """Voxels per axis beyond which a patch would only see padding, in most scans."""
    shapes = planned_shapes(fingerprint, spacing)
    limit: list[float] = np.ceil(np.percentile(shapes, LIMIT_PERCENTILE, axis=0)).tolist()
    return limit


def _checked_spacing(spacing_mm: Triple | None) -> Triple | None:
    if spacing_mm is None:
        return None
    z, y, x = np.clip(spacing_mm, FINEST_SPACING_MM, COARSEST_SPACING_MM).tolist()
    if (z, y, x) != tuple(spacing_mm):
        raise PlanError(
            f"spacing {tuple(spacing_mm)} mm (z, y, x) is outside {FINEST_SPACING_MM} to "
            f"{COARSEST_SPACING_MM} mm. Nearest possible: {(z, y, x)}."
        )
    return z, y, x


def depth_for(lesions: Sizes, spacing: Triple, stages: tuple[int, int]) -> int:
    """Stages until a few cells of the deepest map span the largest lesions and their surroundings.

    Args:
        lesions: (L, 3) box edges in planned voxels.
        spacing: planned voxel edges, mm.
        stages: fewest and most.
    """
    largest = np.percentile(lesions * np.asarray(spacing), LARGE_LESION_PERCENTILE, axis=0).max()
    voxels = (largest + 2 * CONTEXT_MM) / min(spacing)
    return int(np.clip(np.ceil(np.log2(voxels / DEEPEST_CELLS)), *stages))


def _patch(
    preset: Preset,
    depth: int,
    fingerprint: Fingerprint,
    target: Target,
    spacing: Triple,
    patch_size: Index | None,
    blueprint: Callable[[Topology], Blueprint],
) -> tuple[Index, Topology]:
    limit = size_limit(fingerprint, spacing)
    min_edge = preset.min_edge
    budget = MEMORY_SHARE * target.memory_gb * 1e9

    def memory(patch: Index, found: Topology) -> int:
        return training_bytes(blueprint(found), patch, preset.batch_sizes[0], target)

    def shape(edge: int) -> tuple[Index, Topology]:
        return shape_patch(edge, spacing, limit, depth, min_edge)

    if patch_size is None:
        return largest_patch(preset.edges, shape, memory, budget)
    patch, found = given_patch(patch_size, spacing, depth, min_edge)
    if memory(patch, found) > budget:
        nearest, _ = largest_patch(preset.edges, shape, memory, budget)
        raise PlanError(
            f"patch {patch} (z, y, x voxels) needs {memory(patch, found) / 1e9:.1f} GB, the target "
            f"has {budget / 1e9:.1f} GB to give. Nearest possible: {nearest}."
        )
    return patch, found


def _batch_size(preset: Preset, patch: Index, blueprint: Blueprint, target: Target) -> int:
    """The largest batch that fits, within the preset's range."""
    smallest, largest = preset.batch_sizes
    budget = MEMORY_SHARE * target.memory_gb * 1e9
    fitting = [
        batch
        for batch in range(smallest, largest + 1)
        if training_bytes(blueprint, patch, batch, target) <= budget
    ]
    return max(fitting, default=smallest)


def _blueprint(preset: Preset, found: Topology, lesions: Sizes, spacing: Triple) -> Blueprint:
    widths, depths = _per_stage(preset, len(found.strides))
    totals = [found.total_stride(stage) for stage in range(len(found.strides))]
    return Blueprint(
        strides=found.strides,
        kernels=found.kernels,
        widths=widths,
        depths=depths,
        skip_width=preset.skip_width,
        neck_width=preset.neck_width,
        rpn_stages=tuple(choose_stages(totals, lesions, spacing, preset.fine_level_voxels)),
        anchors_per_level=preset.anchors_per_level,
    )


def _network(preset: Preset, blueprint: Blueprint, lesions: Sizes) -> NetworkPlan:
    topology = Topology(blueprint.strides, blueprint.kernels)
    levels = [topology.total_stride(stage) for stage in blueprint.rpn_stages]
    return NetworkPlan(
        widths=blueprint.widths,
        depths=blueprint.depths,
        strides=blueprint.strides,
        kernels=blueprint.kernels,
        skip_width=blueprint.skip_width,
        neck_width=blueprint.neck_width,
        rpn_stages=blueprint.rpn_stages,
        anchor_sizes=search_anchors(lesions, levels, preset.anchors_per_level, SEED),
        drop_path=preset.drop_path,
    )


def _per_stage(preset: Preset, stages: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    last = len(preset.widths) - 1
    picks = [min(stage, last) for stage in range(stages)]
    return tuple(preset.widths[p] for p in picks), tuple(preset.depths[p] for p in picks)
