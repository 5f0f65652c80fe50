"""One probability per patient from the lesions found in the scan."""

import math
from collections.abc import Iterable


def noisy_or(scores: Iterable[float], p_lung: Iterable[float]) -> float:
    """Estimate the probability that at least one lesion is real and of lung origin.

    `1 - prod(1 - score * p)`: lesions count as independent causes, each by the
    trust in its detection.

    Args:
        scores: detection score in [0, 1] of each lesion; a sequence or a 1D tensor.
        p_lung: probability in [0, 1] of a lung origin of each lesion, in the same order.

    Returns:
        A probability; 0.0 without lesions, for which the caller has its own rule.
    """
    pairs = zip(scores, p_lung, strict=True)
    return 1.0 - math.prod(1.0 - float(score) * float(p) for score, p in pairs)
