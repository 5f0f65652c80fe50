"""Does the estimated Dice of a mask tell how good it is, and would it help the score?

    python -m tests.bench.mask_quality PRED REF

PRED is a folder of `bonemet_predict`, REF annotated cases. Over lesions and candidates that overlap
an annotated lesion with a Dice above .2: rank correlation, means and mean absolute error. Then how
well score, quality and their product tell those from all others.
"""

import sys
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from bonemet_auto.images import read_instances
from bonemet_auto.result_schema import CasePrediction
from bonemet_auto.schema import read_json

HIT_DICE = 0.2


def main() -> None:
    predictions, reference = Path(sys.argv[1]), Path(sys.argv[2])
    rows = []
    for path in sorted(reference.glob("*.nii.gz")):
        annotated = read_instances(path).array
        case = path.name.removesuffix(".nii.gz")
        for folder in (predictions, predictions / "candidates"):
            found = read_json(folder / f"{case}.json", CasePrediction)
            drawn = read_instances(folder / f"{case}.nii.gz").array
            for lesion in found.lesions:
                dice = best_dice(drawn == lesion.id, annotated)
                rows.append((lesion.score, lesion.mask_quality, dice))
    score, quality, dice = np.array(rows).T
    hit = dice > HIT_DICE
    print(f"{len(rows)} lesions and candidates, {hit.sum()} on an annotated lesion")
    print(f"rank correlation {spearmanr(quality[hit], dice[hit]).statistic:.2f}")
    print(f"mean estimate {quality[hit].mean():.2f}, mean Dice {dice[hit].mean():.2f}")
    print(f"mean absolute error {np.abs(quality[hit] - dice[hit]).mean():.3f}")
    for name, values in (("score", score), ("quality", quality), ("product", score * quality)):
        print(f"AUC of the {name} for being on one: {roc_auc_score(hit, values):.3f}")


def best_dice(mask: np.ndarray, annotated: np.ndarray) -> float:
    """Dice with the annotated lesion that overlaps most."""
    ids, shared = np.unique(annotated[mask], return_counts=True)
    sizes = np.bincount(annotated.ravel())
    return max(
        (2 * n / (mask.sum() + sizes[i]) for i, n in zip(ids, shared, strict=True) if i),
        default=0.0,
    )


if __name__ == "__main__":
    main()
