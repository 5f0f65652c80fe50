"""Six nominal cohorts as fingerprints, and the table of docs/reference/plans.md."""

import numpy as np

from bonemet_auto.fingerprint import HISTOGRAM_EDGES_HU
from bonemet_auto.plan_schema import Plan, Target
from bonemet_auto.schema import CaseFingerprint, Fingerprint, LesionFingerprint
from planners import PLANNERS
from planners.anchors import anchor_fit
from planners.default import CONTEXT_MM
from planners.spacing import lesion_sizes

GPU_8 = Target(device="cuda", memory_gb=8)
GPU_40 = Target(device="cuda", memory_gb=40)
CPU = Target(device="cpu", memory_gb=6)


def nominal(
    n_cases: int,
    spacing_mm=(1.0, 0.78, 0.78),
    shape=(400, 512, 512),
    lesion_mm=(6.0, 40.0),
    per_case: int = 3,
    seed: int = 0,
) -> Fingerprint:
    """A cohort of like scans whose lesions' edges are log-uniform between two sizes."""
    random = np.random.default_rng(seed)
    low, high = np.log(lesion_mm)
    cases = []
    for number in range(n_cases):
        lesions = []
        for instance in range(1, per_case + 1):
            edge = np.exp(random.uniform(low, high))
            size = tuple((edge * random.uniform(0.8, 1.25, 3)).tolist())
            lesions.append(
                LesionFingerprint(
                    instance=instance, source=number % 2, volume_mm3=0.5 * float(np.prod(size)),
                    size_mm=size, share_outside_bone=0.0, touching=(),
                )
            )  # fmt: skip
        cases.append(
            CaseFingerprint(
                case=f"c{number}", patient_id=f"p{number}", input_hash="", shape=shape,
                spacing_mm=spacing_mm, orientation="LPS", lesions=tuple(lesions),
                patient_label=number % 2, body_histogram=_bell(40, 60),
                bone_histogram=_bell(350, 200), lesion_histogram=_bell(200, 250),
            )
        )  # fmt: skip
    return Fingerprint(dataset="Dataset001_Nominal", cases=tuple(cases))


def _bell(mean_hu: float, sd_hu: float) -> tuple[int, ...]:
    centres = (HISTOGRAM_EDGES_HU[1:] + HISTOGRAM_EDGES_HU[:-1]) / 2
    return tuple((1e5 * np.exp(-(((centres - mean_hu) / sd_hu) ** 2) / 2)).astype(int).tolist())


COHORTS = {
    "isotropic 1 mm": nominal(70, (1.0, 1.0, 1.0)),
    "5 mm slices": nominal(70, (5.0, 0.78, 0.78), (80, 512, 512)),
    "tiny lesions, 4 mm": nominal(70, lesion_mm=(3.0, 5.0)),
    "giant lesions, 200 mm": nominal(70, lesion_mm=(80.0, 200.0)),
    "12 cases": nominal(12),
    "1000 cases": nominal(1000),
}


def nominal_table() -> str:
    """Every cohort's plan for a GPU of 8 and of 40 GB and for a CPU, as Markdown."""
    head = (
        "| Cohort | Target | Spacing, mm | Patch, voxels | Batch | Widths | Strides | RPN levels "
        "| Recall at IoU .3 / .5 | Lesions that the patch holds with 20 mm | Memory, GB |"
    )
    rows = [head, "|" + " --- |" * (head.count("|") - 1)]
    for cohort, fingerprint in COHORTS.items():
        for target in (GPU_8, GPU_40, CPU):
            planner = "fast" if target is CPU else "default"
            plan = PLANNERS[planner](fingerprint, target, "default")
            rows.append(_row(cohort, fingerprint, plan))
    return "\n".join(rows)


def _row(cohort: str, fingerprint: Fingerprint, plan: Plan) -> str:
    net = plan.network
    sizes = lesion_sizes(fingerprint, plan.spacing_mm)
    fit = anchor_fit(sizes, net.anchor_sizes)
    room = np.asarray(plan.patch_size) - 2 * CONTEXT_MM / np.asarray(plan.spacing_mm)
    cells = [
        cohort,
        f"{plan.target.device} {plan.target.memory_gb:g} GB",
        _times(plan.spacing_mm),
        _times(plan.patch_size),
        str(plan.batch_size),
        " ".join(map(str, net.widths)),
        " ".join("".join(map(str, stride)) for stride in net.strides),
        " ".join(_times(net.total_stride(stage)) for stage in net.rpn_stages),
        f"{fit.recall_at_03:.2f} / {fit.recall_at_05:.2f}",
        f"{(sizes <= room).all(axis=1).mean():.0%}",
        f"{plan.memory_bytes / 1e9:.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _times(values) -> str:
    return " x ".join(f"{value:.3g}" for value in values)
