"""Everything that is wrong with a raw dataset, found in one read of each of its files."""

import hashlib
import math
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from bonemet_auto.errors import DataError
from bonemet_auto.files import sha256_file
from bonemet_auto.fingerprint import fingerprint_case
from bonemet_auto.folds import N_FOLDS, patient_labels
from bonemet_auto.images import Volume, read_geometry, read_hu, read_instances
from bonemet_auto.processor import INTERPRETER_BYTES
from bonemet_auto.raw_dataset import RawCase, RawDataset, read_case_labels
from bonemet_auto.schema import CaseFingerprint, CaseLabels, DatasetInfo, Fingerprint

INSPECTION_BYTES_PER_VOXEL = 24
"""Image, label map, masks and what they are made from; see `tests/bench/bench_preprocess.py`."""

_AIR_HU = -900
_NARROWEST_CT_HU = 150
_CLIPPED_SHARE = 0.01

Content = TypeVar("Content")


@dataclass(frozen=True)
class Fault:
    """Something that forbids the use of a case; of the whole dataset where `case` is empty."""

    case: str
    file: Path
    problem: str
    fix: str


@dataclass(frozen=True)
class CaseInspection:
    """What one case is like.

    `content_hashes` are of the image file and of its pixels, as far as they were read; the
    fingerprint is None for test cases and for cases with faults.
    """

    case: RawCase
    patient_id: str
    faults: tuple[Fault, ...] = ()
    warnings: tuple[str, ...] = ()
    content_hashes: tuple[str, ...] = ()
    fingerprint: CaseFingerprint | None = None


@dataclass(frozen=True)
class Inspection:
    """What a dataset is like. The fingerprint holds the training cases without faults."""

    faults: list[Fault]
    warnings: list[str]
    fingerprint: Fingerprint


def inspect_dataset(
    dataset: RawDataset, previous: Fingerprint | None, processes: int
) -> Inspection:
    """Check every file of a dataset and take its fingerprint; faults are collected, not raised.

    Training cases whose files did not change since the `previous` fingerprint are taken from there
    without reading them. One process works inline.
    """
    known = {case.input_hash: case for case in previous.cases} if previous else {}
    cases = [*dataset.training, *dataset.test]
    work = partial(inspect_case, info=dataset.info, known=known)
    results = _inspect_all(work, cases, processes)
    inspected = list(tqdm(results, "Checking files", len(cases), unit="case", disable=None))
    faults = [fault for item in inspected for fault in item.faults]
    faults += [*_duplicates(inspected), *_patients_on_both_sides(inspected)]
    bad = {fault.case for fault in faults}
    healthy = tuple(
        item.fingerprint
        for item in inspected
        if item.fingerprint is not None and item.case.case not in bad
    )
    if healthy and not any(case.lesions for case in healthy):
        fix = "Draw the lesions of at least some cases; there is nothing to learn without them."
        faults.append(Fault("", dataset.folder, "no lesion in the whole cohort", fix))
    warnings = [warning for item in inspected for warning in item.warnings]
    warnings += _cohort_warnings(dataset, healthy)
    return Inspection(faults, warnings, Fingerprint(dataset=dataset.folder.name, cases=healthy))


def inspection_bytes(dataset: RawDataset) -> int:
    """Memory that one process needs for the largest scan, judged by the headers of all."""
    voxels = [_voxels(case.image) for case in (*dataset.training, *dataset.test)]
    return INTERPRETER_BYTES + INSPECTION_BYTES_PER_VOXEL * max(voxels, default=0)


def _voxels(image: Path) -> int:
    """Of a file that cannot be read 0: it will be a fault."""
    try:
        return math.prod(read_geometry(image).shape)
    except DataError:
        return 0


def inspect_case(
    case: RawCase, info: DatasetInfo, known: dict[str, CaseFingerprint] | None = None
) -> CaseInspection:
    """Check the files of one case and take its fingerprint.

    A training case whose input hash is found among the `known` ones is not read again.
    """
    files = (case.image, case.label, case.labels_json)
    hashes = {path: sha256_file(path) for path in files if path.is_file()}
    faults = list(_missing_files(case))
    input_hash = _input_hash(hashes, files, info)
    before = (known or {}).get(input_hash)
    if before is not None and before.case == case.case and not (faults or case.is_test):
        return CaseInspection(
            case, before.patient_id, content_hashes=(hashes[case.image],), fingerprint=before
        )
    image = _attempt(read_hu, case, case.image, faults)
    label = _attempt(read_instances, case, case.label, faults)
    labels = _attempt(read_case_labels, case, case.labels_json, faults)
    faults += [*_grid_faults(case, image, label), *_class_faults(case, label, labels, info)]
    contents = [hashes[case.image]] if case.image in hashes else []
    contents += [_pixel_hash(image)] if image is not None else []
    fingerprint = None
    if not (faults or case.is_test or image is None or label is None or labels is None):
        fingerprint = fingerprint_case(case, image, label, labels, info, input_hash)
    return CaseInspection(
        case=case,
        patient_id=(labels and labels.patient_id) or case.case,
        faults=tuple(faults),
        warnings=tuple(_image_warnings(case.case, image)),
        content_hashes=tuple(contents),
        fingerprint=fingerprint,
    )


def fault_table(faults: Sequence[Fault]) -> str:
    """All faults as text for a terminal: case, file, problem and fix."""
    return "\n".join(
        f"{fault.case or 'whole dataset'}: {fault.file}\n"
        f"  problem: {fault.problem}\n"
        f"  fix:     {fault.fix}"
        for fault in faults
    )


def _inspect_all(
    work: Callable[[RawCase], CaseInspection], cases: Sequence[RawCase], processes: int
) -> Iterator[CaseInspection]:
    """Results in the order of `cases`; one process works inline."""
    if processes <= 1 or len(cases) < 2:
        yield from map(work, cases)
        return
    with _pool(min(processes, len(cases))) as pool:
        futures = [pool.submit(work, case) for case in cases]
        for case, future in zip(cases, futures, strict=True):
            yield _result(work, case, future)


def _result(
    work: Callable[[RawCase], CaseInspection], case: RawCase, future: Future[CaseInspection]
) -> CaseInspection:
    """One dead worker breaks the whole pool and hides whose it was: try each case alone then."""
    try:
        return future.result()
    except BrokenProcessPool:
        pass
    try:
        with _pool(1) as pool:
            return pool.submit(work, case).result()
    except BrokenProcessPool:
        problem = "the worker process died while it read this case, most likely out of memory"
        fault = Fault(case.case, case.image, problem, "Use -np 1, or a machine with more memory.")
        return CaseInspection(case, case.case, faults=(fault,))


def _pool(processes: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))


def _input_hash(hashes: dict[Path, str], files: Sequence[Path], info: DatasetInfo) -> str:
    """Hash of a case's files, and of the classes that give them their meaning."""
    parts = [repr(sorted(info.labels.items())), *(hashes.get(path, "missing") for path in files)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _pixel_hash(image: Volume) -> str:
    """Hash that finds the same scan under another name, format or compression."""
    digest = hashlib.sha256(repr(image.array.shape).encode())
    digest.update(np.ascontiguousarray(image.array).data)
    return digest.hexdigest()


def _missing_files(case: RawCase) -> Iterator[Fault]:
    """Test cases need no labels, but a label map and its class file belong together."""
    fixes = {
        case.image: "Add the CT, or remove the labels of this case.",
        case.label: "Add the label map (all 0 for a case without lesions), or remove the image.",
        case.labels_json: 'Add the class of each instance; {"instances": {}} without lesions.',
    }
    if case.is_test and not (case.label.is_file() or case.labels_json.is_file()):
        del fixes[case.label], fixes[case.labels_json]
    for path, fix in fixes.items():
        if not path.is_file():
            yield Fault(case.case, path, "file is missing", fix)


def _attempt(
    read: Callable[[Path], Content], case: RawCase, path: Path, faults: list[Fault]
) -> Content | None:
    """Read a file that exists, or note why it cannot be read.

    Messages of the readers have the form "FILE: problem. Fix."
    """
    if not path.is_file():
        return None
    try:
        return read(path)
    except DataError as error:
        problem, _, fix = str(error).removeprefix(str(path)).lstrip(": ").partition(". ")
        faults.append(Fault(case.case, path, problem, fix))
        return None


def _grid_faults(case: RawCase, image: Volume | None, label: Volume | None) -> Iterator[Fault]:
    if image is None or label is None:
        return
    if difference := image.geometry.mismatch(label.geometry):
        problem = f"the label map is on another grid than the image: {difference}"
        fix = "Resample the label map to the image with nearest neighbours, or find its own image."
        yield Fault(case.case, case.label, problem, fix)


def _class_faults(
    case: RawCase, label: Volume | None, labels: CaseLabels | None, info: DatasetInfo
) -> Iterator[Fault]:
    if labels is None:
        return
    path = case.labels_json
    for instance, source in sorted(labels.instances.items()):
        if source is not None and source not in info.labels.values():
            problem = f"instance {instance} has class {source}, which dataset.json does not name"
            yield Fault(case.case, path, problem, f"Use null or a class of {info.labels}.")
    if label is None:
        return
    drawn = set(np.flatnonzero(np.bincount(label.array.ravel())).tolist()) - {0}
    if unclassed := sorted(drawn - labels.instances.keys()):
        problem = f"ids {unclassed} of the label map have no class"
        yield Fault(case.case, path, problem, "Add them (null: source unknown), or erase them.")
    if undrawn := sorted(labels.instances.keys() - drawn):
        problem = f"ids {undrawn} have a class and no voxel in the label map"
        yield Fault(case.case, path, problem, "Remove them, or draw them.")


def _image_warnings(case: str, image: Volume | None) -> Iterator[str]:
    if image is None:
        return
    if image.array.shape[0] == 1:
        yield f"{case}: one slice only; it will be padded"
    low, high = int(image.array.min()), int(image.array.max())
    clipped = low > _AIR_HU and float((image.array == low).mean()) > _CLIPPED_SHARE
    if low >= 0 or high - low < _NARROWEST_CT_HU or clipped:
        yield (
            f"{case}: values from {low} to {high} do not look like Hounsfield units (8-bit, "
            "windowed, MR, or stored without their offset?); check how it was exported"
        )


def _duplicates(inspected: Sequence[CaseInspection]) -> Iterator[Fault]:
    """Later training cases give way to earlier ones, and all of them to test cases."""
    first: dict[str, RawCase] = {}
    for item in sorted(inspected, key=lambda item: not item.case.is_test):
        twins = [first[content] for content in item.content_hashes if content in first]
        if twins:
            problem = f"same pixels as case '{twins[0].case}' ({twins[0].image})"
            yield Fault(item.case.case, item.case.image, problem, "Keep one of the two.")
        first.update(dict.fromkeys(item.content_hashes, item.case))


def _patients_on_both_sides(inspected: Sequence[CaseInspection]) -> Iterator[Fault]:
    tested = {item.patient_id: item.case.case for item in inspected if item.case.is_test}
    for item in inspected:
        if not item.case.is_test and item.patient_id in tested:
            problem = (
                f"patient '{item.patient_id}' is in training (case '{item.case.case}') and in test "
                f"(case '{tested[item.patient_id]}')"
            )
            fix = "Move all cases of a patient to one side."
            yield Fault(item.case.case, item.case.labels_json, problem, fix)


def _cohort_warnings(dataset: RawDataset, healthy: Sequence[CaseFingerprint]) -> Iterator[str]:
    if dataset.info.num_training != len(dataset.training):
        yield (
            f"dataset.json promises {dataset.info.num_training} training cases, "
            f"{len(dataset.training)} are there"
        )
    patients = patient_labels(healthy)
    if len(patients) < N_FOLDS:
        yield f"{len(patients)} patients: fewer than {N_FOLDS}, so there are fewer folds"
    if empty := sum(not case.lesions for case in healthy):
        yield f"{empty} of {len(healthy)} cases have no lesion"
    if unknown := sum(lesion.source is None for case in healthy for lesion in case.lesions):
        yield f"{unknown} lesions have no known source: found and outlined, not source-classified"
    for label, name in ((0, "negative"), (1, "positive")):
        if label not in patients.values():
            yield f"no {name} patient: the source cannot be learnt from this cohort"
