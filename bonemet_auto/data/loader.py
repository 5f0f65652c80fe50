"""The torch data set: from a sample number to an image and its targets."""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from bonemet_auto.data.augment import (
    REACH,
    SPATIAL_SHARE,
    Float,
    Int,
    change_intensity,
    mirror,
    warp,
)
from bonemet_auto.data.paste import cut_out, near_bone, paste, vary
from bonemet_auto.data.plant import plant
from bonemet_auto.data.sampling import PatchSampler
from bonemet_auto.errors import PlanError
from bonemet_auto.model.roi_sampling import Targets
from bonemet_auto.plan_schema import Plan
from bonemet_auto.preprocess import normalise
from bonemet_auto.schema import StoredCase, StoredLesion
from bonemet_auto.store import OpenCase, open_case, read_meta

MIN_VISIBLE_SHARE = 0.2
"""A lesion cut by the window counts as one to detect if at least this share of it is left."""

PASTE_SHARE = 0.8
MOST_PASTED = 2
"""Into this share of windows up to so many lesions of the cohort are pasted."""

PREFETCHED = 4
"""Batches that each loader process makes in advance."""

UNBOXED = 10_000
"""Instance value of voxels that belong to a lesion, but to none that has to be detected."""


Sample = tuple[Tensor, Targets, str]


@dataclass(frozen=True)
class Batch:
    """Images (N, 1, Z, Y, X) float32, one target each, and the cases they come from."""

    images: Tensor
    targets: list[Targets]
    cases: list[str]

    def pin_memory(self) -> "Batch":
        """Called by the loader where a GPU is used."""
        return Batch(self.images.pin_memory(), self.targets, self.cases)


class PatchDataset(Dataset[Sample]):
    """Augmented training windows, numbered without end.

    Args:
        folder: the plan's `cases` folder.
        names: training cases.
        plan: gives patch size, normalisation and the share of lesion windows.
        seed: with the sample number it fixes everything about a sample.
        augmented: False gives the plain windows, for looking and for checks.
    """

    def __init__(
        self, folder: Path, names: Sequence[str], plan: Plan, seed: int, augmented: bool = True
    ) -> None:
        self._opened: dict[int, OpenCase] = {}
        self.folder = folder
        self.names = list(names)
        self.plan = plan
        self.seed = seed
        self.augmented = augmented
        cases = [read_meta(folder, name) for name in names]
        for case in cases:
            _require_planned_grid(case, plan)
        self.sampler = PatchSampler(cases, plan.patch_size, plan.training.lesion_share)

    def __getitem__(self, sample: int) -> Sample:
        """Window, targets and case name of a sample number."""
        rng = np.random.default_rng([self.seed, sample])
        np.random.seed(int(rng.integers(2**32)))  # noqa: NPY002, batchgenerators draws from it
        random.seed(int(rng.integers(2**32)))
        number, start = self.sampler.draw(sample, rng)
        case = self._case(number)
        image, instances, lesions = self._window(case, start, rng)
        return torch.from_numpy(image)[None], window_targets(instances, lesions), case.meta.case

    def _case(self, number: int) -> OpenCase:
        # Opened where it is used: handles must not cross into worker processes.
        if number not in self._opened:
            self._opened[number] = open_case(self.folder, self.names[number])
        return self._opened[number]

    def _window(
        self, case: OpenCase, start: tuple[int, int, int], rng: np.random.Generator
    ) -> tuple[Float, Int, list[StoredLesion]]:
        size, plan = self.plan.patch_size, self.plan
        warped = self.augmented and rng.random() < SPATIAL_SHARE
        if warped:
            margin = [round(n * (REACH - 1) / 2) for n in size]
            start = (start[0] - margin[0], start[1] - margin[1], start[2] - margin[2])
            size = (size[0] + 2 * margin[0], size[1] + 2 * margin[1], size[2] + 2 * margin[2])
        hu, instances = case.crop(start, size)
        lesions = list(case.meta.lesions)
        planting = plan.augmentation.planting
        if self.augmented and planting and rng.random() < planting:
            new = plant(hu, instances, plan.spacing_mm, _free_instance(lesions), rng)
            lesions += [] if new is None else [new]
        image = self._normalised(hu)
        if self.augmented and self.sampler.has_lesions and rng.random() < PASTE_SHARE:
            lesions += self._paste(image, instances, near_bone(hu), lesions, rng)
        if warped:
            image, instances = warp(image, instances, plan.patch_size, plan.spacing_mm)
        if self.augmented:
            axes = plan.augmentation.mirror_axes
            image, instances = mirror(change_intensity(image), instances, axes, rng)
        return np.ascontiguousarray(image), np.ascontiguousarray(instances), lesions

    def _paste(
        self,
        image: Float,
        instances: Int,
        bone: npt.NDArray[np.bool_],
        lesions: Sequence[StoredLesion],
        rng: np.random.Generator,
    ) -> list[StoredLesion]:
        """Paste lesions of the cohort into a window, in place; their records, ids of their own."""
        spacing_mm = self.plan.spacing_mm
        pasted: list[StoredLesion] = []
        for _ in range(rng.integers(1, MOST_PASTED + 1)):
            number, lesion = self.sampler.draw_lesion(rng)
            cutout = cut_out(self._case(number), lesion, spacing_mm, self._normalised)
            cutout = vary(cutout, spacing_mm, rng)
            instance = _free_instance([*lesions, *pasted])
            if paste(image, instances, bone, cutout, instance, spacing_mm, rng):
                volume = int(cutout.mask.sum())
                pasted.append(
                    lesion.model_copy(update={"instance": instance, "volume_voxel": volume})
                )
        return pasted

    def _normalised(self, hu: npt.NDArray[np.int16]) -> Float:
        return normalise(hu, self.plan.window_hu, self.plan.mean_hu, self.plan.sd_hu)


def _free_instance(lesions: Sequence[StoredLesion]) -> int:
    """The lowest id that no lesion has."""
    used = {lesion.instance for lesion in lesions}
    return next(free for free in count(1) if free not in used)


def _require_planned_grid(case: StoredCase, plan: Plan) -> None:
    """Refuse cases that were stored at another spacing than the plan's, as after an edit of it."""
    extents = np.multiply(case.crop_shape, case.original.spacing_mm)
    if (np.abs(extents / plan.spacing_mm - case.shape) > 1).any():
        raise PlanError(
            f"case {case.case} is stored at {case.spacing_mm} mm (z, y, x), plan {plan.name} says "
            f"{plan.spacing_mm}. Preprocess again: bonemet_plan_and_preprocess --keep-plan."
        )


def window_targets(instances: Int, lesions: Sequence[StoredLesion]) -> Targets:
    """Boxes, renumbered instance map and sources of those of the lesions that a window shows."""
    boxes, is_lung = [], []
    renumbered = np.where(instances > 0, UNBOXED, 0).astype(np.int16)
    found = ndimage.find_objects(instances)
    for lesion in lesions:
        where = found[lesion.instance - 1] if lesion.instance <= len(found) else None
        if where is None:
            continue
        inside = instances[where] == lesion.instance
        if inside.sum() < MIN_VISIBLE_SHARE * lesion.volume_voxel:
            continue
        boxes.append([*(s.start for s in where), *(s.stop for s in where)])
        is_lung.append(-1 if lesion.is_lung is None else int(lesion.is_lung))
        renumbered[where][inside] = len(boxes)
    return Targets(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 6),
        instances=torch.from_numpy(renumbered),
        is_lung=torch.tensor(is_lung, dtype=torch.long),
    )


class _Numbers(Sampler[list[int]]):
    """Batches of consecutive sample numbers: resuming at step s needs no state but s."""

    def __init__(
        self, first_step: int, last_step: int, batch_size: int, places: Sequence[int]
    ) -> None:
        self.steps = range(first_step, last_step)
        self.batch_size = batch_size
        self.places = places

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            yield [step * self.batch_size + place for place in self.places]

    def __len__(self) -> int:
        return len(self.steps)


def collate(samples: list[Sample]) -> Batch:
    """Stack windows; targets stay a list because lesions differ in number."""
    images, targets, cases = zip(*samples, strict=True)
    return Batch(torch.stack(images), list(targets), list(cases))


def batches(
    dataset: PatchDataset,
    first_step: int,
    last_step: int,
    batch_size: int,
    workers: int,
    places: Sequence[int] | None = None,
) -> Iterable[Batch]:
    """Loader of the batches of training steps `first_step` to `last_step - 1`, in order.

    With `places` only those places of each batch are loaded: the share of one of several processes.
    """
    places = range(batch_size) if places is None else places
    return DataLoader(
        dataset,
        batch_sampler=_Numbers(first_step, last_step, batch_size, places),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=_one_thread,
        prefetch_factor=PREFETCHED if workers else None,
    )


def _one_thread(_worker: int) -> None:
    """Workers beside the model must not fight it for cores."""
    torch.set_num_threads(1)
