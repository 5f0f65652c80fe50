"""What the planners fix before they have seen the data: the ConvNeXt-V2 families."""

from dataclasses import dataclass, replace


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


def choose_family(memory_gb: float, lesions: int) -> Preset:
    """The last family whose memory and number of lesions are both reached."""
    return [preset for gb, least, preset in FAMILIES if memory_gb >= gb and lesions >= least][-1]
