"""The `default` planner, for GPUs, and the derivation that all planners share."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import numpy as np
import numpy.typing as npt

from bonemet_auto.errors import PlanError
from bonemet_auto.geometry import Index, Triple
from bonemet_auto.plan_schema import InferencePlan, NetworkPlan, Plan, Target, TrainingPlan
from bonemet_auto.schema import Fingerprint
from bonemet_auto.scope import scope_of
from planners.anchors import Sizes, choose_stages, search_anchors
from planners.memory import Blueprint, training_bytes
from planners.patch import Topology, given_patch, largest_patch, shape_patch
from planners.preset import Preset, choose_family
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

    def blueprint(found: Topology, checkpointed: bool) -> Blueprint:
        return _blueprint(preset, found, lesions, spacing, checkpointed)

    def patch_for(checkpointed: bool) -> tuple[Index, Topology]:
        made = partial(blueprint, checkpointed=checkpointed)
        return _patch(preset, depth, fingerprint, target, spacing, patch_size, made)

    depth = depth_for(lesions, spacing, preset.stages)
    limit_mm = np.asarray(size_limit(fingerprint, spacing)) * np.asarray(spacing)
    wanted_mm = np.minimum(large_lesion_mm(lesions, spacing) + 2 * CONTEXT_MM, limit_mm)
    patch, found, checkpointed = _memory_choice(patch_for, spacing, wanted_mm)
    network = blueprint(found, checkpointed)
    batch = _batch_size(preset, patch, network, target)
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
        memory_bytes=training_bytes(network, patch, batch, target),
        network=_network(preset, network, lesions),
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
        scope=scope_of(fingerprint),
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
    voxels = (large_lesion_mm(lesions, spacing) + 2 * CONTEXT_MM) / min(spacing)
    return int(np.clip(np.ceil(np.log2(voxels / DEEPEST_CELLS)), *stages))


def large_lesion_mm(lesions: Sizes, spacing: Triple) -> float:
    """Longest edge of a large lesion (99th percentile)."""
    edges = np.percentile(lesions * np.asarray(spacing), LARGE_LESION_PERCENTILE, axis=0)
    return float(edges.max())


def _memory_choice(
    patch_for: Callable[[bool], tuple[Index, Topology]],
    spacing: Triple,
    wanted_mm: npt.NDArray[np.float64],
) -> tuple[Index, Topology, bool]:
    """Patch, topology, and whether blocks are checkpointed, which costs time.

    They are where only that makes windows larger, and those without it do not span a large lesion
    and its surroundings.

    Raises:
        PlanError: nothing fits even so.
    """
    try:
        plain = patch_for(False)
    except PlanError:
        # Should this not fit either, its own error asks for the least.
        return (*patch_for(True), True)
    if (np.asarray(plain[0]) * np.asarray(spacing) >= wanted_mm).all():
        return (*plain, False)
    with suppress(PlanError):
        frugal = patch_for(True)
        if np.prod(frugal[0]) > np.prod(plain[0]):
            return (*frugal, True)
    return (*plain, False)


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


def _blueprint(
    preset: Preset, found: Topology, lesions: Sizes, spacing: Triple, checkpointed: bool
) -> Blueprint:
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
        checkpointed=checkpointed,
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
        checkpointed=blueprint.checkpointed,
    )


def _per_stage(preset: Preset, stages: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    last = len(preset.widths) - 1
    picks = [min(stage, last) for stage in range(stages)]
    return tuple(preset.widths[p] for p in picks), tuple(preset.depths[p] for p in picks)
