"""From raw cases to cases on the planned grid: crop to the body, resample, store.

`to_plan_grid` and `normalise` are shared with prediction, so that a scan looks to the network then
as it did in training. A second run finds what is there and does nothing.
"""

import hashlib
import logging
import math
import multiprocessing
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from tqdm import tqdm

from bonemet_auto.errors import BonemetError, DataError
from bonemet_auto.fingerprint import BODY_THRESHOLD_HU, bone_mask
from bonemet_auto.geometry import Geometry, Index, Triple
from bonemet_auto.images import read_hu, read_instances
from bonemet_auto.plan_schema import Plan
from bonemet_auto.processor import INTERPRETER_BYTES
from bonemet_auto.raw_dataset import RawCase, RawDataset, read_case_labels
from bonemet_auto.resample import GridMap, resample_hu, resample_instances
from bonemet_auto.schema import (
    CaseFingerprint,
    CaseLabels,
    FailedCase,
    Fingerprint,
    GeometryRecord,
    StoredCase,
    StoredLesion,
)
from bonemet_auto.store import open_case, read_meta, write_case, write_checksums
from bonemet_auto.upright import upright

BYTES_PER_VOXEL, BYTES_PER_STORED_VOXEL = 8, 14
"""Of a process at work, for the scan's own grid and for the planned one.

A scan of 300x512x512 voxels took two thirds of it (int16; other types take more to read).
"""
BONE_SAMPLES = 512
FAINT_VOXELS = 4
CODE_VERSION = 4
"""Part of every case's hash: raise it when the same input gives other stored values."""
_COARSE_MM = 4.0
_SMALLEST_BODY_PART = 0.02
"""Share of the largest region: keeps the second leg and the arms, drops noise in the air."""
_OUR_FAULT = "Run with --verbose for the traceback; if the files are sound, report it."

Int16Array = npt.NDArray[np.int16]
UInt16Array = npt.NDArray[np.uint16]
Crop = tuple[Index, Index]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlanGrid:
    """A scan on the planned grid.

    Attributes:
        hu: (Z, Y, X) int16.
        crop_start: first voxel of the body in the original volume.
        crop_shape: original voxels of the body's box.
        spacing_mm: exact voxel edges of `hu`; the planned ones up to rounding of the shape.
    """

    hu: Int16Array
    crop_start: Index
    crop_shape: Index
    spacing_mm: Triple

    @property
    def grid(self) -> GridMap:
        """Coordinates of `hu` against those of the original volume."""
        z, y, x = self.hu.shape
        return GridMap(self.crop_start, self.crop_shape, (z, y, x))


@dataclass(frozen=True)
class _Job:
    """All that a worker needs for one case; pickled."""

    case: RawCase
    fingerprint: CaseFingerprint
    positive_class: int
    spacing_mm: Triple
    folder: Path

    @property
    def input_hash(self) -> str:
        """Changes whenever the stored arrays would."""
        parts = f"{self.fingerprint.input_hash} {self.spacing_mm} {CODE_VERSION}"
        return hashlib.sha256(parts.encode()).hexdigest()


def normalise(
    hu: npt.NDArray[np.generic], window_hu: tuple[float, float], mean_hu: float, sd_hu: float
) -> npt.NDArray[np.float32]:
    """Clip to the window, subtract the mean, divide by the standard deviation; float32."""
    clipped = np.clip(hu.astype(np.float32), *window_hu)
    return (clipped - np.float32(mean_hu)) / np.float32(sd_hu)


def body_crop(hu: Int16Array, spacing_mm: Triple) -> Crop:
    """Start and shape of the box around the body, searched on a grid of about 4 mm.

    The body is the largest connected region above -500 HU and every region of at least 2 % of it
    (the other leg, arms). Without any such voxel the whole volume is kept.
    """
    steps = [max(1, round(_COARSE_MM / edge)) for edge in spacing_mm]
    coarse = hu[:: steps[0], :: steps[1], :: steps[2]] > BODY_THRESHOLD_HU
    regions, _ = ndimage.label(coarse)
    sizes = np.bincount(regions.ravel())
    sizes[0] = 0
    z, y, x = hu.shape
    if not sizes.any():
        return (0, 0, 0), (z, y, x)
    body = (sizes >= _SMALLEST_BODY_PART * sizes.max())[regions]
    ends = []
    for axis, step in enumerate(steps):
        kept = np.flatnonzero(body.any(axis=tuple({0, 1, 2} - {axis})))
        low, high = (kept[0] - 1) * step + 1, (kept[-1] + 1) * step
        ends.append((max(0, int(low)), min(hu.shape[axis], int(high))))
    start, stop = zip(*ends, strict=True)
    return start, (stop[0] - start[0], stop[1] - start[1], stop[2] - start[2])


def to_plan_grid(
    hu: Int16Array, spacing_mm: Triple, target_spacing_mm: Triple, keep: Crop | None = None
) -> PlanGrid:
    """Crop a scan to the body and resample it with cubic B-splines.

    Args:
        hu: (Z, Y, X) int16 on the scanner's grid.
        spacing_mm: its voxel edges (z, y, x).
        target_spacing_mm: the planned ones.
        keep: start and shape of a box that must not be cropped away (annotated lesions).
    """
    start, shape = body_crop(hu, spacing_mm)
    if keep is not None:
        stop = np.maximum(np.add(start, shape), np.add(*keep))
        low = np.minimum(start, keep[0])
        start, shape = _index(low), _index(stop - low)
    extent_mm = np.multiply(shape, spacing_mm)
    stored = _index(np.maximum(1, np.rint(extent_mm / np.asarray(target_spacing_mm))))
    body = hu[tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))]
    exact = (extent_mm / np.asarray(stored)).tolist()
    return PlanGrid(resample_hu(body, stored), start, shape, (exact[0], exact[1], exact[2]))


def preprocess_dataset(
    dataset: RawDataset, fingerprint: Fingerprint, plan: Plan, folder: Path, processes: int
) -> list[FailedCase]:
    """Bring all training cases of the fingerprint to the planned grid.

    Args:
        dataset: where the files are.
        fingerprint: which cases are usable, and what they hold.
        plan: gives the spacing.
        folder: the plan's `cases` folder.
        processes: worker processes; with 1 the work is done in this process, where a crash for
            want of memory ends the run (a next run goes on after the last finished case).

    Returns:
        Cases that failed, with reason and fix; all others are stored.
    """
    raw = {case.case: case for case in dataset.training}
    jobs = [
        _Job(raw[known.case], known, dataset.info.positive_class, plan.spacing_mm, folder)
        for known in fingerprint.cases
    ]
    waiting = [job for job in jobs if not _is_stored(job)]
    logger.info(
        "Preprocessing %d cases (%d are up to date)", len(waiting), len(jobs) - len(waiting)
    )
    outcomes = _in_processes(waiting, processes) if processes > 1 else map(_run, waiting)
    progress = tqdm(outcomes, "Preprocessing", len(waiting), unit="case", disable=None)
    failed = [outcome for outcome in progress if outcome is not None]
    bad = {case.case for case in failed}
    stored = [read_meta(folder, job.case.case) for job in jobs if job.case.case not in bad]
    write_checksums(folder, stored)
    for line in faint_lesions(stored):
        logger.warning("warning: %s", line)
    return sorted(failed, key=lambda case: case.case)


def preprocessing_bytes(fingerprint: Fingerprint, plan: Plan) -> int:
    """Memory that one process needs for the case that needs most."""
    needed = (
        preparing_bytes(case.shape, case.spacing_mm, plan.spacing_mm) for case in fingerprint.cases
    )
    return INTERPRETER_BYTES + max(needed, default=0)


def preparing_bytes(shape: Index, spacing_mm: Triple, target_spacing_mm: Triple) -> int:
    """Memory that bringing one scan to the planned grid needs, the scan itself included."""
    stored = math.prod(np.divide(np.multiply(shape, spacing_mm), target_spacing_mm).tolist())
    return BYTES_PER_VOXEL * math.prod(shape) + int(BYTES_PER_STORED_VOXEL * stored)


def faint_lesions(stored: Sequence[StoredCase]) -> list[str]:
    """A line for each case with lesions of which next to nothing is left on the planned grid."""
    lines = []
    for case in stored:
        faint = [les.instance for les in case.lesions if les.volume_voxel < FAINT_VOXELS]
        if faint:
            lines.append(
                f"{case.case}: lesions {faint} have fewer than {FAINT_VOXELS} voxels on the "
                "planned grid; a finer --spacing would keep more of them"
            )
    return lines


def _is_stored(job: _Job) -> bool:
    try:
        return open_case(job.folder, job.case.case).meta.input_hash == job.input_hash
    except DataError:
        return False


def _in_processes(jobs: list[_Job], processes: int) -> Iterator[FailedCase | None]:
    """Run jobs in a pool; when a worker dies, those under way are retried one at a time.

    At most `processes` jobs are handed out at once, so that the suspects of a death are few.
    """
    waiting = deque(jobs)
    while waiting:
        under_way: dict[Future[FailedCase | None], _Job] = {}
        try:
            with _pool(processes) as pool:
                while waiting or under_way:
                    while waiting and len(under_way) < processes:
                        under_way[pool.submit(_run, waiting[0])] = waiting[0]
                        waiting.popleft()
                    for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                        yield future.result()
                        del under_way[future]
        except BrokenProcessPool:
            yield from map(_run_alone, under_way.values())


def _run_alone(job: _Job) -> FailedCase | None:
    try:
        with _pool(1) as pool:
            return pool.submit(_run, job).result()
    except BrokenProcessPool:
        return FailedCase(
            case=job.case.case,
            reason="its worker process died twice, then alone: most likely out of memory",
            fix="Use a machine with more memory, or a coarser spacing.",
        )


def _pool(processes: int) -> ProcessPoolExecutor:
    """Fresh interpreters: forking a process that has started threads can hang."""
    return ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))


def _run(job: _Job) -> FailedCase | None:
    """Do one case; whatever goes wrong stays with it."""
    try:
        _store(job)
    except BonemetError as error:
        return FailedCase(case=job.case.case, reason=str(error), fix="See the reason.")
    except Exception as error:
        logger.debug("case %s", job.case.case, exc_info=True)
        reason = f"{type(error).__name__}: {error}"
        return FailedCase(case=job.case.case, reason=reason, fix=_OUR_FAULT)
    return None


def _store(job: _Job) -> None:
    label = upright(read_instances(job.case.label))
    labels = read_case_labels(job.case.labels_json)
    planned, geometry = _planned_scan(job, _lesion_box(label.array))
    instances = resample_instances(label.array, planned.grid)
    meta = StoredCase(
        case=job.case.case,
        patient_id=job.fingerprint.patient_id,
        input_hash=job.input_hash,
        original=GeometryRecord.of(geometry),
        crop_start=planned.crop_start,
        crop_shape=planned.crop_shape,
        shape=planned.grid.shape,
        spacing_mm=planned.spacing_mm,
        lesions=_lesions(instances, labels, job.positive_class),
        patient_label=job.fingerprint.patient_label,
        bone_voxels=bone_samples(planned, job.input_hash),
    )
    write_case(job.folder, planned.hu, instances, meta)


def _planned_scan(job: _Job, keep: Crop | None) -> tuple[PlanGrid, Geometry]:
    """The scan on the planned grid, and its own; its voxels are let go before more is made."""
    scan = upright(read_hu(job.case.image))
    planned = to_plan_grid(scan.array, scan.geometry.spacing_mm, job.spacing_mm, keep)
    return planned, scan.geometry


def _lesion_box(instances: UInt16Array) -> Crop | None:
    """Box around all lesions: a lesion must survive the crop even where the body is not found."""
    boxes = ndimage.find_objects((instances > 0).astype(np.uint8))
    if not boxes:
        return None
    return _index([a.start for a in boxes[0]]), _index([a.stop - a.start for a in boxes[0]])


def _lesions(
    instances: UInt16Array, labels: CaseLabels, positive_class: int
) -> tuple[StoredLesion, ...]:
    boxes, volumes = ndimage.find_objects(instances), np.bincount(instances.ravel())
    lesions = []
    for instance in (np.flatnonzero(volumes[1:]) + 1).tolist():
        z, y, x = boxes[instance - 1]
        source = labels.instances[instance]
        lesion = StoredLesion(
            instance=instance,
            is_lung=None if source is None else source == positive_class,
            box_voxel_zyx=(z.start, y.start, x.start, z.stop, y.stop, x.stop),
            volume_voxel=int(volumes[instance]),
        )
        lesions.append(lesion)
    return tuple(lesions)


def bone_samples(planned: PlanGrid, seed: str) -> tuple[Index, ...]:
    """Bone voxels drawn without replacement by a generator of the case's own, in rising order."""
    bone = np.flatnonzero(bone_mask(planned.hu, planned.spacing_mm))
    generator = np.random.default_rng(int(seed[:16], 16))
    drawn = np.sort(generator.choice(bone, min(BONE_SAMPLES, bone.size), replace=False))
    return tuple(_index(voxel) for voxel in np.stack(np.unravel_index(drawn, planned.hu.shape), 1))


def _index(values: npt.ArrayLike) -> Index:
    z, y, x = np.asarray(values).astype(int).tolist()
    return z, y, x
