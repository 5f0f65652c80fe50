"""Voxel-wise agreement of one case, all its lesions taken together."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class VoxelCounts:
    """Voxels of a case: in both masks, in the reference, in the prediction, in the scan."""

    shared: int
    reference: int
    predicted: int
    total: int

    @property
    def dice(self) -> float:
        """Dice coefficient; 1 where both masks are empty, 0 where one is."""
        if self.reference + self.predicted == 0:
            return 1.0
        return 2 * self.shared / (self.reference + self.predicted)

    @property
    def sensitivity(self) -> float | None:
        """Share of the reference that was outlined; None for an empty reference."""
        return self.shared / self.reference if self.reference else None

    @property
    def specificity(self) -> float | None:
        """Share of the background that was left alone; None where there is no background.

        Near 1 for anything that is small in its scan: for comparison with publications only.
        """
        background = self.total - self.reference
        if not background:
            return None
        return 1 - (self.predicted - self.shared) / background


def count_voxels(reference: npt.NDArray[np.bool_], predicted: npt.NDArray[np.bool_]) -> VoxelCounts:
    """Count two masks (z, y, x) of one shape."""
    return VoxelCounts(
        shared=int(np.count_nonzero(reference & predicted)),
        reference=int(np.count_nonzero(reference)),
        predicted=int(np.count_nonzero(predicted)),
        total=reference.size,
    )


def dice_from_iou(iou: float) -> float:
    """Dice coefficient of two masks with this IoU."""
    return 2 * iou / (1 + iou)
