"""Everything that is wrong with a raw dataset, found in one read of each of its files."""

import math
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from bonemet_auto.errors import DataError
from bonemet_auto.folds import N_FOLDS, patient_labels
from bonemet_auto.images import read_geometry
from bonemet_auto.inspection import CaseInspection, Fault, inspect_case, recall, remember
from bonemet_auto.processor import INTERPRETER_BYTES
from bonemet_auto.raw_dataset import RawCase, RawDataset
from bonemet_auto.schema import CaseFingerprint, Fingerprint, InspectionMemory

INSPECTION_BYTES_PER_VOXEL = 24
"""Image, label map, masks and what they are made from; an int16 scan takes two thirds of it."""


@dataclass(frozen=True)
class Inspection:
    """What a dataset is like. The fingerprint holds the training cases without faults."""

    faults: list[Fault]
    warnings: list[str]
    fingerprint: Fingerprint
    memory: InspectionMemory


def inspect_dataset(
    dataset: RawDataset, memory: InspectionMemory | None, processes: int
) -> Inspection:
    """Check every file of a dataset and take its fingerprint; faults are collected, not raised.

    Cases whose files did not change since `memory` was made are taken from there without reading
    them. One process works inline.
    """
    known = {case.key: case for case in memory.cases} if memory else {}
    cases = [*dataset.training, *dataset.test]
    recalled = {case: recall(case, dataset.info, known) for case in cases}
    unknown = [case for case in cases if recalled[case] is None]
    results = _inspect_all(partial(inspect_case, info=dataset.info), unknown, processes)
    fresh = tqdm(results, "Checking files", len(unknown), unit="case", disable=None)
    found = recalled | {item.case: item for item in fresh}
    inspected = [item for case in cases if (item := found[case]) is not None]
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
    fingerprint = Fingerprint(dataset=dataset.folder.name, cases=healthy)
    kept = (remember(item, dataset.info) for item in inspected)
    return Inspection(
        faults,
        warnings,
        fingerprint,
        InspectionMemory(cases=tuple(case for case in kept if case is not None)),
    )


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
