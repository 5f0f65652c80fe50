"""Which window of which case becomes training sample k."""

from collections.abc import Sequence

import numpy as np

from bonemet_auto.geometry import Index
from bonemet_auto.schema import StoredCase, StoredLesion


class PatchSampler:
    """Draws windows: a fixed share around lesions, the others around bone.

    Lesions are drawn uniformly over lesions, not over voxels or cases, so that a small one counts
    as much as a large one; before that the source is drawn, so that a rare class is seen as often.
    Those of unknown source are drawn as often as they occur: they are no class to balance.

    Args:
        cases: all training cases.
        patch_size: voxels (z, y, x).
        lesion_share: share of windows around a lesion; exact over any long run of samples.
    """

    def __init__(self, cases: Sequence[StoredCase], patch_size: Index, lesion_share: float) -> None:
        self.cases = list(cases)
        self.patch_size = np.array(patch_size)
        self.lesion_share = lesion_share
        lesions = [(n, lesion) for n, case in enumerate(self.cases) for lesion in case.lesions]
        self._unknown = [item for item in lesions if item[1].is_lung is None]
        by_source = (
            [item for item in lesions if item[1].is_lung is source] for source in (False, True)
        )
        self._sources = [group for group in by_source if group]
        self._unknown_share = len(self._unknown) / max(1, len(lesions))

    def draw(self, sample: int, rng: np.random.Generator) -> tuple[int, Index]:
        """Case number and first voxel of the window of sample `sample`; it may stick out."""
        around_lesion = int((sample + 1) * self.lesion_share) > int(sample * self.lesion_share)
        if around_lesion and self.has_lesions:
            return self._around_lesion(rng)
        number = int(rng.integers(len(self.cases)))
        case = self.cases[number]
        if case.bone_voxels:
            centre = np.array(case.bone_voxels[rng.integers(len(case.bone_voxels))])
        else:
            centre = rng.integers(0, case.shape)
        return number, self._inside(number, centre - self.patch_size // 2)

    @property
    def has_lesions(self) -> bool:
        """Whether any case has a lesion."""
        return bool(self._sources or self._unknown)

    def draw_lesion(self, rng: np.random.Generator) -> tuple[int, StoredLesion]:
        """Case number and record of a lesion; there must be one."""
        if self._unknown and rng.random() < self._unknown_share:
            lesions = self._unknown
        else:
            lesions = self._sources[rng.integers(len(self._sources))]
        return lesions[rng.integers(len(lesions))]

    def _around_lesion(self, rng: np.random.Generator) -> tuple[int, Index]:
        number, lesion = self.draw_lesion(rng)
        low, high = np.array(lesion.box_voxel_zyx).reshape(2, 3)
        # A lesion that fits is wholly inside, anywhere; of a larger one any part is in the middle.
        first, last = high - self.patch_size, low
        middle = low - self.patch_size / 2
        fits = first <= last
        start = np.where(
            fits,
            rng.uniform(np.minimum(first, last), last),
            rng.uniform(middle, middle + high - low),
        )
        return number, self._inside(number, np.round(start).astype(int))

    def _inside(self, number: int, start: np.ndarray) -> Index:
        """Move a window into a case that is large enough, else centre the case in it."""
        spare = np.array(self.cases[number].shape) - self.patch_size
        moved = np.where(spare >= 0, np.clip(start, 0, np.maximum(spare, 0)), spare // 2)
        return int(moved[0]), int(moved[1]), int(moved[2])
