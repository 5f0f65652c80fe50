"""What is wrong with one case, and what it is like; remembered until its files change."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from bonemet_auto.errors import DataError
from bonemet_auto.files import sha256_file
from bonemet_auto.fingerprint import fingerprint_case
from bonemet_auto.images import Volume, read_hu, read_instances
from bonemet_auto.raw_dataset import RawCase, read_case_labels
from bonemet_auto.schema import CaseFingerprint, CaseLabels, DatasetInfo, InspectedCase, Stamp
from bonemet_auto.scope import unlike_hu

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
    fingerprint is None for test cases and for cases with faults. `stamps` are those of the files
    when they were read.
    """

    case: RawCase
    patient_id: str
    faults: tuple[Fault, ...] = ()
    warnings: tuple[str, ...] = ()
    content_hashes: tuple[str, ...] = ()
    fingerprint: CaseFingerprint | None = None
    stamps: tuple[Stamp, ...] = ()


def inspect_case(case: RawCase, info: DatasetInfo) -> CaseInspection:
    """Check the files of one case and take its fingerprint."""
    stamps = tuple(_stamp(path) for path in _files(case))
    hashes = {path: sha256_file(path) for path in _files(case) if path.is_file()}
    faults = list(_missing_files(case))
    image = _attempt(read_hu, case, case.image, faults)
    label = _attempt(read_instances, case, case.label, faults)
    labels = _attempt(read_case_labels, case, case.labels_json, faults)
    faults += [*_grid_faults(case, image, label), *_class_faults(case, label, labels, info)]
    contents = [hashes[case.image]] if case.image in hashes else []
    contents += [_pixel_hash(image)] if image is not None else []
    fingerprint = None
    if not (faults or case.is_test or image is None or label is None or labels is None):
        input_hash = _input_hash(hashes, _files(case), info)
        fingerprint = fingerprint_case(case, image, label, labels, info, input_hash)
    return CaseInspection(
        case=case,
        patient_id=(labels and labels.patient_id) or case.case,
        faults=tuple(faults),
        warnings=tuple(_image_warnings(case.case, image)),
        content_hashes=tuple(contents),
        fingerprint=fingerprint,
        stamps=stamps,
    )


def recall(
    case: RawCase, info: DatasetInfo, memory: Mapping[str, InspectedCase]
) -> CaseInspection | None:
    """What `memory`, by `memory_key`, knows of a case; None where its files or classes changed."""
    known = memory.get(memory_key(case))
    if known is None or known.labels != info.labels:
        return None
    if known.stamps != tuple(_stamp(path) for path in _files(case)):
        return None
    return CaseInspection(
        case,
        known.patient_id,
        warnings=known.warnings,
        content_hashes=known.content_hashes,
        fingerprint=known.fingerprint,
        stamps=known.stamps,
    )


def remember(inspection: CaseInspection, info: DatasetInfo) -> InspectedCase | None:
    """What a next run need not read again; None for a case with faults."""
    if inspection.faults:
        return None
    return InspectedCase(
        key=memory_key(inspection.case),
        stamps=inspection.stamps,
        labels=info.labels,
        patient_id=inspection.patient_id,
        warnings=inspection.warnings,
        content_hashes=inspection.content_hashes,
        fingerprint=inspection.fingerprint,
    )


def memory_key(case: RawCase) -> str:
    """Name of a case among what is remembered."""
    return f"{'test' if case.is_test else 'training'} {case.case}"


def _files(case: RawCase) -> tuple[Path, Path, Path]:
    return case.image, case.label, case.labels_json


def _stamp(path: Path) -> Stamp:
    """Size in bytes and time of the last change in ns; None for a file that is missing."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


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
    if unlike := unlike_hu(image.array):
        yield f"{case}: {unlike}"
