"""`plan.md`: every number of a plan with its rule and its inputs, for people."""

import numpy as np

from bonemet_auto.model.footprint import HEADROOM
from bonemet_auto.plan_schema import Plan
from bonemet_auto.schema import Fingerprint
from planners import anchors, default, memory, spacing
from planners.fast import FAST
from planners.preset import FAMILIES


def explain_plan(plan: Plan, fingerprint: Fingerprint) -> str:
    """Markdown that says for each value of a plan by which rule and from what it came."""
    sections = [
        _heading(plan, fingerprint),
        _table("Grid and intensities", _grid_rows(plan, fingerprint)),
        _table("Patch and memory", _patch_rows(plan, fingerprint)),
        _table("Network", _network_rows(plan, fingerprint)),
        _table("Anchors", _anchor_rows(plan, fingerprint)),
        _table("Training and inference", _running_rows(plan, fingerprint)),
    ]
    return "\n\n".join(sections) + "\n"


Row = tuple[str, object, str, str]


def _heading(plan: Plan, fingerprint: Fingerprint) -> str:
    patients = len({case.patient_id for case in fingerprint.cases})
    return (
        f"# Plan `{plan.name}` of {plan.dataset}\n\n"
        f"Made by planner `{plan.planner}` for {plan.target.device} with "
        f"{plan.target.memory_gb:g} GB, from {len(fingerprint.cases)} cases of {patients} patients "
        f"with {default.count_lesions(fingerprint)} lesions. Triples are (z, y, x). "
        "Research use only."
    )


def _table(title: str, rows: list[Row]) -> str:
    lines = [f"## {title}", "", "| Value | Is | Rule | Inputs |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {name} | {_text(value)} | {rule} | {given} |" for name, value, rule, given in rows
    ]
    return "\n".join(lines)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(_text(item) for item in value) + ")"
    return str(value)


def _grid_rows(plan: Plan, fingerprint: Fingerprint) -> list[Row]:
    spacings = np.array([case.spacing_mm for case in fingerprint.cases])
    low, median, high = (
        _text(np.percentile(spacings, q, axis=0).round(3).tolist()) for q in (0, 50, 100)
    )
    lesion_voxels = FAST.coarsest_lesion_voxels if plan.planner == FAST.planner else None
    derived = spacing.target_spacing(fingerprint, lesion_voxels)
    rule = (
        "median per axis; 10th percentile on an axis more than 3 times coarser, with fewer voxels"
    )
    if lesion_voxels is not None:
        small_mm = spacing.small_lesion_mm(fingerprint)
        rule += (
            f"; coarsened until a small lesion ({small_mm:.1f} mm) spans {lesion_voxels:g} voxels, "
            f"to {spacing.COARSENED_MM:g} mm at most"
        )
    if derived != plan.spacing_mm:
        rule = f"asked for (derived: {_text(derived)})"
    both = "histograms of bone and lesion voxels, 16 HU bins"
    return [
        ("spacing, mm", plan.spacing_mm, rule, f"smallest {low}, median {median}, largest {high}"),
        (
            "window, HU",
            plan.window_hu,
            f"0.5 and 99.5 percentile, held within {_text(spacing.LOW_HU)} and "
            f"{_text(spacing.HIGH_HU)}",
            both,
        ),
        ("mean, HU", plan.mean_hu, "mean of the clipped values", both),
        ("standard deviation, HU", plan.sd_hu, "of the clipped values", both),
    ]


def _patch_rows(plan: Plan, fingerprint: Fingerprint) -> list[Row]:
    limit = default.size_limit(fingerprint, plan.spacing_mm)
    sizes = spacing.lesion_sizes(fingerprint, plan.spacing_mm)
    context = 2 * default.CONTEXT_MM / np.asarray(plan.spacing_mm)
    covered = (sizes + context <= np.asarray(plan.patch_size)).all(axis=1).mean()
    total = plan.network.total_stride(len(plan.network.strides) - 1)
    extent_mm = np.multiply(plan.patch_size, plan.spacing_mm).round(1).tolist()
    return [
        (
            "patch, voxels",
            plan.patch_size,
            "largest cube in mm that fits the memory, no larger than the 95th percentile scan, "
            f"a multiple of the total stride {_text(total)}; or asked for",
            f"{_text(extent_mm)} mm; scans {_text(limit)} voxels; holds {covered:.0%} of the "
            f"lesions with {default.CONTEXT_MM:g} mm around them",
        ),
        (
            "checkpointed blocks",
            "yes" if plan.network.checkpointed else "no",
            "where only that makes windows larger, and they do not span a large lesion (99th "
            f"percentile) with {default.CONTEXT_MM:g} mm around it otherwise; costs time",
            f"large lesion {default.large_lesion_mm(sizes, plan.spacing_mm):.0f} mm",
        ),
        (
            "batch size",
            plan.batch_size,
            "largest of the planner's range that fits the memory",
            f"{default.MEMORY_SHARE:.0%} of {plan.target.memory_gb:g} GB",
        ),
        (
            "memory, GB",
            round(plan.memory_bytes / 1e9, 2),
            "peak of a training step of this network on tensors without values, "
            f"{HEADROOM[plan.target.device]:g} times for the allocator, and "
            f"{memory.CONTEXT_BYTES[plan.target.device] / 1e9:g} GB for libraries",
            "patch, batch and network, in " + ("bfloat16" if plan.target.bfloat16 else "float32"),
        ),
    ]


def _network_rows(plan: Plan, fingerprint: Fingerprint) -> list[Row]:
    net = plan.network
    count = memory.parameters(memory.Blueprint.of(net))
    lesions = default.count_lesions(fingerprint)
    family = (
        "planner's constant"
        if plan.planner == FAST.planner
        else "ConvNeXt-V2 family by memory and number of lesions"
    )
    given = f"{plan.target.memory_gb:g} GB, {lesions} lesions; about {count / 1e6:.1f} M parameters"
    total = net.total_stride(len(net.strides) - 1)
    sizes = spacing.lesion_sizes(fingerprint, plan.spacing_mm)
    largest_mm = default.large_lesion_mm(sizes, plan.spacing_mm)
    deepest = tuple(p // t for p, t in zip(plan.patch_size, total, strict=True))
    return [
        ("widths", net.widths, family, given),
        ("depths", net.depths, family, given),
        (
            "strides",
            net.strides,
            "an axis is halved while its spacing is below twice the finest and the deepest map "
            "keeps enough cells (4; 2 in the fast planner); as many stages as let "
            f"{default.DEEPEST_CELLS} cells span the largest lesions and {default.CONTEXT_MM:g} mm "
            "around them",
            f"spacing and patch; lesions up to {largest_mm:.0f} mm (99th percentile); the deepest "
            f"map is {_text(deepest)}",
        ),
        (
            "kernels",
            net.kernels,
            "3 along axes whose spacing has come within twice the finest, 1 before",
            "spacing and strides",
        ),
        ("skip width, neck width", (net.skip_width, net.neck_width), "planner's constants", "none"),
        ("drop path", net.drop_path, "planner's constant", "none"),
    ]


def _anchor_rows(plan: Plan, fingerprint: Fingerprint) -> list[Row]:
    sizes = spacing.lesion_sizes(fingerprint, plan.spacing_mm)
    fit = anchors.anchor_fit(sizes, plan.network.anchor_sizes)
    edge = anchors.small_edge(sizes, plan.spacing_mm)
    levels = [plan.network.total_stride(stage) for stage in plan.network.rpn_stages]
    rows: list[Row] = [
        (
            "levels (stages)",
            plan.network.rpn_stages,
            "strides 4 to 16; stride 2 too where small lesions are below "
            f"{_fine_level_voxels(plan):g} voxels",
            f"10th percentile of the lesions' edge: {edge:.1f} voxels",
        )
    ]
    for stride, level in zip(levels, plan.network.anchor_sizes, strict=True):
        rule = "seeded search over log sizes for the highest mean best IoU"
        rows.append(
            (f"anchors at stride {_text(stride)}", level, rule, f"{len(sizes)} lesion boxes")
        )
    found = (
        ("mean best IoU", fit.mean_best_iou),
        ("recall at IoU 0.3", fit.recall_at_03),
        ("recall at IoU 0.5", fit.recall_at_05),
    )
    how = "best anchor for each lesion, centres on each other"
    rows += [(name, round(value, 3), how, f"{len(sizes)} lesion boxes") for name, value in found]
    return rows


def _fine_level_voxels(plan: Plan) -> float:
    preset = FAST if plan.planner == FAST.planner else FAMILIES[0][2]
    return preset.fine_level_voxels


def _running_rows(plan: Plan, fingerprint: Fingerprint) -> list[Row]:
    training, inference = plan.training, plan.inference
    outside = default.share_outside_bone(fingerprint)
    constant = "planner's constant"
    return [
        ("iterations, epochs", (training.iterations, training.epochs), constant, "none"),
        (
            "learning rate of AdamW; Muon's is ten times it",
            training.learning_rate,
            constant,
            "none",
        ),
        ("weight decay", training.weight_decay, constant, "none"),
        ("warm-up share", training.warmup_share, constant, "none"),
        ("share of patches on lesions", training.lesion_share, constant, "none"),
        ("axes mirrored in training", plan.augmentation.mirror_axes, constant, "none"),
        ("overlap of windows", inference.overlap, constant, "none"),
        ("axes mirrored at inference", inference.mirror_axes, constant, "none"),
        (
            "windows without bone are skipped",
            inference.skip_windows_without_bone,
            f"unless more than {default.OUTSIDE_BONE_SHARE:.0%} of the lesions lie mostly outside "
            "bone",
            f"{outside:.1%} of the lesions",
        ),
    ]
