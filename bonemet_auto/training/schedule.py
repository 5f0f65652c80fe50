"""Everything that changes over a run, as plain functions of the step."""

import math

LOSS_WEIGHTS = {
    "dense_dice": 1.0,
    "dense_entropy": 1.0,
    "coarse": 0.5,
    "rpn_score": 1.0,
    "rpn_box": 0.5,
    "roi_score": 1.0,
    "roi_box": 0.5,
    "mask": 0.5,
    "quality": 0.5,
    "source": 0.5,
}
DENSE_LOSSES = ("dense_dice", "dense_entropy", "coarse")
DETECTION_LOSSES = tuple(name for name in LOSS_WEIGHTS if name not in DENSE_LOSSES)

DENSE_ONLY_SHARE = 0.4
"""The dense branch learns longest, and a step of it alone costs half to two thirds of a whole
one. Longer was tried: ADR 0021."""
RAMP_SHARE = 0.10
EMA_MAX_DECAY = 0.999
EMA_HORIZON_SHARE = 0.05


def learning_rate(step: int, total: int, peak: float, warmup_share: float) -> float:
    """Linear warm-up to `peak`, then half a cosine down to 1 % of it."""
    warmup = max(1, round(total * warmup_share))
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def is_dense_only(step: int, total: int) -> bool:
    """Whether the detection losses still have no weight, so that they need not be computed."""
    weights = loss_weights(step, total)
    return not any(weights[name] for name in DETECTION_LOSSES)


def loss_weights(step: int, total: int) -> dict[str, float]:
    """Weight of each loss: the dense branch learns first, then the detection losses are faded in.

    The RPN and the RoI heads read the dense branch's answer; before it means anything they would
    learn from noise.
    """
    ramp = (step / max(1, total) - DENSE_ONLY_SHARE) / RAMP_SHARE
    factor = min(1.0, max(0.0, ramp))
    return {
        name: weight * (factor if name in DETECTION_LOSSES else 1.0)
        for name, weight in LOSS_WEIGHTS.items()
    }


def ema_decay(step: int, total: int) -> float:
    """Decay of the weights' moving average; its horizon never exceeds 5 % of the run."""
    longest = 1 - 1 / max(2.0, total * EMA_HORIZON_SHARE)
    return min(EMA_MAX_DECAY, longest, (1 + step) / (10 + step))
