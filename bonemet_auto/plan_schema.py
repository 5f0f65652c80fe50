"""`plan.json`: the only contract between planning and everything after it."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bonemet_auto.geometry import Index
from bonemet_auto.schema import FORMAT_VERSION, Ours

Count = Annotated[int, Field(gt=0)]
Edge = Annotated[float, Field(gt=0)]


class NetworkPlan(Ours):
    """Shape of the network; all triples are (z, y, x), all per-stage tuples start at the stem.

    `rpn_stages` are indices into the stages; `anchor_sizes` holds, for each of them, box sizes in
    voxels of the planned spacing. `neck` is the fusion neck, or a plain feature pyramid to compare
    it with. `checkpointed` blocks compute their inside twice and keep it in memory never.
    """

    widths: tuple[Count, ...] = Field(min_length=1)
    depths: tuple[Annotated[int, Field(ge=0)], ...]
    strides: tuple[tuple[Count, Count, Count], ...]
    kernels: tuple[tuple[Count, Count, Count], ...]
    skip_width: Count
    neck_width: int = Field(ge=2)
    rpn_stages: tuple[int, ...] = Field(min_length=1)
    anchor_sizes: tuple[tuple[tuple[Edge, Edge, Edge], ...], ...]
    drop_path: float = Field(ge=0, lt=1)
    neck: Literal["fusion", "fpn"] = "fusion"
    checkpointed: bool = False

    @model_validator(mode="after")
    def _lengths_agree(self) -> "NetworkPlan":
        per_stage = {len(self.widths), len(self.depths), len(self.strides), len(self.kernels)}
        if per_stage != {len(self.widths)}:
            raise ValueError("widths, depths, strides and kernels need one entry per stage each")
        if len(self.rpn_stages) != len(self.anchor_sizes):
            raise ValueError("anchor_sizes needs one list per entry of rpn_stages")
        if len({len(sizes) for sizes in self.anchor_sizes}) > 1 or not self.anchor_sizes[0]:
            raise ValueError("anchor_sizes needs lists of one length, one size at least in each")
        if any(edge % 2 == 0 for kernel in self.kernels for edge in kernel):
            raise ValueError(f"kernels must have odd edges, found {self.kernels}")
        if any(stage not in range(len(self.widths)) for stage in self.rpn_stages):
            raise ValueError(f"rpn_stages must be stage indices below {len(self.widths)}")
        return self

    def total_stride(self, stage: int) -> Index:
        """Voxels of the patch per cell of a stage's feature map."""
        total = [1, 1, 1]
        for stride in self.strides[: stage + 1]:
            total = [t * s for t, s in zip(total, stride, strict=True)]
        return (total[0], total[1], total[2])


class TrainingPlan(Ours):
    """How long and how fast to train; `learning_rate` is AdamW's peak, Muon's is ten times that.

    `compiled` fuses the voxel-wise part of the blocks by `torch.compile`, on CUDA only.
    """

    iterations: int = Field(gt=0)
    epochs: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    warmup_share: float = Field(ge=0, lt=1)
    lesion_share: float = Field(ge=0, le=1)
    compiled: bool = False


Axes = tuple[Literal[0, 1, 2], ...]


class AugmentationPlan(Ours):
    """What is done to training windows.

    `mirror_axes` are flipped at random. `planting` is the share of windows that get a synthetic
    lesion.
    """

    mirror_axes: Axes = (0, 1, 2)
    planting: float = Field(default=0.0, ge=0, le=1)


class InferencePlan(Ours):
    """How windows are laid over a scan."""

    overlap: float = Field(ge=0, lt=1)
    mirror_axes: Axes
    skip_windows_without_bone: bool


class Target(Ours):
    """What the plan was made for; `bfloat16` where the device computes in it."""

    device: Literal["cpu", "cuda"]
    memory_gb: float
    bfloat16: bool = True


Range = tuple[float, float]


class Scope(Ours):
    """What the training scans were like, in counts and ranges that name none of them.

    Ranges run from the lowest to the highest scan. `lesions` counts those of each class.
    `least_extent_mm` is, along each axis, the smallest field of view. `bone_hu` holds the scans'
    median HU of bone, `soft_tissue_hu` that of what is as dense as soft tissue (`scope.SOFT_HU`);
    None where no scan had any. Triples are (z, y, x).
    """

    cases: Count
    patients: Count
    lesions: dict[int, int]
    lesions_of_unknown_source: int
    spacing_mm: tuple[Range, Range, Range]
    least_extent_mm: tuple[Edge, Edge, Edge]
    bone_hu: Range | None
    soft_tissue_hu: Range | None


class Plan(Ours):
    """All that planning decides, and the scope of what it was made from."""

    format_version: Literal[1] = FORMAT_VERSION
    name: str
    planner: str
    dataset: str
    target: Target
    spacing_mm: tuple[Edge, Edge, Edge]
    window_hu: tuple[float, float]
    mean_hu: float
    sd_hu: float = Field(gt=0)
    patch_size: tuple[Count, Count, Count]
    batch_size: Count
    memory_bytes: int
    network: NetworkPlan
    training: TrainingPlan
    augmentation: AugmentationPlan = AugmentationPlan()
    inference: InferencePlan
    scope: Scope | None = None

    @model_validator(mode="after")
    def _parts_fit(self) -> "Plan":
        total = self.network.total_stride(len(self.network.strides) - 1)
        if any(p % t for p, t in zip(self.patch_size, total, strict=True)):
            raise ValueError(
                f"patch_size {self.patch_size} must be divisible by the total stride {total}"
            )
        if self.window_hu[0] >= self.window_hu[1]:
            raise ValueError(f"window_hu {self.window_hu} must rise")
        unseen = set(self.inference.mirror_axes) - set(self.augmentation.mirror_axes)
        if unseen:
            raise ValueError(
                f"inference mirrors axes {sorted(unseen)}, which augmentation.mirror_axes lacks: "
                "the network never sees such windows in training"
            )
        return self
