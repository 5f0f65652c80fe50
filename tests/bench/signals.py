"""What `tests.bench.dense_study` changes, one at a time."""

from dataclasses import dataclass, field
from typing import Any

from bonemet_auto.training.schedule import LOSS_WEIGHTS


@dataclass(frozen=True)
class Signal:
    """A change of what a network learns from, or of how.

    Attributes:
        plan: values of plan fields, by dotted name.
        constants: values of constants, by dotted name within `bonemet_auto`.
        dataset: what is trained on instead of fold 0 of the medium phantoms.
    """

    plan: dict[str, Any] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    dataset: str | None = None


def _plan(**values: Any) -> Signal:
    return Signal(plan={name.replace("__", "."): value for name, value in values.items()})


def _constants(**values: Any) -> Signal:
    return Signal(constants={name.replace("__", "."): value for name, value in values.items()})


MORE = "Dataset128_More"

SIGNALS = {
    "today": Signal(),
    "8 windows of 32x32x32": _plan(patch_size=(32, 32, 32), batch_size=8),
    "2 windows of 32x64x64": _plan(patch_size=(32, 64, 64), batch_size=2),
    "2 windows": _plan(batch_size=2),
    "rate x 0.5": _plan(training__learning_rate=0.001),
    "rate x 2": _plan(training__learning_rate=0.004),
    "warm-up 15 %": _plan(training__warmup_share=0.15),
    "decay x 4": _plan(training__weight_decay=0.2),
    "drop path 0.2": _plan(network__drop_path=0.2),
    "lesion share 0.25": _plan(training__lesion_share=0.25),
    "lesion share 0.75": _plan(training__lesion_share=0.75),
    "lesion weight 2": _constants(model__mask_rcnn__LESION_WEIGHT=2.0),
    "lesion weight 20": _constants(model__mask_rcnn__LESION_WEIGHT=20.0),
    "no paste": _constants(data__loader__PASTE_SHARE=0.0),
    "up to 4 pasted": _constants(data__loader__MOST_PASTED=4, data__loader__PASTE_SHARE=1.0),
    "up to 8 pasted": _constants(data__loader__MOST_PASTED=8, data__loader__PASTE_SHARE=1.0),
    "left and right only": _plan(augmentation__mirror_axes=(2,)),
    "planted into half": _plan(augmentation__planting=0.5),
    "no warp": _constants(data__loader__SPATIAL_SHARE=0.0),
    "half as wide again": _plan(network__widths=(48, 96, 144, 192)),
    "twice as deep": _plan(network__depths=(0, 4, 4, 2)),
    "kernel 5": _plan(network__kernels=((5, 5, 5),) * 4),
    "stem of stride 1": _plan(
        network__strides=((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
    ),
    "longer average": _constants(training__schedule__EMA_HORIZON_SHARE=0.15),
    "Dice weight 0.3": _constants(
        training__schedule__LOSS_WEIGHTS=LOSS_WEIGHTS | {"dense_dice": 0.3}
    ),
    "128 scans instead of 32": Signal(dataset=MORE),
}
